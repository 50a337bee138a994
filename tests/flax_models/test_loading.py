"""Files of weights: which are read, what their tensors may be called, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import SingleDeviceSharding
from safetensors.torch import load_file, save_file

from pseudoword.errors import RecipeError
from pseudoword.flax_models import AutoencoderKL, CLIPTextModel, Layers, UNet2DConditionModel, from_folder, load
from tests.flax_models import test_clip, test_unet, test_vae
from tests.flax_models.references import EXACT, error, numbers

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    """A UNet's folder."""
    test_unet.reference().save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def leaves(model: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(nnx.state(model))]


def equal(one: nnx.Module, other: nnx.Module) -> bool:
    pairs = zip(leaves(one), leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_a_model_is_shapes_alone_until_it_is_loaded(unet: Path):
    empty = UNet2DConditionModel(json.loads((unet / "config.json").read_text()))
    assert {type(leaf) for leaf in jax.tree.leaves(nnx.state(empty))} == {jax.ShapeDtypeStruct}
    filled = load(empty, unet)
    assert filled is empty
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(filled)))


def test_a_folder_and_its_tensors_give_the_same_model(unet: Path):
    config, tensors = json.loads((unet / "config.json").read_text()), load_file(unet / WEIGHTS)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    made = load(UNet2DConditionModel(config), arrays)
    assert equal(made, from_folder(UNet2DConditionModel, unet))
    before = leaves(made)
    for array in arrays.values():
        array[...] = 0
    assert all(np.array_equal(a, b) for a, b in zip(leaves(made), before, strict=True)), "the model has its own memory"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_of_other_kinds_are_cast(dtype: torch.dtype, unet: Path):
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(unet / WEIGHTS).items()}
    save_file(tensors, unet / WEIGHTS)
    made = from_folder(UNet2DConditionModel, unet)
    assert np.array_equal(np.asarray(made.conv_out.bias[...]), tensors["conv_out.bias"].float().numpy())
    half = from_folder(UNet2DConditionModel, unet, Layers(param_dtype=jnp.bfloat16))
    assert half.conv_out.bias.dtype == jnp.bfloat16


def test_weights_go_where_they_are_wanted(unet: Path):
    device = jax.devices()[-1]
    made = from_folder(UNet2DConditionModel, unet, sharding=SingleDeviceSharding(device))
    assert {leaf.device for leaf in jax.tree.leaves(nnx.state(made))} == {device}


def test_a_variant_is_taken_where_there_is_one(unet: Path):
    plain = from_folder(UNet2DConditionModel, unet)
    assert equal(from_folder(UNet2DConditionModel, unet, variant="fp16"), plain)
    tensors = {name: 2 * tensor.half() for name, tensor in load_file(unet / WEIGHTS).items()}
    save_file(tensors, unet / "diffusion_pytorch_model.fp16.safetensors")
    assert equal(from_folder(UNet2DConditionModel, unet), plain)
    assert not equal(from_folder(UNet2DConditionModel, unet, variant="fp16"), plain)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_several_files_are_one_model(variant: str | None, tmp_path: Path):
    reference = test_unet.reference()
    reference.save_pretrained(tmp_path / "whole")
    reference.save_pretrained(tmp_path / "parts", max_shard_size="40KB", variant=variant)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    whole = from_folder(UNet2DConditionModel, tmp_path / "whole")
    assert equal(from_folder(UNet2DConditionModel, tmp_path / "parts", variant=variant), whole)


def test_text_encoders_are_read_with_and_without_the_prefix_of_their_names(tmp_path: Path):
    test_clip.reference().save_pretrained(tmp_path)
    made, path = from_folder(CLIPTextModel, tmp_path), tmp_path / "model.safetensors"
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    old = {"embeddings.position_ids": torch.arange(12)[None]}  # as earlier versions of transformers saved them too
    for prefix in ("", "text_model."):
        save_file({f"{prefix}{name}": tensor for name, tensor in {**tensors, **old}.items()}, path)
        assert equal(from_folder(CLIPTextModel, tmp_path), made)


