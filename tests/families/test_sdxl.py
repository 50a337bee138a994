"""Stable Diffusion XL's parts of the loss against diffusers' own, and what is particular to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from pseudoword.concept import Concept
from pseudoword.errors import RecipeError
from pseudoword.families.sdxl import miniature, words
from pseudoword.families.sdxl.torch import StableDiffusionXL
from pseudoword.generate import Sampling, generate
from pseudoword.recipe import BaseModel, Sampler
from pseudoword.vocabulary import encode_all, lent_words
from tests.miniatures import TOKEN, hashes

PROMPTS = [f"a photo of {TOKEN}", f"{TOKEN} in the style of a red cat, {TOKEN}", "a dog"]
ORDINARY = (7, 8, 9)
"""Ids of rows in the table that no prompt here uses."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def family(base: Path) -> StableDiffusionXL:
    return StableDiffusionXL.load(BaseModel(str(base)))


@pytest.fixture(scope="module")
def concept() -> Concept:
    numbers = np.random.default_rng(0)
    widths = dict(zip(("clip_l", "clip_g"), miniature.WIDTHS, strict=True))
    return Concept(TOKEN, {encoder: numbers.standard_normal((3, width)) for encoder, width in widths.items()})


def condition_of(family: StableDiffusionXL, ids: dict[str, np.ndarray], rows: dict[str, np.ndarray] | None):
    with torch.no_grad():
        return family.condition(*family.ids_and_rows(ids, rows))


