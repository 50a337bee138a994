"""The families on JAX against those on PyTorch: every part of the loss, sampling, and what is refused."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import SingleDeviceSharding

from pseudoword import families
from pseudoword.errors import RecipeError
from pseudoword.families.hub_folder import local
from pseudoword.families.sd import miniature
from pseudoword.families.sdxl import miniature as xl_miniature
from pseudoword.generate import Sampling, generate, load
from pseudoword.recipe import BaseModel
from pseudoword.toybox import BASES
from pseudoword.vocabulary import encode_all
from tests.flax_models.test_gradients import PLACEMENT

KINDS = ("sd", "v", "skips", "sdxl", "toybox")
EXACT = 1e-4
PROMPTS = ["a photo of a red cat", "a toy"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    """A base of each kind."""
    folder = tmp_path_factory.mktemp("bases")
    plain = BaseModel(str(miniature.write(folder / "sd")), family="sd")
    return {
        "sd": plain,
        "v": BaseModel(str(miniature.write(folder / "v", prediction_type="v_prediction")), family="sd"),
        "skips": dataclasses.replace(plain, clip_skip=1),
        "sdxl": BaseModel(str(xl_miniature.write(folder / "xl")), family="sdxl"),
        "toybox": BaseModel(str(BASES["toybox"]), family="sd"),
    }


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, bases: dict[str, BaseModel]) -> tuple[Any, Any]:
    """A base on JAX and on PyTorch."""
    base = bases[request.param]
    return tuple(families.part(base.family, engine).FAMILY.load(base) for engine in ("jax", "torch"))  # pyright: ignore


def near(made: Any, expected: Any) -> bool:
    values, reference = np.asarray(made, np.float64), np.asarray(expected, np.float64)
    return values.shape == reference.shape and np.abs(values - reference).max() < EXACT * np.abs(reference).max()


def arrays(values: Any) -> Any:
    return jax.tree.map(jnp.asarray, values)


def asked(family: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return ids of prompts with two learned rows in them, and those rows."""
    ids, rows = encode_all(family.vocabularies, PROMPTS), {}
    for seed, (encoder, vocabulary) in enumerate(family.vocabularies.items()):
        size, width = vocabulary.table.shape
        ids[encoder][:, 2] = size
        ids[encoder][1, 1] = size + 1
        rows[encoder] = 0.3 * np.random.default_rng(seed).standard_normal((2, width)).astype(np.float32)
    return ids, rows


