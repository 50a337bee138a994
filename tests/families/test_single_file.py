"""Bases in one file: the same tensors as in diffusers layout, whatever the file is like."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    infer_diffusers_model_type,
)
from transformers import CLIPTextConfig, CLIPTextModel

from pseudoword.concept import Concept
from pseudoword.families.locate import locate
from pseudoword.families.sd import miniature, words
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.recipe import BaseModel
from tests.families import ldm
from tests.miniatures import TOKEN, hashes

SD1_TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


def load(path: Path, config: Path, **settings: Any) -> StableDiffusion:
    return StableDiffusion.load(locate(BaseModel(str(path), config=str(config), **settings), {}))


# The same base


def test_every_tensor_is_the_folders(base: Path, config: Path, saved: Callable[..., Path], tensors: ldm.Tensors):
    family, expected = load(saved(tensors), config), StableDiffusion.load(BaseModel(str(base)))
    assert hashes(family) == hashes(expected)
    for module in family.modules.values():
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert (family.resolution, family.latent_factor, family.prediction_type) == (16, 2, "epsilon")
    assert family.scheduler.config == expected.scheduler.config


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_tensor_of_a_ckpt_is_the_folders(
    base: Path, config: Path, tmp_path: Path, tensors: ldm.Tensors, nested: bool, zipped: bool
):
    content = {"epoch": 3, "state_dict": tensors} if nested else tensors
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    expected = hashes(StableDiffusion.load(BaseModel(str(base))))
    assert hashes(load(tmp_path / "model.ckpt", config)) == expected


def test_every_tensor_of_sd_2_is_the_folders(tmp_path: Path, saved: Callable[..., Path]):
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        miniature.write(tmp_path / "first", prediction_type="v_prediction")
    )
    torch.manual_seed(1)
    pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config, use_linear_projection=True)
    pipeline.save_pretrained(tmp_path / "base")
    tensors = ldm.checkpoint(tmp_path / "base", open_clip=True)
    assert "cond_stage_model.model.transformer.resblocks.2.attn.in_proj_weight" in tensors
    family = load(saved(tensors), ldm.config_folder(tmp_path / "base", tmp_path / "config"))
    assert hashes(family) == hashes(StableDiffusion.load(BaseModel(str(tmp_path / "base"))))
    assert family.prediction_type == "v_prediction"
    assert load(saved(tensors), tmp_path / "config", prediction_type="epsilon").prediction_type == "epsilon"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_file_in_another_precision_is_loaded_in_fp32(
    base: Path, config: Path, saved: Callable[..., Path], tensors: ldm.Tensors, dtype: torch.dtype
):
    path = saved({name: value.to(dtype) for name, value in tensors.items()})
    family, expected = load(path, config), StableDiffusion.load(BaseModel(str(base)))
    for name, module in family.modules.items():
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        values = expected.modules[name].named_parameters()
        found = dict(module.named_parameters())
        assert all(torch.equal(found[k], v.to(dtype).float()) for k, v in values)
    [table] = (vocabulary.table for vocabulary in words.vocabularies(family.base).values())
    assert np.array_equal(table, family.vocabularies["clip_l"].table)


def test_averaged_weights_and_training_state_are_left_out(
    base: Path, config: Path, saved: Callable[..., Path], tensors: ldm.Tensors, caplog: pytest.LogCaptureFixture
):
    ema = {f"model_ema.{name.replace('.', '')}": value + 1 for name, value in tensors.items()}
    path = saved({**tensors, **ema, "betas": torch.ones(1000), "model_ema.num_updates": torch.tensor(7)})
    assert hashes(load(path, config)) == hashes(StableDiffusion.load(BaseModel(str(base))))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_names_of_old_merged_checkpoints_are_understood(
    base: Path, config: Path, saved: Callable[..., Path], tensors: ldm.Tensors
):
    old = {name.replace(".transformer.text_model.", ".transformer."): value for name, value in tensors.items()}
    assert SD1_TABLE not in old
    family = load(saved(old), config)
    assert hashes(family) == hashes(StableDiffusion.load(BaseModel(str(base))))
    assert np.array_equal(words.vocabularies(family.base)["clip_l"].table, family.vocabularies["clip_l"].table)


def test_what_a_file_is_decides_and_not_its_name(
    base: Path, config: Path, saved: Callable[..., Path], tensors: ldm.Tensors, tmp_path: Path
):
    expected = hashes(StableDiffusion.load(BaseModel(str(base))))
    assert hashes(load(saved(tensors, "safe.ckpt"), config)) == expected
    torch.save(tensors, tmp_path / "pickle.safetensors")
    assert hashes(load(tmp_path / "pickle.safetensors", config)) == expected
    assert hashes(load(saved(tensors, "model.of.mine"), config)) == expected


class ModelCheckpoint:
    """Lightning's class of that name is a key in the first .ckpt files of Stable Diffusion."""


