"""The guide's command for Stable Diffusion XL, on a miniature."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

import pseudoword
from pseudoword import Concept, formats
from pseudoword.families.sdxl import miniature
from tests.examples.guide import GUIDE, QUICK, REQUIRED, loaded
from tests.miniatures import TOKEN

NOT_HERE = {"tokenizer_name", "validation_epochs", "no_safe_serialization"}
OURS = {"config", "pretrained_vae_model_name_or_path", "help"}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("textual_inversion_sdxl")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write(tmp_path_factory.mktemp("sdxl"))


def learn(script: ModuleType, base: Path, pictures: Path, folder: Path, **flags: Any) -> int:
    given = {**dict(zip(REQUIRED, (base, pictures, TOKEN, "toy"), strict=True)), **QUICK, "output_dir": folder, **flags}
    words = [w for name, v in given.items() for w in ([f"--{name}"] if v is True else [f"--{name}", str(v)])]
    return script.main(words)


def test_flags_and_defaults_are_the_guides(script: ModuleType):
    parser = script.parser()
    flags = {name.removeprefix("--") for name in parser._option_string_actions if name.startswith("--")}
    assert flags == ((set(GUIDE) - NOT_HERE) | {"use_8bit_adam"} | OURS)
    required = [word for name in REQUIRED for word in (f"--{name}", "x")]
    args = vars(parser.parse_args(required))
    assert all(args[name] == default for name, default in GUIDE.items() if name not in REQUIRED)
    assert args["use_8bit_adam"] is False


def test_flags_that_the_guides_script_has_not_are_refused(script: ModuleType, capsys: pytest.CaptureFixture[str]):
    required = [word for name in REQUIRED for word in (f"--{name}", "x")]
    with pytest.raises(SystemExit):
        script.main([*required, "--validation_epochs", "3"])
    told = capsys.readouterr().err
    assert "usage: textual_inversion_sdxl.py" in told
    assert "unrecognized arguments: --validation_epochs 3" in told


@pytest.mark.parametrize("vectors", [1, 3])
def test_the_guides_command_learns_a_word_that_loads(
    script: ModuleType,
    base: Path,
    pictures: Path,
    tmp_path: Path,
    vectors: int,
    capsys: pytest.CaptureFixture[str],
):
    """With the guide's own flags, scaled to the miniature, and pictures whose number no batch divides."""
    flags = {"learnable_property": "object", "mixed_precision": "bf16", "train_batch_size": 2, "save_steps": 2}
    flags |= {"gradient_accumulation_steps": 2, "scale_lr": True, "lr_scheduler": "constant", "lr_warmup_steps": 0}
    flags |= {"num_vectors": vectors, "save_as_full_pipeline": True, "use_8bit_adam": True}
    flags |= {"gradient_checkpointing": True, "validation_prompt": f"a {TOKEN}", "num_validation_images": 1}
    assert learn(script, base, pictures, tmp_path / "out", **flags) == 0
    assert "In diffusers: pseudoword.load(pipeline, " in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "learned_embeds.safetensors",
        "learned_embeds_2.safetensors",
        "learned_embeds-steps-2.safetensors",
        "learned_embeds_2-steps-2.safetensors",
        "token_identifier.txt",
    } <= files
    word = Concept.load(tmp_path / "out")
    assert {encoder: rows.shape for encoder, rows in word.rows.items()} == {
        "clip_l": (vectors, miniature.WIDTHS[0]),
        "clip_g": (vectors, miniature.WIDTHS[1]),
    }
    [export] = formats.exports_in(tmp_path / "out")
    content = formats.open_file(export).values
    assert {name: array.shape[0] for name, array in content.items()} == {"clip_l": vectors, "clip_g": vectors}

    # Through our loader, and whole from the pipeline that was saved.
    pipeline = StableDiffusionXLPipeline.from_pretrained(base, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {"num_inference_steps": 2, "height": 16, "width": 16}
    pictures_of = lambda own, text: np.asarray(  # noqa: E731
        own(text, generator=torch.Generator().manual_seed(0), **asked).images[0], dtype=int
    )
    with pseudoword.load(pipeline, tmp_path / "out"):
        ours = pictures_of(pipeline, f"a {TOKEN} on the beach")
    whole = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out", add_watermarker=False)
    whole.set_progress_bar_config(disable=True)
    assert np.abs(pictures_of(whole, f"a {TOKEN} on the beach") - ours).max() <= 1
    assert np.abs(pictures_of(pipeline, "a toy on the beach") - ours).max() > 1


def test_another_vae_encodes_the_pictures(script: ModuleType, base: Path, pictures: Path, tmp_path: Path):
    other = miniature.write(tmp_path / "other", seed=3)
    assert learn(script, base, pictures, tmp_path / "own") == 0
    flags = {"pretrained_vae_model_name_or_path": other / "vae"}
    assert learn(script, base, pictures, tmp_path / "out", **flags) == 0
    own, out = (Concept.load(tmp_path / name).rows["clip_g"] for name in ("own", "out"))
    assert not np.array_equal(own, out)