def test_the_parts_of_the_loss_are_those_of_torch(both: tuple[Any, Any]):
    ours, theirs = both
    for name in ("num_timesteps", "resolution", "latent_factor", "bucket_multiple", "prediction_type"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert list(ours.vocabularies) == list(theirs.vocabularies)
    ids, rows = asked(ours)
    shape = (2, ours.latent_channels, 8, 8)
    latents, noise = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    place, prompt = PLACEMENT, np.array([1, 0])
    timestep = np.array([40, 810])
    condition = ours.condition(*arrays((ids, rows, place, prompt)))
    told = {encoder: torch.tensor(block) for encoder, block in rows.items()}
    with torch.no_grad():
        expected = theirs.condition(
            {e: torch.tensor(i) for e, i in ids.items()}, told, torch.tensor(place), torch.tensor(prompt)
        )
        assert near(
            ours.denoise(jnp.asarray(latents), jnp.asarray(timestep), condition),
            theirs.denoise(torch.tensor(latents), torch.tensor(timestep), expected),
        )
    levels, their_levels = ours.noise_levels(jnp.asarray(timestep)), theirs.noise_levels(torch.tensor(timestep))
    assert all(near(a, b) for a, b in zip(levels, their_levels, strict=True))
    own, other = arrays((latents, noise)), (torch.tensor(latents), torch.tensor(noise))
    assert near(ours.target(*own, *levels), theirs.target(*other, *their_levels))
    assert near(ours.latents(*own, own[1]), theirs.latents(*other, other[1]))


def test_pictures_and_latents_are_those_of_torch(both: tuple[Any, Any]):
    ours, theirs = both
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 16)).astype(np.float32)
    for own, other in zip(ours.encode_images(pixels), theirs.encode_images(pixels), strict=True):
        assert own.dtype == np.float32
        assert near(own, other)
    latents = np.random.default_rng(1).standard_normal((2, ours.latent_channels, 4, 6)).astype(np.float32)
    for own, other in zip(ours.decode(jnp.asarray(latents)), theirs.decode(torch.tensor(latents)), strict=True):
        assert np.abs(np.asarray(own, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize(("sampler", "guidance_scale"), [("ddim", 1.0), ("dpm++", 5.0)])
def test_sampled_latents_are_those_of_torch(
    both: tuple[Any, Any], sampler: Any, guidance_scale: float, monkeypatch: pytest.MonkeyPatch
):
    ours, theirs = both
    ids, rows = asked(ours)
    how: dict[str, Any] = {"seeds": [3, 4], "sampler": sampler, "steps": 8, "guidance_scale": guidance_scale}
    how["side"] = ours.latent_factor * 8
    nothing = encode_all(ours.vocabularies, ["", "a dog"])
    made = ours.sample(ids, nothing, rows, **how)
    streams = [np.random.Generator(np.random.Philox(seed)) for seed in how["seeds"]]
    noise = np.stack([own.standard_normal(made.shape[1:], np.float32) for own in streams])
    kind = theirs.pipeline_class
    prepare = kind.prepare_latents
    monkeypatch.setattr(kind, "prepare_latents", lambda self, *a, **k: prepare(self, *a, **k) * 0 + torch.tensor(noise))
    expected = theirs.sample(ids, nothing, rows, **how)
    assert np.abs(np.asarray(made) - expected.numpy()).max() < 1e-3 * np.abs(expected.numpy()).max()


def test_weights_are_arguments(both: tuple[Any, Any]):
    ours, _ = both
    ids, rows, place = arrays((*asked(ours), PLACEMENT))
    noised = jnp.ones((2, ours.latent_channels, 8, 8))

    def predicted(weights: Any) -> Any:
        own = ours.bound(weights)
        return own.denoise(noised, jnp.array([1, 2]), own.condition(ids, rows, place))

    weights = ours.weights()
    zeros = jax.tree.map(jnp.zeros_like, weights)
    assert near(jax.jit(predicted)(weights), predicted(weights))
    assert not np.asarray(jax.jit(predicted)(zeros)).any()
    assert np.asarray(predicted(weights)).any(), "the family is as it was"


@pytest.mark.slow
def test_in_bf16_the_prediction_is_nearly_the_same(bases: dict[str, BaseModel]):
    ours = families.part("sdxl", "jax").FAMILY.load(bases["sdxl"])
    ids, rows, place = arrays((*asked(ours), PLACEMENT))
    given = (jnp.ones((2, ours.latent_channels, 8, 8)), jnp.array([1, 500]))
    exact = ours.denoise(*given, ours.condition(ids, rows, place))
    ours.bring(SingleDeviceSharding(jax.devices()[0]), jnp.bfloat16, recomputes=True)
    half = ours.denoise(*given, ours.condition(ids, rows, place))
    assert half.dtype == jnp.float32
    assert jnp.abs(half - exact).max() < 0.1 * jnp.abs(exact).max()
    held = {name: {str(array.dtype) for array in own} for name, own in ours.weights().items()}
    assert held == {"text_encoder": {"float32"}, "text_encoder_2": {"float32"}, "unet": {"bfloat16"}}


def test_a_word_changes_the_picture_whatever_the_batch(bases: dict[str, BaseModel]):
    from pseudoword import Concept

    family = load(bases["sd"], "jax")
    word = Concept("<w>", {"clip_l": np.random.default_rng(0).standard_normal((2, 32)) * 3})
    how = Sampling(steps=2)
    one, two = generate(family, [word], ["a <w>", "a toy"], sampling=how, batch_size=2)
    [alone] = generate(family, [word], ["a <w>"], sampling=how)
    assert np.abs(np.asarray(one, int) - np.asarray(alone, int)).max() <= 1
    [without] = generate(family, [], ["a cat"], sampling=how)
    assert len({one.tobytes(), two.tobytes(), without.tobytes()}) == 3
    with pytest.raises(RecipeError, match=r"^The sampler 'ddim' cannot take 1000 steps on this base; try another"):
        generate(family, [], ["a"], sampling=Sampling(steps=1000, sampler="ddim"))


# What is refused


def test_a_base_in_one_file_is_refused(tmp_path: Path):
    for name in ("model", "vae"):
        base = dataclasses.replace(BaseModel(str(tmp_path), family="sd"), **{name: "some.safetensors"})
        with pytest.raises(
            RecipeError, match=r"^'some\.safetensors' is one file, which the JAX engine does not read; "
        ):
            families.part("sd", "jax").FAMILY.load(base)


def test_another_vae_may_be_given(bases: dict[str, BaseModel], tmp_path: Path):
    family = families.part("sd", "jax").FAMILY
    plain = bases["sd"]
    other = miniature.write(tmp_path / "other", seed=5)
    pixels = np.zeros((1, 3, 16, 16), np.float32)
    expected, _ = family.load(BaseModel(str(other))).encode_images(pixels)
    for vae in (other, other / "vae"):
        found, _ = family.load(dataclasses.replace(plain, vae=str(vae))).encode_images(pixels)
        assert np.array_equal(found, expected)


def test_latents_are_as_the_other_vae_says(bases: dict[str, BaseModel], tmp_path: Path):
    base, variants = bases["sd"], list[BaseModel]()
    for name, changes in (("scaled", {"scaling_factor": 0.5}), ("normalised", {"latents_mean": [0.0] * 4})):
        folder = miniature.write(tmp_path / name) / "vae"
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        variants.append(dataclasses.replace(base, vae=str(folder)))
    for engine, array in (("jax", jnp.asarray), ("torch", torch.tensor)):
        family = families.part("sd", engine).FAMILY
        given = [array(np.full((1, 4, 8, 8), value, np.float32)) for value in (2, 0, 1)]
        assert np.asarray(family.load(variants[0]).latents(*given)) == pytest.approx(1.0)
        with pytest.raises(RecipeError, match=r"^The VAE's configuration normalises each channel of its latents"):
            family.load(variants[1])


def test_a_base_without_a_scheduler_is_refused(bases: dict[str, BaseModel], tmp_path: Path):
    folder = shutil.copytree(bases["sd"].model, tmp_path / "base")
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(RecipeError, match=r"^The base '.*' has no scheduler/scheduler_config\.json that can be read"):
        families.part("sd", "jax").FAMILY.load(BaseModel(str(folder)))


def test_two_tokenizers_are_not_replaced(bases: dict[str, BaseModel]):
    with pytest.raises(RecipeError, match=r"has two of its own, which differ; leave it out\.$"):
        families.part("sdxl", "jax").FAMILY.load(dataclasses.replace(bases["sdxl"], tokenizer="x"))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (None, {"unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"}),
        ("fp16", {"unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors"}),
    ],
)
def test_no_weights_are_downloaded_that_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str | None, expected: set[str]
):
    """The repository has a variant of its UNet alone, and files that only other programs read."""
    stem = "unet/diffusion_pytorch_model"
    held = ["model_index.json", f"{stem}.safetensors", f"{stem}.fp16.safetensors", f"{stem}.bin", "whole.safetensors"]
    held += ["text_encoder/model.safetensors", "text_encoder/pytorch_model.bin", "tokenizer/merges.txt"]

    def snapshot(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert (model, revision) == ("someone/base", "main")
        for name in held:
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    base = BaseModel("someone/base", revision="main", variant=variant)
    assert local(base, ("text_encoder", "unet")).model == str(tmp_path)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"model_index.json", "tokenizer/merges.txt", *expected}


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("unet", {"norm_num_groups": 5}, r"^The config\.json in '.*' describes no model that can be made \(.*5"),
        ("unet", {"attention_head_dim": 5}, r"^The UNet's configuration has 5 heads of attention for \d+ channels\.$"),
        ("unet", {"reverse_transformer_layers_per_block": [1]}, r" describes no model that can be made \("),
        ("vae", {"block_out_channels": []}, r" describes no model that can be made \(.*index out of range\)\.$"),
        ("text_encoder", {"num_attention_heads": 5}, r"has 5 heads of attention for a width of 32\.$"),
        ("text_encoder", None, r"^The folder '.*' has no config\.json that can be read \("),
        ("scheduler", {"beta_start": None}, r"^The scheduler's configuration describes no noise schedule \("),
        ("scheduler", {"num_train_timesteps": 0}, r"^The scheduler's configuration describes no noise schedule \("),
        ("scheduler", {"trained_betas": "x"}, r"^The scheduler's configuration describes no noise schedule \("),
        ("vae", {"scaling_factor": 0}, r"^The VAE's configuration has the scaling_factor 0; expected a number above 0"),
        ("scheduler", None, r"^The base '.*' has no scheduler/scheduler_config\.json that can be read \("),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(
    bases: dict[str, BaseModel], tmp_path: Path, part: str, changes: dict[str, Any] | None, sentence: str
):
    folder = shutil.copytree(bases["sd"].model, tmp_path / "base")
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps([1] if changes is None else json.loads(path.read_text()) | changes))
    with pytest.raises(RecipeError, match=sentence):
        families.part("sd", "jax").FAMILY.load(BaseModel(str(folder)))


def test_a_way_of_spacing_timesteps_that_is_not_known_is_refused(bases: dict[str, BaseModel], tmp_path: Path):
    folder = shutil.copytree(bases["sd"].model, tmp_path / "base")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"timestep_spacing": "random"}))
    family = families.part("sd", "jax").FAMILY.load(BaseModel(str(folder)))
    with pytest.raises(RecipeError, match=r"scheduler configuration sets timestep_spacing, which the JAX engine"):
        generate(family, [], ["a toy"], sampling=Sampling(steps=2))
