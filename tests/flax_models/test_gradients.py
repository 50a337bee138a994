"""Whole bases: what a step of training asks of the models, against the families on torch that it is asked of today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel as TorchUNet
from flax import nnx
from transformers import CLIPTextModel as TorchText

from pseudoword.families.sd import miniature
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.families.sdxl import miniature as xl_miniature
from pseudoword.families.sdxl.torch import StableDiffusionXL
from pseudoword.flax_models import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    UNet2DConditionModel,
    from_folder,
)
from pseudoword.recipe import BaseModel
from pseudoword.toybox import BASES
from tests.flax_models.references import EXACT, error, numbers

KINDS = "1.x", "2.x", "XL", "toybox"
PLACEMENT = np.array([[16, 16, 0, 0, 16, 16], [30, 24, 2, 5, 16, 16]])
TIMES = np.array([40, 810])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base of each kind."""
    folder = tmp_path_factory.mktemp("bases")
    written = miniature.write(folder / "1.x"), second(folder / "2.x"), xl_miniature.write(folder / "XL")
    return dict(zip(KINDS, (*written, BASES["toybox"]), strict=True))


def second(folder: Path) -> Path:
    """Write a miniature of what 2.x has unlike 1.x: another activation, linear projections, heads of each block."""
    miniature.write(folder, prediction_type="v_prediction")
    text = TorchText.from_pretrained(folder / "text_encoder", hidden_act="gelu")
    config = TorchUNet.load_config(folder / "unet")
    more = {"use_linear_projection": True, "attention_head_dim": [2, 4], "upcast_attention": True}
    for part, module in (("text_encoder", text), ("unet", TorchUNet.from_config({**config, **more}))):
        module.save_pretrained(folder / part)
    return folder


def load(name: str, folder: Path) -> Any:
    """Return the torch family of a base."""
    return (StableDiffusionXL if name == "XL" else StableDiffusion).load(BaseModel(model=str(folder)))


def ids_and_rows(family: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return two prompts with two learned rows in each, and those rows, per text encoder."""
    ids, rows = {}, {}
    for seed, (encoder, vocabulary) in enumerate(family.vocabularies.items()):
        size, width = vocabulary.table.shape
        ids[encoder] = np.stack(
            [vocabulary.encode(text).ids for text in ("a photo of a toy cat", "a red cat in the style")]
        )
        ids[encoder][0, 2:4], ids[encoder][1, 3:5] = [size, size + 1], [size + 1, size]
        rows[encoder] = 0.3 * numbers(seed, 2, width)
    return ids, rows


def torch_loss(family: Any, ids: Any, rows: Any, noised: np.ndarray, target: np.ndarray) -> tuple[Any, Any]:
    """Return prediction and gradients in the rows."""
    learned = {encoder: torch.tensor(block, requires_grad=True) for encoder, block in rows.items()}
    own = {encoder: torch.tensor(block) for encoder, block in ids.items()}
    condition = family.condition(own, learned, torch.tensor(PLACEMENT))
    predicted = family.denoise(torch.tensor(noised), torch.tensor(TIMES), condition)
    (predicted - torch.tensor(target)).square().mean().backward()
    return predicted, {encoder: block.grad for encoder, block in learned.items()}


def condition(name: str, texts: list[Any], ids: Any, rows: Any, end: int) -> list[Any]:
    """Return what our UNet takes after latents and timesteps, as the torch families make it."""
    outputs = [text(ids[encoder], rows[encoder]) for text, encoder in zip(texts, ids, strict=True)]
    if name != "XL":
        return [outputs[0].last_hidden_state]
    pooled = outputs[1].last_hidden_state[jnp.arange(len(TIMES)), (ids["clip_g"] == end).argmax(axis=1)]
    hidden = jnp.concatenate([output.hidden_states[-2] for output in outputs], axis=-1)
    return [hidden, texts[1].text_projection(pooled), PLACEMENT]


@pytest.mark.parametrize("name", KINDS)
def test_predictions_and_gradients_in_the_rows_are_those_of_torch(name: str, bases: dict[str, Path]):
    folder = bases[name]
    family = load(name, folder)
    texts = [from_folder(CLIPTextModel, folder / "text_encoder")]
    if name == "XL":
        texts.append(from_folder(CLIPTextModelWithProjection, folder / "text_encoder_2"))
    unet = from_folder(UNet2DConditionModel, folder / "unet")
    ids, rows = ids_and_rows(family)
    shape = (2, unet.configuration.in_channels, 8, 8)
    noised, target = numbers(2, *shape), numbers(3, *shape)
    expected, expected_gradients = torch_loss(family, ids, rows, noised, target)
    end = list(family.vocabularies.values())[-1].tokenizer.eos_token_id
    graph, state = nnx.split((texts, unet))

    def loss(rows: Any, state: Any) -> tuple[jax.Array, jax.Array]:
        own_texts, own_unet = nnx.merge(graph, state)
        predicted = own_unet(noised, TIMES, *condition(name, own_texts, ids, rows, end))
        return jnp.square(predicted - target).mean(), predicted

    gradients, predicted = jax.jit(jax.grad(loss, has_aux=True))(rows, state)
    assert error(predicted, expected) < EXACT
    assert gradients.keys() == expected_gradients.keys()
    for encoder, gradient in gradients.items():
        assert error(gradient, expected_gradients[encoder]) < 10 * EXACT


@pytest.mark.parametrize("name", KINDS)
def test_latents_and_pictures_are_those_of_torch(name: str, bases: dict[str, Path]):
    family, vae = load(name, bases[name]), from_folder(AutoencoderKL, bases[name] / "vae")
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 16)).astype(np.float32)
    for own, theirs in zip(vae.encode(jnp.asarray(pixels)), family.encode_images(pixels), strict=True):
        assert error(own, torch.tensor(theirs)) < EXACT
    latents = numbers(0, 2, vae.configuration.latent_channels, 4, 6)
    with torch.no_grad():
        assert error(vae.decode(jnp.asarray(latents)), family.vae.decode(torch.tensor(latents)).sample) < EXACT