def ids_of(family: StableDiffusionXL, concept: Concept) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    with lent_words(family.vocabularies, [concept]) as rows:
        assert rows is not None
        return encode_all(family.vocabularies, PROMPTS), dict(rows)


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_a_learned_word_gives_what_its_rows_give_at_an_ordinary_place_of_the_table(
    base: Path, concept: Concept, clip_skip: int | None
):
    """Published text encoders say `eos_token_id` 2, and transformers then pools at the largest id."""
    family = StableDiffusionXL.load(BaseModel(str(base), clip_skip=clip_skip))
    ids, rows = ids_of(family, concept)
    found = condition_of(family, ids, rows)
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    hidden, pooled = [], None
    for (name, block), encoder in zip(ids.items(), encoders, strict=True):
        first = family.vocabularies[name].size
        encoder.get_input_embeddings().weight.data[list(ORDINARY)] = torch.tensor(rows[name])
        ordinary = torch.tensor(np.where(block >= first, np.asarray(ORDINARY)[(block - first).clip(0)], block))
        with torch.no_grad():
            output = encoder(ordinary, output_hidden_states=True)
        hidden.append(output.hidden_states[-2 - (clip_skip or 0)])
        pooled = output[0]
    torch.testing.assert_close(found.hidden, torch.cat(hidden, dim=-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=1e-6)
    theirs = encoders[1](torch.tensor(ids["clip_g"]).clamp(max=family.vocabularies["clip_g"].size - 1)).text_embeds
    assert not torch.allclose(found.pooled[:2], theirs[:2], atol=1e-3), "the prompts hold the word"


def test_prompts_without_words_are_read_as_diffusers_reads_them(base: Path, family: StableDiffusionXL):
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    prompts = ["a red cat, in the photo", "the dog!"]
    expected = pipeline.encode_prompt(prompts, device=torch.device("cpu"), do_classifier_free_guidance=True)
    ids, nothing = (encode_all(family.vocabularies, texts) for texts in (prompts, ["", ""]))
    found = family.prompt_inputs(ids, nothing, None)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    for name, values in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-6, msg=name)
    assert (found["negative_prompt_embeds"] == 0).all()
    told = pipeline.encode_prompt(prompts, negative_prompt="a fish", do_classifier_free_guidance=True)
    own = family.prompt_inputs(ids, encode_all(family.vocabularies, ["a fish", ""]), None)
    torch.testing.assert_close(own["negative_prompt_embeds"][0], told[1][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(own["negative_pooled_prompt_embeds"][0], told[3][0], rtol=0, atol=1e-6)
    assert (own["negative_prompt_embeds"][1] == 0).all()


def test_pictures_are_those_of_diffusers_own_pipeline(base: Path, family: StableDiffusionXL):
    sampling = Sampling(seed=3, steps=3, guidance_scale=4.0, sampler="euler")
    [ours] = generate(family, [], ["a red cat"], negative_prompt="a dog", sampling=sampling)
    pipeline = StableDiffusionXLPipeline.from_pretrained(base, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": 16, "width": 16}
    [theirs] = pipeline(
        "a red cat", negative_prompt="a dog", generator=torch.Generator().manual_seed(3), **asked
    ).images
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


def test_the_unet_is_told_where_a_picture_was_cut(family: StableDiffusionXL, concept: Concept):
    ids, rows = ids_of(family, concept)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep, placement = torch.tensor([5, 500, 999]), torch.tensor([[640, 480, 3, 7, 16, 16]] * 3)
    with torch.no_grad():
        condition = family.condition(*family.ids_and_rows(ids, rows), placement)
        found = family.denoise(latents, timestep, condition)
        told = {"text_embeds": condition.pooled, "time_ids": placement.float()}
        expected = family.unet(latents, timestep, condition.hidden, added_cond_kwargs=told).sample
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        elsewhere = family.condition(*family.ids_and_rows(ids, rows), placement + 100)
        assert (family.denoise(latents, timestep, elsewhere) - found).abs().max() > 1e-4
        with pytest.raises(AssertionError, match="told where each picture was cut"):
            family.denoise(latents, timestep, condition_of(family, ids, rows))


def test_a_gradient_reaches_the_rows_of_both_encoders_only(family: StableDiffusionXL, concept: Concept):
    before = hashes(family)
    ids, blocks = ids_of(family, concept)
    own, _ = family.ids_and_rows(ids, None)
    rows = {encoder: torch.tensor(block, requires_grad=True) for encoder, block in blocks.items()}
    placement = torch.tensor([[16, 16, 0, 0, 16, 16]] * 3)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    family.denoise(latents, torch.tensor([1, 2, 3]), family.condition(own, rows, placement)).square().mean().backward()
    for block in rows.values():
        assert block.grad is not None
        assert (block.grad.norm(dim=1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for m in family.modules.values() for p in m.parameters())
    assert hashes(family) == before


def test_a_vae_that_overflows_in_half_precision_stays_whole(base: Path):
    family = StableDiffusionXL.load(BaseModel(str(base)))
    family.to("cpu", torch.float16, vae_dtype=torch.float16)
    assert (family.unet.dtype, family.vae.dtype) == (torch.float16, torch.float32)
    assert {text.dtype for text in family.text_encoders.values()} == {torch.float32}
    family.to("cpu", torch.bfloat16, vae_dtype=torch.bfloat16)
    assert family.vae.dtype == torch.bfloat16, "bfloat16 has the range"


def test_another_vae_takes_the_place_of_the_bases_own(base: Path, tmp_path: Path):
    other = miniature.write(tmp_path / "other", seed=1)
    own = StableDiffusionXL.load(BaseModel(str(base))).vae.state_dict()
    expected = StableDiffusionXL.load(BaseModel(str(other))).vae.state_dict()
    for vae in (other, other / "vae", other / "vae" / "diffusion_pytorch_model.safetensors"):
        found = StableDiffusionXL.load(BaseModel(str(base), vae=str(vae))).vae.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items()), vae
        assert any(not torch.equal(found[name], value) for name, value in own.items())
    with pytest.raises(RecipeError, match=r"^Cannot load the VAE '.*unet' \(.*\); give a folder, file or Hub"):
        StableDiffusionXL.load(BaseModel(str(base), vae=str(other / "unet")))


# Velocity, and a last timestep of noise alone


@pytest.fixture(scope="module")
def velocity(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXL:
    folder = miniature.write(tmp_path_factory.mktemp("velocity"), prediction_type="v_prediction", zero_snr=True)
    return StableDiffusionXL.load(BaseModel(str(folder)))


def test_a_base_of_zero_terminal_snr_learns_velocity_down_to_noise_alone(velocity: StableDiffusionXL):
    assert velocity.prediction_type == "v_prediction"
    alpha, sigma = velocity.noise_levels(torch.tensor([0, 999]))
    assert (alpha[1].item(), sigma[1].item()) == (0.0, 1.0)
    assert alpha[0].item() == pytest.approx(0.99957, abs=1e-4)  # sqrt(1 - beta_start), untouched by rescaling
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    target = velocity.target(latents, noise, alpha, sigma)
    assert torch.equal(target[1], -latents[1]), "nothing of the picture is left in what the UNet sees"
    assert target.isfinite().all()


@pytest.mark.parametrize("sampler", ["dpm++", "dpm++-karras", "unipc", "euler", "euler-a", "ddim", "ddpm"])
def test_it_is_sampled_from_noise_alone(velocity: StableDiffusionXL, sampler: Sampler):
    scheduler = velocity.pipeline(sampler).scheduler
    scheduler.set_timesteps(4)
    assert int(scheduler.timesteps[0]) == 999
    [picture] = generate(velocity, [], ["a cat"], sampling=Sampling(steps=4, sampler=sampler))
    assert np.asarray(picture).std() > 0


@pytest.mark.parametrize("sampler", ["heun", "pndm"])
def test_a_sampler_that_cannot_is_refused_naming_those_that_can(velocity: StableDiffusionXL, sampler: Sampler):
    with pytest.raises(RecipeError, match=rf"^The sampler '{sampler}' cannot start from noise alone, .*dpm\+\+, "):
        velocity.pipeline(sampler)


# Loading, and words alone


def test_the_vocabularies_alone_are_those_of_the_loaded_base(base: Path, family: StableDiffusionXL):
    alone = words.vocabularies(BaseModel(str(base)))
    assert list(alone) == list(family.vocabularies) == ["clip_l", "clip_g"]
    for encoder, vocabulary in alone.items():
        assert np.array_equal(vocabulary.table, family.vocabularies[encoder].table)
        assert vocabulary.encode("a cat").ids.tolist() == family.vocabularies[encoder].encode("a cat").ids.tolist()
    ends = [vocabulary.encode("a cat").ids[-1] for vocabulary in alone.values()]
    assert ends[0] == alone["clip_l"].tokenizer.eos_token_id
    assert ends[1] == alone["clip_g"].tokenizer.convert_tokens_to_ids("!")


def test_one_tokenizer_cannot_stand_for_two(base: Path):
    with pytest.raises(RecipeError, match=r"has two of its own, which differ; leave it out\.$"):
        StableDiffusionXL.load(BaseModel(str(base), tokenizer=str(base / "tokenizer")))


@pytest.mark.parametrize("missing", ["tokenizer_2", "text_encoder_2"])
def test_a_base_that_lacks_a_part_is_refused_saying_what_it_needs(tmp_path: Path, missing: str):
    folder = miniature.write(tmp_path / "base")
    (folder / missing).rename(tmp_path / "away")
    with pytest.raises(RecipeError, match=r"^Cannot load '.*' as Stable Diffusion XL in diffusers.*tokenizer_2"):
        StableDiffusionXL.load(BaseModel(str(folder)))


def test_a_whole_pipeline_with_the_word_pools_at_the_end_of_a_prompt(
    family: StableDiffusionXL, concept: Concept, tmp_path: Path
):
    before = hashes(family)
    family.with_words([concept]).save_pretrained(tmp_path)
    assert hashes(family) == before
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    hidden, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    found = condition_of(family, *ids_of(family, concept))
    torch.testing.assert_close(hidden, found.hidden, rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled, found.pooled, rtol=0, atol=1e-6)


def test_a_whole_pipeline_from_noise_alone_is_sampled_so_by_others(velocity: StableDiffusionXL, tmp_path: Path):
    velocity.with_words([]).save_pretrained(tmp_path)
    scheduler = StableDiffusionXLPipeline.from_pretrained(tmp_path).scheduler
    told = {name: scheduler.config[name] for name in ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")}
    assert list(told.values()) == ["v_prediction", True, "trailing"]


def test_sizes_are_told_exactly_in_half_precision(base: Path, concept: Concept, monkeypatch: pytest.MonkeyPatch):
    family = StableDiffusionXL.load(BaseModel(str(base)))
    family.to("cpu", torch.bfloat16)
    ids, rows = ids_of(family, concept)
    told: list[torch.Tensor] = []
    call = family.unet.forward

    def forward(*args: object, added_cond_kwargs: dict[str, torch.Tensor], **options: object) -> object:
        told.append(added_cond_kwargs["time_ids"])
        return call(*args, added_cond_kwargs=added_cond_kwargs, **options)

    monkeypatch.setattr(family.unet, "forward", forward)
    placement = torch.tensor([[1333, 1001, 383, 7, 1024, 1024]] * 3)
    with torch.no_grad():
        condition = family.condition(*family.ids_and_rows(ids, rows), placement)
        family.denoise(torch.zeros(3, 4, 8, 8), torch.tensor([1, 2, 3]), condition)
    assert torch.equal(told[0].to(torch.int64), placement)
