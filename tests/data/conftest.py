"""The miniature base with a word lent, for tests of what a word is learned from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.recipe import BaseModel
from tests.miniatures import TOKEN


@pytest.fixture(scope="module")
def loaded(base: Path) -> StableDiffusion:
    return StableDiffusion.load(BaseModel(str(base)))


@pytest.fixture
def family(loaded: StableDiffusion) -> Iterator[StableDiffusion]:
    [vocabulary] = loaded.vocabularies.values()
    vocabulary.lend(TOKEN, 1)
    yield loaded
    vocabulary.give_back()
