"""Configurations that are not computed are refused by name rather than computed as something else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from diffusers import UNet2DConditionModel as TorchUNet
from transformers import CLIPTextConfig

from pseudoword.errors import RecipeError
from pseudoword.flax_models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from tests.flax_models.test_unet import SMALL

REFUSED: list[tuple[Any, str, Any]] = [
    (UNet2DConditionModel, "class_embed_type", "timestep"),
    (UNet2DConditionModel, "num_class_embeds", 1000),
    (UNet2DConditionModel, "encoder_hid_dim_type", "text_proj"),
    (UNet2DConditionModel, "time_cond_proj_dim", 256),
    (UNet2DConditionModel, "addition_embed_type", "image"),
    (UNet2DConditionModel, "dual_cross_attention", True),
    (UNet2DConditionModel, "center_input_sample", True),
    (UNet2DConditionModel, "resnet_time_scale_shift", "scale_shift"),
    (UNet2DConditionModel, "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
    (UNet2DConditionModel, "down_block_types", ("DownBlock2D", "AttnDownBlock2D")),
    (UNet2DConditionModel, "up_block_types", ("UpBlock2D", "KUpBlock2D")),
    (UNet2DConditionModel, "act_fn", "gelu"),
    (UNet2DConditionModel, "norm_num_groups", None),
    (UNet2DConditionModel, "mid_block_scale_factor", 2),
    (UNet2DConditionModel, "something_new", "default"),
    (AutoencoderKL, "down_block_types", ("AttnDownEncoderBlock2D",)),
    (AutoencoderKL, "act_fn", "mish"),
    (CLIPTextModel, "hidden_act", "relu"),
    (CLIPTextModel, "model_type", "t5"),
]


@pytest.mark.parametrize(("kind", "name", "value"), REFUSED)
def test_what_is_not_computed_is_refused_by_name(kind: Any, name: str, value: Any):
    said = f"says {name} = {value!r}, which is not computed in JAX; learn words for this base with PyTorch."
    with pytest.raises(RecipeError, match=re.escape(said)):
        kind({**(SMALL if kind is UNet2DConditionModel else {}), name: value})


def test_values_of_each_block_must_be_as_many_as_blocks():
    said = "The UNet's configuration has 3 values of attention_head_dim for its 2 blocks."
    with pytest.raises(RecipeError, match=re.escape(said)):
        UNet2DConditionModel({**SMALL, "attention_head_dim": (1, 2, 4)})
    said = "The UNet's configuration has 1 values of down_block_types for its 2 blocks."
    with pytest.raises(RecipeError, match=re.escape(said)):
        UNet2DConditionModel({**SMALL, "down_block_types": ("DownBlock2D",)})


def test_what_stands_nowhere_is_what_diffusers_and_transformers_take():
    ours, theirs = UNet2DConditionModel(SMALL).configuration, TorchUNet(**SMALL).config
    for name, value in vars(ours).items():
        assert value == (tuple(theirs[name]) if isinstance(theirs[name], list) else theirs[name]), name
    text, config = CLIPTextModel({}).configuration, CLIPTextConfig()
    assert vars(text) == {name: getattr(config, name) for name in vars(text)}
