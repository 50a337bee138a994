"""The guide's Flax command, on a miniature."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pseudoword import Recipe, train
from tests.examples.guide import QUICK, REQUIRED, loaded
from tests.miniatures import TOKEN, rows_of

FLAX: dict[str, Any] = {
    "tokenizer_name": None,
    "learnable_property": "object",
    "repeats": 100,
    "output_dir": "text-inversion-model",
    "seed": 42,
    "resolution": 512,
    "center_crop": False,
    "train_batch_size": 16,
    "num_train_epochs": 100,
    "max_train_steps": 5000,
    "save_steps": 500,
    "learning_rate": 1e-4,
    "scale_lr": True,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 500,
    "revision": None,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-08,
    "push_to_hub": False,
    "use_auth_token": False,
    "hub_token": None,
    "hub_model_id": None,
    "logging_dir": "logs",
    "local_rank": -1,
}
"""The flags of the guide's textual_inversion_flax.py, and their defaults."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("textual_inversion_flax")


def command(base: Path, pictures: Path, folder: Path, **flags: Any) -> list[str]:
    given = {**dict(zip(REQUIRED, (base, pictures, TOKEN, "toy"), strict=True)), **QUICK, "output_dir": folder, **flags}
    return [w for name, v in given.items() for w in ([f"--{name}"] if v is True else [f"--{name}", str(v)])]


def test_flags_and_defaults_are_the_guides(script: ModuleType):
    args = vars(script.parser().parse_args([word for name in REQUIRED for word in (f"--{name}", "x")]))
    assert {name: args[name] for name in FLAX} == FLAX


def test_the_command_learns_with_jax(
    script: ModuleType, base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = {"report_to": "none", "use_auth_token": True, "checkpointing_steps": 2}
    assert script.main(command(base, pictures, tmp_path / "run", **flags)) == 0
    assert f"The word {TOKEN} is in {tmp_path / 'run'}. In diffusers: pipeline.load_textual" in capsys.readouterr().out
    recipe = Recipe.read(tmp_path / "run" / "recipe.toml")
    assert (recipe.engine.engine, recipe.schedule.scale_lr) == ("jax", True)
    before = rows_of(tmp_path / "run")
    list(train(recipe, resume="checkpoint-2"))
    assert np.array_equal(rows_of(tmp_path / "run"), before)


def test_what_only_pytorch_does_is_no_flag(
    script: ModuleType, base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        script.main(command(base, pictures, tmp_path / "run", save_as_full_pipeline=True))
    assert "unrecognized arguments: --save_as_full_pipeline" in capsys.readouterr().err
    assert script.main(command(base, pictures, tmp_path / "run", mixed_precision="fp16")) == 1
    assert "error: The JAX engine does not compute in fp16" in capsys.readouterr().err
