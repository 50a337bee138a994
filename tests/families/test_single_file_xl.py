"""Stable Diffusion XL in one file: the same base as its folder, and what such files say of their noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from pseudoword.errors import RecipeError
from pseudoword.families.locate import locate
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.families.sdxl import miniature, words
from pseudoword.families.sdxl.torch import StableDiffusionXL
from pseudoword.recipe import BaseModel
from tests.families import ldm


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def tensors(base: Path) -> ldm.Tensors:
    return {name: value.contiguous() for name, value in ldm.xl_checkpoint(base).items()}


def saved(tensors: ldm.Tensors, path: Path) -> Path:
    safetensors.torch.save_file(tensors, path)
    return path


@pytest.mark.parametrize("kind", [".safetensors", ".ckpt"])
def test_a_file_is_the_same_base_as_its_folder(base: Path, tensors: ldm.Tensors, tmp_path: Path, kind: str):
    path = tmp_path / f"model{kind}"
    if kind == ".ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        saved(tensors, path)
    wanted = locate(BaseModel(str(path), config=str(base)), {})
    assert wanted.family == "sdxl"
    ours, theirs = StableDiffusionXL.load(wanted), StableDiffusionXL.load(BaseModel(str(base)))
    for name, module in theirs.modules.items():
        own = ours.modules[name].state_dict()
        assert own.keys() == module.state_dict().keys()
        assert all(torch.equal(own[key], value) for key, value in module.state_dict().items()), name
    for encoder, vocabulary in words.vocabularies(wanted).items():
        assert np.array_equal(vocabulary.table, theirs.vocabularies[encoder].table)


def test_a_file_says_that_it_predicts_velocity_from_noise_alone(base: Path, tensors: ldm.Tensors, tmp_path: Path):
    plain = StableDiffusionXL.load(BaseModel(str(saved(tensors, tmp_path / "a.safetensors")), config=str(base)))
    assert plain.prediction_type == "epsilon"
    told = {**tensors, "v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    family = StableDiffusionXL.load(BaseModel(str(saved(told, tmp_path / "b.safetensors")), config=str(base)))
    assert family.prediction_type == "v_prediction"
    assert family.alphas_cumprod[-1] == 0
    assert plain.alphas_cumprod[-1] > 0


def test_a_file_without_one_of_its_parts_is_refused(base: Path, tensors: ldm.Tensors, tmp_path: Path):
    lacking = {name: value for name, value in tensors.items() if not name.startswith("conditioner.embedders.0.")}
    path = saved(lacking, tmp_path / "model.safetensors")
    with pytest.raises(RecipeError, match=r"is not a whole Stable Diffusion XL checkpoint: it has no first text"):
        StableDiffusionXL.load(BaseModel(str(path), config=str(base)))
    with pytest.raises(RecipeError, match=r"is Stable Diffusion XL; expected Stable Diffusion 1\.x or 2\.x in one"):
        StableDiffusion.load(BaseModel(str(path), config=str(base)))
