"""Pipelines of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from pseudoword.families.sdxl import miniature as xl
from tests.loading.pipelines import made


@pytest.fixture(scope="module")
def sd(base: Path) -> Any:
    return made(StableDiffusionPipeline, base, safety_checker=None)


@pytest.fixture(scope="module")
def xl_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return xl.write(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def sdxl(xl_base: Path) -> Any:
    pipeline = made(StableDiffusionXLPipeline, xl_base, add_watermarker=False)
    pipeline.encode_prompt("a cat")  # transformers leaves hooks of its own where hidden states are first asked for
    return pipeline
