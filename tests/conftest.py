"""Miniatures for every test: a base of random weights, a folder of pictures, and a recipe that joins them."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub.utils import _http
from hypothesis import settings
from PIL import Image

from pseudoword import hub_client
from pseudoword.batch import Batch
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.families.sd import miniature
from pseudoword.methods import OPTIONS
from pseudoword.recipe import (
    BaseModel,
    ConceptRecipe,
    Data,
    EngineRecipe,
    Output,
    Recipe,
    Schedule,
    Training,
    Validation,
)
from tests.hub_server import Hub, point_at, running
from tests.miniatures import TOKEN

settings.register_profile("pseudoword", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("pseudoword")

SECTIONS = {
    "base": BaseModel,
    "data": Data,
    "training": Training,
    "schedule": Schedule,
    "engine": EngineRecipe,
    "validation": Validation,
    "output": Output,
}


@pytest.fixture(scope="session", autouse=True)
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let what JAX compiles be found again by other tests and processes, but not be left in the user's cache."""
    os.environ["JAX_NUM_CPU_DEVICES"] = "2"  # whatever the machine, and whoever comes first
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.getbasetemp().parent / "compiled")
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature Stable Diffusion base, epsilon, fp32."""
    return miniature.write(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small pictures that differ from each other, none of them square."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(values).resize((30, 24), Image.Resampling.NEAREST).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def make_recipe(base: Path, pictures: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Make a recipe of 4 quick steps; keyword arguments change any field of any section by its name."""

    def make(**changes: Any) -> Recipe:
        defaults: dict[str, Any] = {
            "model": str(base),
            "token": TOKEN,
            "pictures": str(pictures),
            "initializer": "toy",
            "seed": 7,
            "batch_size": 2,
            "steps": "4",
            "learning_rate": 1e-2,
            "folder": str(tmp_path / "run"),
            "report_to": "none",
            "loss_steps": 0,
        }
        values = {**defaults, **changes}

        def take(cls: type) -> Any:
            names = [f.name for f in dataclasses.fields(cls)]
            return cls(**{name: values.pop(name) for name in names if name in values})

        concept, method = take(ConceptRecipe), take(OPTIONS[values.pop("method", "classic")])
        sections = {name: take(cls) for name, cls in SECTIONS.items()}
        assert not values, f"no section has {sorted(values)}"
        return Recipe(concepts=(concept,), method=method, **sections)

    return make


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Two pictures of other shapes than the first concept's, one of them masked."""
    folder = tmp_path / "others"
    folder.mkdir()
    for i, size in enumerate([(40, 20), (24, 24)]):
        values = np.random.default_rng(10 + i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
    mask = np.zeros((40, 20), np.uint8)
    mask[:10] = 255
    Image.fromarray(mask).save(folder / "0-mask.png")
    return folder


@pytest.fixture
def make_many(make_recipe: MakeRecipe, pictures: Path, others: Path) -> Callable[..., Recipe]:
    """Make a recipe of three concepts that differ in pictures, vectors, properties and initializers."""

    def make(**changes: Any) -> Recipe:
        recipe = make_recipe(**changes)
        concepts = (
            ConceptRecipe("<cat>", str(pictures), "cat"),
            ConceptRecipe("<dog>", str(others), "dog", num_vectors=3),
            ConceptRecipe("<style>", str(pictures), "red", property="style"),
        )
        return dataclasses.replace(recipe, concepts=concepts)

    return make


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list to which every pass through the model adds the concepts of its pictures."""
    seen: list[list[int]] = []
    loss = TorchEngine._loss

    def noted(self: TorchEngine, params: Any, batch: Batch, *more: Any, **options: Any) -> Any:
        seen.append(batch.concept.tolist())
        return loss(self, params, batch, *more, **options)

    monkeypatch.setattr(TorchEngine, "_loss", noted)
    return seen


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let pushes wait no time before they try again, and return how long it would have been; at most three tries."""
    waits: list[float] = []
    clock = SimpleNamespace(sleep=waits.append, monotonic=time.monotonic)
    monkeypatch.setattr(hub_client, "time", clock)
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr(hub_client, "TRIES", 3)
    return waits


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> Iterator[Hub]:
    """A Hub on this machine, to which this process pushes."""
    with running() as hub:
        point_at(hub.url, monkeypatch)
        yield hub


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Let no command's messages reach another test's streams."""
    logger = logging.getLogger("pseudoword")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Return a small LoRA's file, as kohya's scripts write them."""
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"lora_unet_{block}.{part}": torch.randn(4, 8, generator=draw).half()
        for block in ("down_blocks_0", "mid_block")
        for part in ("lora_down.weight", "lora_up.weight")
    }
    safetensors.torch.save_file(tensors, tmp_path / "style-lora.safetensors", {"ss_network_dim": "4"})
    return tmp_path / "style-lora.safetensors"
