"""Settings that a sweep varies, by their names."""

from __future__ import annotations

import pytest

from pseudoword import ranges, trials


@pytest.mark.parametrize("name", ["adam_beta2", "method.adam_beta2"])
def test_an_option_of_the_method_may_be_named_short(name: str) -> None:
    assert list(ranges.varied(trials.plain_recipe(), [f"{name}=0.9,0.99"])) == ["adam_beta2=0.9", "adam_beta2=0.99"]
