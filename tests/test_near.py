"""What a person may have meant."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from pseudoword.errors import RecipeError
from pseudoword.families.locate import locate
from pseudoword.recipe import BaseModel


def test_a_model_that_is_nearly_here_is_told_without_asking_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*args: object, **options: object) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "models" / "my-model"
    models.mkdir(parents=True)
    (models / "model_index.json").write_text("{}")
    for name, near in (("toybx", "toybox"), ("models/my-modle", "models/my-model")):
        with pytest.raises(RecipeError, match=f"There is no model '{name}' here. Did you mean '{near}'"):
            locate(BaseModel(name), {"toybox": tmp_path})
    with pytest.raises(AssertionError, match="a network was asked"):
        locate(BaseModel("owner/my-modle"), {"toybox": tmp_path})
