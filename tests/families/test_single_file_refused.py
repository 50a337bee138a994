"""Files that are no base: damaged, of another kind, not whole, with code inside, or configured as something else."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from pseudoword.errors import RecipeError
from pseudoword.families.locate import locate
from pseudoword.families.sd import miniature, words
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.recipe import BaseModel
from tests.families import ldm

SD1_TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


def refusal(path: Path, config: Path | None, **settings: Any) -> str:
    base = BaseModel(str(path), config=config and str(config), **settings)
    with pytest.raises(RecipeError) as refused:
        StableDiffusion.load(locate(base, {}))
    assert "\n" not in str(refused.value)
    return str(refused.value)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(os.environ["PAYLOAD"]),)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_does_not_run(
    config: Path, tensors: ldm.Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str
):
    mark, path = tmp_path / "ran", tmp_path / f"model.{suffix}"
    monkeypatch.setenv("PAYLOAD", str(mark))
    content = {"state_dict": tensors, "extra": Payload()}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}, "extra": Payload()}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    said = refusal(path, config)
    assert said == (
        f"'{path}' cannot be read safely as tensors only: it is damaged or holds code. "
        "Download it again, or get it as .safetensors."
    )
    assert refusal(path, None) == said
    assert not mark.exists()
    with path.open("rb") as file:
        pickle.load(file) if kind == "pickle" else torch.load(file, weights_only=False)
    assert mark.exists()  # so the payload would have run


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; a checkpoint in one file is a .safetensors or .ckpt. Download it again."),
        (b"<html>404</html>", "is neither a safetensors nor a PyTorch file; a checkpoint in one file is a"),
        (b"version https://git-lfs.github.com/spec/v1", "is neither a safetensors nor a PyTorch file; a checkpoint"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{", "is a damaged safetensors file ("),
        (b"\x02\0\0\0\0\0\0\0{}", "is not a whole Stable Diffusion 1.x or 2.x checkpoint: it has no text encoder ("),
        (b"PK\x03\x04", "cannot be read safely as tensors only: it is damaged or holds code. Download it again"),
        (pickle.dumps([1]), "cannot be read safely as tensors only"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(config: Path, tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert refusal(path, config).startswith(f"'{path}' {said}")
    assert refusal(path, None).startswith(f"'{path}' {said}")


def test_a_file_that_may_not_be_read_is_refused(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "model.ckpt").write_bytes(b"PK")
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(RecipeError, match=r"^Cannot read '.*model\.ckpt': Permission denied\.$"):
        words.vocabularies(BaseModel(str(tmp_path / "model.ckpt"), config=str(config)))


def test_a_pickle_that_is_no_dict_is_refused(config: Path, tmp_path: Path):
    torch.save([torch.ones(2)], tmp_path / "model.ckpt")
    assert refusal(tmp_path / "model.ckpt", config).endswith("model.ckpt' holds a list, not named tensors.")


@pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_truncated_file_is_refused(
    config: Path, saved: Callable[..., Path], tensors: ldm.Tensors, tmp_path: Path, suffix: str, share: float
):
    path = saved(tensors)
    if suffix == "ckpt":
        path = tmp_path / "model.ckpt"
        torch.save(tensors, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "damaged" in refusal(path, config)


OTHERS = {
    "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias": "Stable Diffusion 3",
    "double_blocks.0.img_attn.norm.key_norm.scale": "Flux",
    "model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": "Flux",
    "control_model.time_embed.0.weight": "a ControlNet",
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": "a LoRA",
    "emb_params": "an embedding",
    "down_blocks.0.resnets.0.conv1.weight": "one part of a model in diffusers' layout",
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_of_file_is_refused_by_name(config: Path, saved: Callable[..., Path], name: str):
    path = saved({name: torch.ones(2), "first_stage_model.decoder.conv_in.bias": torch.ones(2)})
    said = f"'{path}' is {OTHERS[name]}; expected Stable Diffusion 1.x or 2.x in one file."
    assert refusal(path, config) == said
    assert refusal(path, None) == said
    with pytest.raises(RecipeError, match="expected Stable Diffusion 1"):
        words.vocabularies(BaseModel(str(path), config=str(config)))


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("first_stage_model.", "it has no VAE (tensors named first_stage_model.…)."),
        ("model.diffusion_model.", "it has no UNet (tensors named model.diffusion_model.…)."),
        ("cond_stage_model.", "it has no text encoder (tensors named cond_stage_model.…)."),
    ],
)
def test_a_file_without_a_whole_part_is_refused_naming_it(
    config: Path, saved: Callable[..., Path], tensors: ldm.Tensors, start: str, said: str
):
    path = saved({name: value for name, value in tensors.items() if not name.startswith(start)})
    assert refusal(path, config) == f"'{path}' is not a whole Stable Diffusion 1.x or 2.x checkpoint: {said}"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("first_stage_model.decoder.conv_in.weight", "vae"),
        ("model.diffusion_model.middle_block.1.norm.bias", "unet"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "text_encoder"),
    ],
)
def test_a_file_without_one_tensor_is_refused_naming_the_part(
    config: Path, saved: Callable[..., Path], tensors: ldm.Tensors, name: str, part: str
):
    path = saved({kept: value for kept, value in tensors.items() if kept != name})
    assert refusal(path, config) == (
        f"The {part} in '{path}' does not fit the configuration '{config}': tensors are missing. "
        "Download the file again, or give --config a folder of the same kind of model."
    )


def test_a_text_encoder_of_another_kind_is_refused(config: Path, saved: Callable[..., Path], tensors: ldm.Tensors):
    path = saved({name: value for name, value in tensors.items() if name != SD1_TABLE})
    assert (
        refusal(path, config)
        == f"The text encoder in '{path}' is neither that of Stable Diffusion 1.x nor that of 2.x."
    )


def test_a_configuration_of_another_model_is_refused(saved: Callable[..., Path], tensors: ldm.Tensors, tmp_path: Path):
    wider = ldm.config_folder(miniature.write(tmp_path / "wider", width=64), tmp_path / "config")
    said = refusal(saved(tensors), wider)
    assert said.startswith(f"The text_encoder in '{tmp_path / 'model.safetensors'}' does not fit the configuration")
    assert "expected shape torch.Size([" in said
    assert said.endswith("]). Download the file again, or give --config a folder of the same kind of model.")


@pytest.mark.parametrize("channels", [8, 9])
def test_a_unet_for_inpainting_is_refused(base: Path, tmp_path: Path, saved: Callable[..., Path], channels: int):
    pipeline: Any = StableDiffusionPipeline.from_pretrained(base)
    pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config, in_channels=channels)
    pipeline.save_pretrained(tmp_path / "base")
    config = ldm.config_folder(tmp_path / "base", tmp_path / "config")
    for refused in (refusal(tmp_path / "base", None), refusal(saved(ldm.checkpoint(pipeline)), config)):
        assert refused == (
            f"The UNet takes {channels} channels, but the VAE makes 4: a model for inpainting or editing, "
            "from which no word can be learned here; take the text-to-image model."
        )
