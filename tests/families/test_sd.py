"""Stable Diffusion's parts of the loss against diffusers' own, and what its loading refuses."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub.errors import LocalEntryNotFoundError

from pseudoword.concept import Concept
from pseudoword.errors import RecipeError
from pseudoword.families.sd import miniature, words
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.recipe import BaseModel
from tests.miniatures import TOKEN, hashes

PROMPTS = [f"a photo of {TOKEN}", f"{TOKEN} in the style of a red cat, {TOKEN}", "a dog"]


@pytest.fixture(scope="module")
def family(base: Path) -> StableDiffusion:
    return StableDiffusion.load(BaseModel(str(base)))


@pytest.fixture(scope="module")
def concept() -> Concept:
    return Concept(TOKEN, {"clip_l": np.random.default_rng(0).standard_normal((3, 32))})


@pytest.fixture
def changed(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy the base with values of one JSON file changed."""

    def change(file: str, **values: Any) -> Path:
        folder = shutil.copytree(base, tmp_path / "changed")
        told = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**told, **values}))
        return folder

    return change


def numbers(family: StableDiffusion) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return latents, noise and timesteps from the first to the last."""
    latents, noise = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return latents, noise, torch.tensor([0, 1, 500, family.num_timesteps - 1])


# The condition


@pytest.mark.parametrize("clip_skip", [None, 0, 1, 2])
def test_the_condition_is_that_of_diffusers_with_the_word_loaded(
    base: Path, tmp_path: Path, concept: Concept, clip_skip: int | None
):
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.load_textual_inversion(str(concept.save(tmp_path / "word")))
    if not hasattr(pipeline.text_encoder, "text_model"):  # diffusers 0.42 asks for what transformers 5 took away
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    expected, _ = pipeline.encode_prompt(PROMPTS, torch.device("cpu"), 1, False, clip_skip=clip_skip)
    family = StableDiffusion.load(BaseModel(str(base), clip_skip=clip_skip))
    vocabulary = family.vocabularies["clip_l"]
    vocabulary.lend(TOKEN, concept.num_vectors)
    ids = {"clip_l": np.stack([vocabulary.encode(prompt).ids for prompt in PROMPTS])}
    rows = {"clip_l": torch.tensor(concept.rows["clip_l"])}
    with torch.no_grad():
        found = family.condition({"clip_l": torch.from_numpy(ids["clip_l"])}, rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    sampled = family.prompt_inputs(ids, {"clip_l": ids["clip_l"][::-1].copy()}, concept.rows)
    torch.testing.assert_close(sampled["prompt_embeds"], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(sampled["negative_prompt_embeds"], expected.flip(0), rtol=0, atol=1e-6)


def test_leaving_out_layers_changes_the_condition(base: Path):
    ids = {"clip_l": torch.tensor([[542, 5, 6, 543]])}
    with torch.no_grad():
        plain, one, two = (
            StableDiffusion.load(BaseModel(str(base), clip_skip=skip)).condition(ids, None) for skip in (None, 1, 2)
        )
    assert (plain - one).abs().max() > 1e-3
    assert (one - two).abs().max() > 1e-3


def test_a_gradient_through_the_whole_loss_reaches_rows_only_and_leaves_every_module_as_it_was(family: StableDiffusion):
    before = hashes(family)
    rows = torch.randn(2, 32, requires_grad=True)
    ids = torch.tensor([[542, 5, 544, 545, 543]] * 4)
    latents, noise, timestep = numbers(family)
    alpha, sigma = family.noise_levels(timestep)
    found = family.denoise(
        alpha * latents + sigma * noise, timestep, family.condition({"clip_l": ids}, {"clip_l": rows})
    )
    (found - family.target(latents, noise, alpha, sigma)).square().mean().backward()
    assert rows.grad is not None
    assert (rows.grad.norm(dim=1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for m in family.modules.values() for p in m.parameters())
    assert not any(m.training for m in family.modules.values())
    assert hashes(family) == before


# Noising and target


def test_noise_levels_are_the_schedulers(family: StableDiffusion):
    latents, noise, timestep = numbers(family)
    alpha, sigma = family.noise_levels(timestep)
    assert alpha.shape == sigma.shape == (4, 1, 1, 1)
    expected = family.scheduler.add_noise(latents, noise, timestep)
    torch.testing.assert_close(alpha * latents + sigma * noise, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert family.num_timesteps == 1000


def test_the_denoiser_finds_noise_or_velocity_as_the_base_says(family: StableDiffusion, tmp_path: Path):
    latents, noise, timestep = numbers(family)
    levels = family.noise_levels(timestep)
    assert torch.equal(family.target(latents, noise, *levels), noise)
    other = StableDiffusion.load(BaseModel(str(miniature.write(tmp_path, prediction_type="v_prediction"))))
    assert other.prediction_type == "v_prediction"
    velocity = other.scheduler.get_velocity(latents, noise, timestep)
    torch.testing.assert_close(other.target(latents, noise, *levels), velocity, rtol=1e-6, atol=1e-6)


def test_the_recipe_may_know_better_what_the_denoiser_finds(base: Path):
    family = StableDiffusion.load(BaseModel(str(base), prediction_type="v_prediction"))
    latents, noise, timestep = numbers(family)
    assert not torch.equal(family.target(latents, noise, *family.noise_levels(timestep)), noise)
    assert family.pipeline().scheduler.config["prediction_type"] == "v_prediction"


def test_latents_sampled_from_their_moments_are_those_of_the_vae(family: StableDiffusion):
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
    mean, std = family.encode_images(pixels)
    assert mean.shape == std.shape == (2, 4, 8, 8)
    assert mean.dtype == std.dtype == np.float32
    with torch.no_grad():
        theirs = family.vae.encode(torch.from_numpy(pixels)).latent_dist
    expected = theirs.sample(torch.Generator().manual_seed(3)) * family.vae.config.scaling_factor
    posterior = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    found = family.latents(torch.from_numpy(mean), torch.from_numpy(std), posterior)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_denoiser_answers_in_fp32_in_whatever_it_computes(base: Path):
    family = StableDiffusion.load(BaseModel(str(base)))
    latents, _, timestep = numbers(family)
    condition = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = family.denoise(latents, timestep, condition)
        torch.testing.assert_close(exact, family.unet(latents, timestep, condition).sample)
        family.to("cpu", torch.bfloat16)
        half = family.denoise(latents, timestep, condition)
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() < 0.1 * exact.abs().max()
    assert (family.unet.dtype, family.vae.dtype, family.text_encoder.dtype) == (torch.bfloat16, *[torch.float32] * 2)


# Loading


def test_sizes_are_the_models_own(family: StableDiffusion):
    assert (family.resolution, family.latent_factor) == (16, 2)
    vocabulary = family.vocabularies["clip_l"]
    assert vocabulary.table.shape == (544, 32)
    assert vocabulary.size == len(vocabulary.tokenizer)


def test_a_base_in_half_precision_is_loaded_in_fp32(base: Path, tmp_path: Path):
    half = StableDiffusion.load(BaseModel(str(miniature.write(tmp_path, dtype=torch.float16))))
    full = StableDiffusion.load(BaseModel(str(base)))
    for name, module in half.modules.items():
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        values, expected = module.state_dict(), full.modules[name].state_dict()
        assert all(torch.equal(v, expected[k].half().float()) for k, v in values.items() if v.is_floating_point())
    latents, _, timestep = numbers(half)
    condition = half.condition({"clip_l": torch.tensor([[542, 5, 543]] * 4)}, {"clip_l": torch.ones(1, 32)})
    assert half.denoise(latents, timestep, condition).isfinite().all()


def test_a_variant_is_loaded_and_may_lack_its_own_text_encoder(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "pseudoword")
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.to(torch.float16)
    pipeline.save_pretrained(tmp_path, variant="fp16")
    own = StableDiffusion.load(BaseModel(str(tmp_path), variant="fp16"))
    assert {p.dtype for m in own.modules.values() for p in m.parameters()} == {torch.float32}
    assert "No text encoder of variant" not in caplog.text
    folder = tmp_path / "text_encoder"
    shutil.copy(base / "text_encoder" / "model.safetensors", folder)
    (folder / "model.fp16.safetensors").unlink()
    mixed = StableDiffusion.load(BaseModel(str(tmp_path), variant="fp16"))
    assert "No text encoder of variant 'fp16'; loading the plain one." in caplog.text
    plain = StableDiffusion.load(BaseModel(str(base)))
    assert torch.equal(
        mixed.text_encoder.get_input_embeddings().weight, plain.text_encoder.get_input_embeddings().weight
    )


@pytest.mark.parametrize("missing", ["tokenizer", "text_encoder", "vae", "unet", "scheduler"])
def test_a_base_that_lacks_a_part_is_refused_saying_what_it_needs(base: Path, tmp_path: Path, missing: str):
    folder = shutil.copytree(base, tmp_path / "base")
    shutil.rmtree(folder / missing)
    with pytest.raises(
        RecipeError,
        match=r"^Cannot load '.*' as Stable Diffusion 1\.x or 2\.x in diffusers layout: .* "
        r"Give a folder or Hub id that has tokenizer, text_encoder, vae, unet and scheduler\.$",
    ) as refused:
        StableDiffusion.load(BaseModel(str(folder)))
    assert "\n" not in str(refused.value)


def test_a_base_that_predicts_something_else_is_refused(changed: Callable[..., Path]):
    folder = changed("scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(
        RecipeError,
        match=r"^The base predicts 'sample'; this family trains epsilon and v_prediction\. "
        r"Set prediction_type if the model's scheduler configuration is wrong\.$",
    ):
        StableDiffusion.load(BaseModel(str(folder)))
    assert StableDiffusion.load(BaseModel(str(folder), prediction_type="epsilon")).prediction_type == "epsilon"


def test_more_layers_than_there_are_cannot_be_left_out(base: Path):
    with pytest.raises(RecipeError, match=r"^clip_skip is 3, but the text encoder has only 3 layers\.$"):
        StableDiffusion.load(BaseModel(str(base), clip_skip=3))


def test_another_tokenizer_may_be_given(base: Path, tmp_path: Path):
    other = miniature.clip_tokenizer(20)
    other.save_pretrained(tmp_path)
    wanted = BaseModel(str(base), tokenizer=str(tmp_path))
    assert StableDiffusion.load(BaseModel(str(base))).vocabularies["clip_l"].model_max_length == 77
    assert StableDiffusion.load(wanted).vocabularies["clip_l"].model_max_length == 20
    assert words.vocabularies(wanted)["clip_l"].model_max_length == 20


# Beyond training


def test_a_pipeline_with_words_has_them_in_copies(family: StableDiffusion, concept: Concept, tmp_path: Path):
    before, size = hashes(family), family.vocabularies["clip_l"].size
    pipeline = family.with_words([concept, Concept("<dog>", {"clip_l": np.ones((1, 32))})])
    ids = pipeline.tokenizer.convert_tokens_to_ids([*concept.tokens, "<dog>"])
    assert ids == list(range(size, size + 4))
    table = pipeline.text_encoder.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(table[ids[:3]], concept.rows["clip_l"])
    assert np.array_equal(table[ids[3:]], np.ones((1, 32)))
    assert np.array_equal(table[:size], family.vocabularies["clip_l"].table)
    assert pipeline.unet is family.unet
    pipeline.save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert np.array_equal(loaded.text_encoder.get_input_embeddings().weight.detach().numpy(), table)
    assert hashes(family) == before
    assert len(family.vocabularies["clip_l"].tokenizer) == size


# Words without torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_vocabulary_alone_is_that_of_the_loaded_base(tmp_path: Path, dtype: torch.dtype):
    folder = BaseModel(str(miniature.write(tmp_path, dtype=dtype)))
    [(encoder, vocabulary)] = words.vocabularies(folder).items()
    whole = StableDiffusion.load(folder).vocabularies[encoder]
    assert np.array_equal(vocabulary.table, whole.table)
    assert vocabulary.table.dtype == np.float32
    assert vocabulary.encode("a red cat").ids.tolist() == whole.encode("a red cat").ids.tolist()


def test_the_vocabulary_of_a_variant_is_read_from_its_own_file(base: Path, tmp_path: Path):
    folder = shutil.copytree(base, tmp_path / "base")
    file = folder / "text_encoder" / "model.safetensors"
    doubled = {name: value * 2 for name, value in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(doubled, file.with_name("model.fp16.safetensors"))
    plain, half, none = (words.vocabularies(BaseModel(str(folder), variant=v))["clip_l"] for v in (None, "fp16", "x"))
    assert np.array_equal(half.table, plain.table * 2)
    assert np.array_equal(none.table, plain.table)


def test_the_vocabulary_of_a_text_encoder_in_several_files_is_found(base: Path, tmp_path: Path):
    folder = shutil.copytree(base, tmp_path / "base")
    file = folder / "text_encoder" / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    files = {name: f"model-0000{1 + ('token_embedding' in name)}-of-00002.safetensors" for name in tensors}
    for part in set(files.values()):
        safetensors.torch.save_file({n: t for n, t in tensors.items() if files[n] == part}, file.with_name(part))
    file.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    expected = words.vocabularies(BaseModel(str(folder)))["clip_l"].table
    file.unlink()
    assert np.array_equal(words.vocabularies(BaseModel(str(folder)))["clip_l"].table, expected)


def test_a_base_without_words_is_refused(base: Path, tmp_path: Path):
    folder = shutil.copytree(base, tmp_path / "base")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(
        RecipeError, match=r"^The CLIP tokenizer of '.*' is not complete: vocabulary or model_max_length"
    ):
        words.vocabularies(BaseModel(str(folder)))
    with pytest.raises(
        RecipeError, match=r"^Cannot load a CLIP tokenizer from '.*nowhere'; give a folder or Hub id that has one"
    ):
        words.vocabularies(BaseModel(str(base), tokenizer=str(tmp_path / "nowhere")))
    (folder / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(
        RecipeError, match=r"^The base '.*' has no text_encoder/model\.safetensors to read words from\.$"
    ):
        words.vocabularies(BaseModel(str(folder)))


def test_words_that_the_hub_cannot_be_asked_for_are_refused(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("no network, and not in the cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(
        RecipeError, match=r"^Cannot get text_encoder/model\.safetensors of 'a/b' .* or give a local folder\.$"
    ):
        words.vocabularies(BaseModel("a/b"))
