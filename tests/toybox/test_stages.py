"""The stages that make the toybox: what they leave, go on from, and refuse."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pseudoword.errors import RecipeError
from pseudoword.progress import Progress
from pseudoword.toybox import world
from pseudoword.toybox.train_base import BaseOptions, batch_captions, train_base
from pseudoword.toybox.train_decoder import DecoderOptions, train_decoder
from pseudoword.toybox.train_oracle import OracleOptions, train_oracle
from pseudoword.toybox.train_vae import train_vae
from pseudoword.toybox.trainer import draws
from tests.toybox.conftest import base_options, vae_options


def test_the_base_is_written_as_any_stable_diffusion(trained: Path):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(trained / "base")
    kinds = [type(part).__name__ for part in (pipeline.tokenizer, pipeline.text_encoder, pipeline.vae, pipeline.unet)]
    assert kinds == ["CLIPTokenizer", "CLIPTextModel", "AutoencoderKL", "UNet2DConditionModel"]
    assert {part.dtype for part in (pipeline.text_encoder, pipeline.vae, pipeline.unet)} == {torch.float32}
    assert pipeline.tokenizer.model_max_length == 77
    assert pipeline.text_encoder.config.eos_token_id == pipeline.tokenizer.eos_token_id == 1
    picture = pipeline("a red star", num_inference_steps=2, guidance_scale=4.0).images[0]
    assert picture.size == (64, 64)
    weights = sum(path.stat().st_size for path in (trained / "base").rglob("*.safetensors"))
    parameters = sum(
        p.numel() for part in (pipeline.text_encoder, pipeline.vae, pipeline.unet) for p in part.parameters()
    )
    assert weights < 2 * parameters + 60_000


def test_the_vae_knows_the_spread_of_its_latents(trained: Path):
    config = json.loads((trained / "vae" / "config.json").read_text())
    [file] = trained.glob("latents-8-*.npy")
    latents = np.load(file).astype(np.float32)
    assert config["scaling_factor"] > 0
    assert latents.shape == (8, 4, 8, 8)
    assert latents.std() == pytest.approx(1, abs=0.02)


def test_a_decoder_is_sharpened_and_latents_stay(trained: Path, tmp_path: Path):
    folder = shutil.copytree(trained, tmp_path / "again")
    before = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    [*_, last] = train_decoder(DecoderOptions(folder, pictures=8, steps=60, batch_size=8))
    after = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"] == pytest.approx(
        json.loads((trained / "vae" / "config.json").read_text())["scaling_factor"]
    )
    [first, *_] = train_decoder(DecoderOptions(shutil.copytree(trained, tmp_path / "new"), pictures=8, steps=1))
    assert last.loss["toybox"] < 0.8 * first.loss["toybox"]


def test_a_finished_base_is_written_again_with_the_autoencoder_that_is_there(trained: Path, tmp_path: Path):
    folder = shutil.copytree(trained, tmp_path / "again")
    list(train_decoder(DecoderOptions(folder, pictures=8, steps=2, batch_size=8)))
    assert list(train_base(base_options(folder))) == []
    weights = Path("vae") / "diffusion_pytorch_model.safetensors"
    [own, written] = (load_file(folder / place / weights) for place in (".", "base"))
    assert all(torch.equal(value.half(), written[name]) for name, value in own.items())
    assert any(not torch.equal(value, written[name]) for name, value in load_file(trained / "base" / weights).items())


def test_a_longer_run_goes_on_from_the_checkpoint(trained: Path, tmp_path: Path):
    folder = shutil.copytree(trained, tmp_path / "again")
    steps = [p.step for p in train_base(replace(base_options(folder), steps=5))]
    assert steps == [4, 5]
    assert (folder / "samples-000005.png").exists()


def test_a_stage_asks_for_those_before_it(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"vae' yet: pseudoword toybox train-vae makes it\.$"):
        next(train_base(base_options(tmp_path)))
    with pytest.raises(RecipeError, match=r"train-vae"):
        next(train_oracle(OracleOptions(tmp_path)))
    list(train_vae(vae_options(tmp_path)))
    with pytest.raises(RecipeError, match=r"text.safetensors' yet: pseudoword toybox train-text makes it\.$"):
        next(train_base(base_options(tmp_path)))


def test_captions_of_a_batch_are_a_function_of_its_step():
    options = BaseOptions(whole=100)
    drawings = [world.training_drawing(seed) for seed in range(400)]
    early, again = (batch_captions(options, drawings, 0, draws(0, 0, 1)) for _ in range(2))
    late = batch_captions(options, drawings, 1000, draws(0, 1000, 1))
    assert early == again
    assert 0.05 < early.count("") / 400 < 0.16
    assert sum(map(len, late)) < sum(map(len, early))


def closed_after(run: Generator[Progress], steps: int) -> None:
    for progress in run:
        if progress.step == steps:
            run.close()


def test_a_run_that_is_closed_keeps_its_last_whole_step_and_goes_on_exactly(trained: Path, tmp_path: Path):
    whole, parted = (shutil.copytree(trained, tmp_path / name) for name in ("whole", "parted"))
    for folder in (whole, parted):
        (folder / "base.checkpoint").unlink()
    list(train_base(base_options(whole)))
    before = (parted / "base" / "unet" / "config.json").stat().st_mtime_ns
    closed_after(train_base(base_options(parted)), 2)
    assert (parted / "base" / "unet" / "config.json").stat().st_mtime_ns == before
    assert [progress.step for progress in train_base(base_options(parted))] == [3]
    [one, other] = (load_file(f / "base" / "unet" / "diffusion_pytorch_model.safetensors") for f in (whole, parted))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_finished_autoencoder_is_left_as_it_is(trained: Path, tmp_path: Path):
    folder = shutil.copytree(trained, tmp_path / "again")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    list(train_decoder(DecoderOptions(folder, pictures=8, steps=2, batch_size=8)))
    sharpened = weights.read_bytes()
    assert list(train_vae(vae_options(folder))) == []
    assert weights.read_bytes() == sharpened


def test_another_autoencoder_means_other_latents_and_other_worn_pictures(trained: Path, tmp_path: Path):
    folder = shutil.copytree(trained, tmp_path / "again")
    (folder / "vae.checkpoint").unlink()
    list(train_vae(replace(vae_options(folder), seed=5)))
    list(train_decoder(DecoderOptions(folder, pictures=8, steps=1, batch_size=2)))
    assert len(list(folder.glob("latents-8-*.npy"))) == 2
    list(train_oracle(OracleOptions(folder, pictures=8, pairs=6, steps=3, batch_size=4)))
    assert len(list(folder.glob("pairs-worn-6-0-*.npy"))) == 2


DAMAGE = {
    "vae.checkpoint": (train_vae, vae_options, r"The checkpoint '.*vae.checkpoint' cannot be read \(.*\); delete it"),
    "pictures-8.npy": (train_vae, vae_options, r"pictures-8.npy' is damaged \(.*\); delete it, and it is made again\."),
    "text.safetensors": (train_base, base_options, r"text.safetensors' cannot be read \(.*\); .* train-text again\."),
    "vae/config.json": (train_base, base_options, r"vae' cannot be read \(.*\); .* train-vae again\."),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("size", [0, 100])
def test_damaged_files_are_named_with_their_cure(name: str, size: int, trained: Path, tmp_path: Path):
    folder = shutil.copytree(trained, tmp_path / "again")
    (folder / name).write_bytes((folder / name).read_bytes()[:size])
    stage, options, told = DAMAGE[name]
    with pytest.raises(RecipeError, match=told):
        list(stage(options(folder)))  # pyright: ignore[reportArgumentType]


def test_an_array_of_another_length_is_damaged(trained: Path, tmp_path: Path):
    folder = shutil.copytree(trained, tmp_path / "again")
    np.save(folder / "pictures-8.npy", np.load(folder / "pictures-8.npy")[:5])
    with pytest.raises(RecipeError, match=r"pictures-8.npy' holds 5 entries, not 8; delete it, and it is made again\."):
        list(train_vae(vae_options(folder)))


def test_other_sizes_than_the_checkpoints_are_refused(trained: Path, tmp_path: Path):
    folder = shutil.copytree(trained, tmp_path / "again")
    with pytest.raises(RecipeError, match=r"vae.checkpoint' is of other sizes; ask for the same ones, or take another"):
        list(train_vae(replace(vae_options(folder), channels=(8, 16))))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": 0}, "--steps must be at least 1, but is 0."),
        ({"batch_size": 0}, "--batch-size must be at least 1, but is 0."),
        ({"pictures": -1}, "--pictures must be at least 1, but is -1."),
        ({"learning_rate": -1.0}, "--learning-rate must be at least 0, but is -1.0."),
        ({"learning_rate": float("nan")}, "--learning-rate must be at least 0, but is nan."),
        ({"seed": -1}, "--seed must be between 0 and 2^63 - 1, not -1."),
    ],
)
def test_options_that_no_run_can_have_are_refused(change: dict[str, float], told: str, tmp_path: Path):
    with pytest.raises(RecipeError, match=re.escape(told)):
        next(train_vae(replace(vae_options(tmp_path), **change)))  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"'.*file' is a file, but a folder is to be written; name another\."):
        next(train_vae(vae_options(tmp_path / "file")))
