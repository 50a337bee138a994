"""What the guide's script takes, and what a run of ours leaves."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pseudoword import Concept, Recipe

SCRIPT = Path(__file__).parents[2] / "examples" / "textual_inversion" / "textual_inversion.py"
REQUIRED = ("pretrained_model_name_or_path", "train_data_dir", "placeholder_token", "initializer_token")
GUIDE: dict[str, Any] = {
    **dict.fromkeys(REQUIRED),
    "save_steps": 500,
    "save_as_full_pipeline": False,
    "num_vectors": 1,
    "revision": None,
    "variant": None,
    "tokenizer_name": None,
    "learnable_property": "object",
    "repeats": 100,
    "output_dir": "text-inversion-model",
    "seed": None,
    "resolution": 512,
    "center_crop": False,
    "train_batch_size": 16,
    "num_train_epochs": 100,
    "max_train_steps": 5000,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "learning_rate": 1e-4,
    "scale_lr": False,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 500,
    "lr_num_cycles": 1,
    "dataloader_num_workers": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-08,
    "push_to_hub": False,
    "hub_token": None,
    "hub_model_id": None,
    "logging_dir": "logs",
    "mixed_precision": "no",
    "allow_tf32": False,
    "report_to": "tensorboard",
    "validation_prompt": None,
    "num_validation_images": 4,
    "validation_steps": 100,
    "validation_epochs": None,
    "local_rank": -1,
    "checkpointing_steps": 500,
    "checkpoints_total_limit": None,
    "resume_from_checkpoint": None,
    "enable_xformers_memory_efficient_attention": False,
    "no_safe_serialization": False,
}
"""The flags of diffusers' examples/textual_inversion/textual_inversion.py (0.40), and their defaults."""
QUICK = {"resolution": 16, "train_batch_size": 2, "max_train_steps": 3, "learning_rate": 1e-2, "seed": 7}
"""Flags of three quick steps on the miniature."""


def loaded(name: str) -> ModuleType:
    """Return one of the scripts that take their flags from the first, as if it had been started."""
    spec = importlib.util.spec_from_file_location(name, SCRIPT.with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


@dataclass(frozen=True)
class Learned:
    """What a run left in its folder."""

    folder: Path

    @property
    def rows(self) -> np.ndarray:
        return Concept.load(self.folder).rows["clip_l"]

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]
        return [line for line in lines if line["step"]]

    @property
    def rates(self) -> list[float]:
        return [line["lr"] for line in self.log]

    @property
    def recipe(self) -> Recipe:
        return Recipe.read(self.folder / "recipe.toml")

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


Learn = Callable[..., Learned]
Argv = Callable[..., list[str]]
Refused = Callable[..., str]
