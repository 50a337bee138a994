"""The miniature base as one file has it: its tensors, its configuration alone, and a way to write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from tests.families import ldm


@pytest.fixture(scope="session")
def tensors(base: Path) -> ldm.Tensors:
    return ldm.checkpoint(base)


@pytest.fixture(scope="session")
def config(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ldm.config_folder(base, tmp_path_factory.mktemp("config"))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Write named tensors into one file."""

    def save(tensors: dict[str, Any], name: str = "model.safetensors") -> Path:
        safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / name)
        return tmp_path / name

    return save