@pytest.mark.parametrize("places", [(), (1, 1)])
def test_the_attention_of_old_vaes_is_read_by_its_old_names(places: tuple[int, ...], tmp_path: Path):
    theirs = test_vae.reference()
    theirs.save_pretrained(tmp_path)
    made, old = from_folder(AutoencoderKL, tmp_path), {}
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name, tensor in load_file(tmp_path / WEIGHTS).items():
        for today, once in names.items():
            if f".{today}." in name:
                name = name.replace(f".{today}.", f".{once}.")
                tensor = tensor.reshape(*tensor.shape, *places) if tensor.ndim == 2 else tensor
        old[name] = tensor
    assert sum(".proj_attn." in name for name in old) == 4
    save_file(old, tmp_path / WEIGHTS)
    assert equal(from_folder(AutoencoderKL, tmp_path), made)
    if not places:  # diffusers reads folders with linear layers alone
        pixels = numbers(0, 1, 3, 16, 16)
        expected = type(theirs).from_pretrained(tmp_path).encode(torch.tensor(pixels)).latent_dist.mean
        assert error(made.encode(jnp.asarray(pixels))[0], expected) < EXACT


# What is refused


def changed(unet: Path, **more: Any) -> None:
    tensors = {**load_file(unet / WEIGHTS), **more}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, unet / WEIGHTS)


def refused(unet: Path, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        from_folder(UNet2DConditionModel, unet)


def test_tensors_that_are_missing_or_left_over_are_named(unet: Path):
    changed(unet, **{"conv_in.bias": None, "mid_block.resnets.1.conv2.weight": None})
    refused(unet, "The weights of the UNet2DConditionModel lack conv_in.bias, mid_block.resnets.1.conv2.weight.")
    changed(unet, **{"conv_in.bias": torch.zeros(16), "other.weight": torch.zeros(3)})
    refused(
        unet,
        "The weights are not those of this UNet2DConditionModel: they lack mid_block.resnets.1.conv2.weight, "
        "and hold other.weight, which it does not have.",
    )
    changed(unet, **{"mid_block.resnets.1.conv2.weight": torch.zeros(32, 32, 3, 3)})
    refused(unet, "The weights of the UNet2DConditionModel hold other.weight, which its configuration does not have.")


def test_of_many_names_the_first_ten_are_said(unet: Path):
    save_file({f"{i:02}.weight": torch.zeros(1) for i in range(13)}, unet / WEIGHTS)
    refused(unet, "and hold 00.weight, 01.weight, 02.weight, 03.weight, 04.weight, 05.weight, 06.weight, 07.weight, "
            "08.weight, 09.weight and 3 more, which it does not have.")  # fmt: skip


@pytest.mark.parametrize("shape", [(16, 4, 1, 1), (16, 4), (16, 5, 3, 3)])
def test_a_tensor_of_another_shape_is_refused(shape: tuple[int, ...], unet: Path):
    changed(unet, **{"conv_in.weight": torch.zeros(shape)})
    refused(unet, "The tensor 'conv_in.weight' of the UNet2DConditionModel has the shape (")


@pytest.mark.parametrize("name", ["time_embedding.linear_1.weight", "conv_norm_out.weight"])
def test_other_parameters_are_not_broadcast(name: str, unet: Path):
    changed(unet, **{name: torch.zeros(1, 1, 1, 1)})
    refused(unet, f"The tensor {name!r} of the UNet2DConditionModel has the shape (1, 1")


def test_a_folder_without_weights_is_refused(unet: Path):
    (unet / WEIGHTS).rename(unet / "diffusion_pytorch_model.bin")
    refused(unet, "has no weights that can be read: no diffusion_pytorch_model.safetensors and no model.safetensors.")


def test_a_folder_without_a_configuration_is_refused(unet: Path):
    (unet / "config.json").write_text("{")
    refused(unet, "has no config.json that can be read")
    (unet / "config.json").unlink()
    refused(unet, "has no config.json that can be read")


def test_a_damaged_file_is_refused(unet: Path):
    (unet / WEIGHTS).write_bytes((unet / WEIGHTS).read_bytes()[:-5])
    refused(unet, "is a damaged safetensors file (")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {"a": 3}}'])
def test_an_index_that_says_nothing_is_refused(content: str, unet: Path):
    (unet / WEIGHTS).unlink()
    (unet / f"{WEIGHTS}.index.json").write_text(content)
    refused(unet, "does not say in which files the weights are (")


def test_an_index_reads_nothing_outside_of_its_folder(unet: Path):
    (unet / WEIGHTS).rename(unet.parent / "other.safetensors")
    (unet / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"conv_in.bias": "../other.safetensors"}}')
    refused(unet, "lacks other.safetensors, a part of its weights.")