def test_what_lightning_leaves_in_a_ckpt_needs_no_lightning(
    base: Path, config: Path, tensors: ldm.Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = "pytorch_lightning.callbacks.model_checkpoint"
    for module in ("pytorch_lightning", "pytorch_lightning.callbacks", place):
        monkeypatch.setitem(sys.modules, module, type(sys)(module))
    monkeypatch.setattr(ModelCheckpoint, "__module__", place)
    monkeypatch.setattr(sys.modules[place], "ModelCheckpoint", ModelCheckpoint, raising=False)
    extras = {"best_model_score": np.float64(0.25), "current_score": torch.tensor(0.5), "best_model_path": "/x"}
    torch.save({"callbacks": {ModelCheckpoint: extras}, "state_dict": tensors}, tmp_path / "model.ckpt")
    monkeypatch.undo()
    assert "pytorch_lightning" not in sys.modules
    assert hashes(load(tmp_path / "model.ckpt", config)) == hashes(StableDiffusion.load(BaseModel(str(base))))


def test_a_pipeline_with_the_word_inside_loads_in_diffusers(
    base: Path, config: Path, saved: Callable[..., Path], tensors: ldm.Tensors, tmp_path: Path
):
    index = json.loads((config / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    rows = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    family = load(saved(tensors), config, prediction_type="v_prediction")
    family.with_words([Concept(TOKEN, {"clip_l": rows})]).save_pretrained(tmp_path / "whole")
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tmp_path / "whole")
    ids = pipeline.tokenizer(f"{TOKEN} {TOKEN}_1", add_special_tokens=False).input_ids
    assert np.array_equal(pipeline.text_encoder.get_input_embeddings().weight.detach().numpy()[ids], rows)
    assert type(pipeline.scheduler).__name__ == "DDPMScheduler"
    assert pipeline.scheduler.config["prediction_type"] == "v_prediction"
    for name, value in family.unet.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name], value)
    assert pipeline.safety_checker is None


def test_reading_a_ckpt_leaves_torchs_list_of_what_is_safe_alone(config: Path, tensors: ldm.Tensors, tmp_path: Path):
    torch.save(tensors, tmp_path / "model.ckpt")
    before = set(torch.serialization.get_safe_globals())
    load(tmp_path / "model.ckpt", config)
    assert set(torch.serialization.get_safe_globals()) == before


# The vocabulary alone


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_the_vocabulary_alone_is_the_folders(
    base: Path, config: Path, saved: Callable[..., Path], tensors: ldm.Tensors, tmp_path: Path, kind: str
):
    path = saved(tensors)
    if kind == "ckpt":
        path = tmp_path / "model.ckpt"
        torch.save({"state_dict": tensors}, path)
    [(encoder, found)] = words.vocabularies(BaseModel(str(path), config=str(config))).items()
    expected = words.vocabularies(BaseModel(str(base)))[encoder]
    assert np.array_equal(found.table, expected.table)
    assert found.encode("a photo of a toy").ids.tolist() == expected.encode("a photo of a toy").ids.tolist()


def test_the_vocabulary_of_a_safetensors_file_needs_no_torch(
    config: Path, saved: Callable[..., Path], tensors: ldm.Tensors, tmp_path: Path
):
    code = """
        import sys
        sys.modules |= dict.fromkeys(("torch", "diffusers", "accelerate"))  # importing them fails
        from pseudoword.errors import RecipeError
        from pseudoword.families.locate import locate
        from pseudoword.families.sd import words
        from pseudoword.recipe import BaseModel
        for path in sys.argv[2:]:
            base = locate(BaseModel(path, config=sys.argv[1]), {})
            try:
                print(words.vocabularies(base)["clip_l"].table.shape)
            except RecipeError as error:
                print(error)
    """
    torch.save(tensors, tmp_path / "model.ckpt")
    line = [sys.executable, "-c", textwrap.dedent(code), str(config), str(saved(tensors)), str(tmp_path / "model.ckpt")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.stdout.splitlines() == [
        "(544, 32)",
        f"'{tmp_path / 'model.ckpt'}' is a PyTorch file; reading it needs pip install 'pseudoword[torch]'.",
    ], done.stderr


# The real sizes


SIZES: dict[str, dict[str, Any]] = {
    "v1": {
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "unet": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "parameters": (123_060_480, 859_520_964, 83_653_863),
    },
    "v2": {
        "text": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
        "unet": {
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        "parameters": (340_387_840, 865_910_724, 83_653_863),
    },
}
"""Stable Diffusion 1.5 and 2.1 as their config.json files and model cards have them."""


@pytest.mark.parametrize("kind", SIZES)
def test_the_layout_of_these_tests_is_the_real_models_too(kind: str):
    sizes: dict[str, Any] = SIZES[kind]
    with torch.device("meta"):
        text: Any = CLIPTextModel(CLIPTextConfig(**sizes["text"]))
        unet = UNet2DConditionModel(**sizes["unet"])
        vae: Any = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),  # pyright: ignore[reportArgumentType]
            down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            layers_per_block=2,
        )
    counts = tuple(sum(p.numel() for p in module.parameters()) for module in (text, unet, vae))
    assert counts == sizes["parameters"]
    tensors = ldm.checkpoint(SimpleNamespace(text_encoder=text, unet=unet, vae=vae), open_clip=kind == "v2")
    assert infer_diffusers_model_type(tensors) == kind
    starts = [name.split(".")[0] for name in tensors]
    assert (starts.count("model"), starts.count("first_stage_model")) == (686, 248)
    assert shapes(convert_ldm_unet_checkpoint(tensors, unet.config)) == shapes(unet.state_dict())
    found = shapes(convert_ldm_vae_checkpoint(tensors, vae.config))
    assert found == shapes(vae.state_dict())
    if kind == "v1":
        assert starts.count("cond_stage_model") == 197
        assert "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_out.0.bias" in tensors
        converted = convert_ldm_clip_checkpoint(tensors)
    else:
        last = "cond_stage_model.model.transformer.resblocks.23.ln_1.weight"  # real files have a layer that is not used
        converted = convert_open_clip_checkpoint(text, {**tensors, last: torch.ones(1024)})
    converted = {name.removeprefix("text_model."): value for name, value in converted.items()}
    assert shapes(text.state_dict()).items() <= shapes(converted).items()
    assert converted.keys() - text.state_dict().keys() <= {"embeddings.position_ids", "text_projection.weight"}


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}
