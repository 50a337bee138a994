"""The base model and the oracle inside the package: they load as any, and know their world at least this well."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from pseudoword import toybox
from pseudoword.toybox import oracle, score, words

MODEL = toybox.BASES["toybox"]


@cache
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(MODEL)


def test_the_base_loads_as_any_stable_diffusion_and_draws():
    loaded = pipeline()
    parts = (loaded.tokenizer, loaded.text_encoder, loaded.vae, loaded.unet, loaded.scheduler)
    kinds = [type(part).__name__ for part in parts]
    assert kinds == ["CLIPTokenizer", "CLIPTextModel", "AutoencoderKL", "UNet2DConditionModel", "DDPMScheduler"]
    assert {parameter.dtype for part in parts[1:4] for parameter in part.parameters()} == {torch.float32}
    assert (loaded.scheduler.config.prediction_type, loaded.scheduler.config.beta_schedule) == (
        "epsilon",
        "scaled_linear",
    )
    picture = loaded("a photo of a red star", num_inference_steps=2).images[0]  # pyright: ignore[reportAttributeAccessIssue]
    assert picture.size == (64, 64)


def test_the_text_encoder_finds_the_end_of_a_prompt_and_says_its_precision():
    config = json.loads((MODEL / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "float32"
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    assert config["eos_token_id"] == tokenizer.eos_token_id != 2
    assert tokenizer.model_max_length == config["max_position_embeddings"] == 77


def test_every_word_of_the_world_is_one_token():
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    assert {len(tokenizer(word, add_special_tokens=False).input_ids) for word in words.words()} == {1}


def test_weights_stay_small():
    sizes = {path: path.stat().st_size for path in MODEL.parent.rglob("*.safetensors")}
    assert sum(sizes.values()) <= 16 << 20
    assert sizes[oracle.FILE] <= 1 << 20


def test_the_card_names_licence_and_origin():
    card = (MODEL.parent / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("licence", "commit", "seed", "steps", "hours"))


# What they know; `pseudoword toybox score` measures it on many more.


@pytest.fixture(scope="module")
def judge() -> oracle.Judge:
    return oracle.load()


def test_the_autoencoder_keeps_and_the_oracle_reads_what_is_drawn(judge: oracle.Judge):
    quality, drop, renders, round_trips = (goal.value for goal in score.vae_and_oracle(pipeline().vae, judge, 100))
    assert quality >= 28.5
    assert drop <= 5
    assert renders >= 94
    assert round_trips >= 78


def test_the_base_draws_what_its_captions_say(judge: oracle.Judge):
    drawings, _ = score.held_out(32)
    assert len({drawing.things[0].shape for drawing in drawings}) > 8
    goals = score.base_agreement(pipeline(), judge, 32)
    shares = {goal.what.rsplit("agreement on ")[1]: goal.value for goal in goals}
    floors = {"shape": 80, "colour": 84, "background": 90, "style": 90, "pattern": 70, "second colour": 65}
    assert shares.keys() == floors.keys()
    assert {name: share for name, share in shares.items() if share < floors[name]} == {}


def test_another_prompt_gives_another_picture_and_the_oracle_sees_which(judge: oracle.Judge):
    from pseudoword.toybox.base import sample

    made = sample(pipeline(), ["a photo of a red star on a white background", "a photo of a blue ring at night"])
    readings = judge.read(score.as_array(made))
    seen = [{name: reading[name][0] for name in ("shape", "colour", "background")} for reading in readings]
    assert seen == [
        {"shape": "star", "colour": "red", "background": "white"},
        {"shape": "ring", "colour": "blue", "background": "night"},
    ]
    assert not np.array_equal(*map(np.asarray, made))
