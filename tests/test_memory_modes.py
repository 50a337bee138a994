"""Memory modes learn the same word in less memory; what they hold, and what they refuse."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from pseudoword import families, train
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.errors import OutOfMemory, RecipeError
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.families.sdxl import miniature as xl_miniature
from pseudoword.recipe import BaseModel, EngineRecipe
from tests.miniatures import MakeRecipe, rows_of, stopped_after


def moved(a: np.ndarray, b: np.ndarray, start: np.ndarray) -> float:
    """Return how far one word is from another, as a share of how far training has moved it."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b - start))


@pytest.mark.parametrize("mode", ["low", "lowest"])
def test_a_word_learned_in_less_memory_is_that_of_bf16(make_recipe: MakeRecipe, tmp_path: Path, mode: str) -> None:
    options = {"steps": "8", "learning_rate": 1e-2}
    start = StableDiffusion.load(make_recipe().base).vocabularies["clip_l"].initial_rows("toy", 1)[0]
    list(train(make_recipe(**options, mixed_precision="bf16", folder=str(tmp_path / "bf16"))))
    list(train(make_recipe(**options, memory=mode)))
    # AdamW's first steps are the signs of gradients, so numbers near zero may go either way.
    assert moved(rows_of(tmp_path / "run"), rows_of(tmp_path / "bf16"), start) < 0.3


@pytest.mark.parametrize("mode", ["low", "lowest"])
def test_a_stopped_run_goes_on_bit_for_bit(make_recipe: MakeRecipe, tmp_path: Path, mode: str) -> None:
    list(train(make_recipe(memory=mode, folder=str(tmp_path / "whole"))))
    stopped_after(make_recipe(memory=mode), 2)
    list(train(make_recipe(memory=mode), resume="latest"))
    assert rows_of(tmp_path / "run").tobytes() == rows_of(tmp_path / "whole").tobytes()


@pytest.mark.parametrize("mode", ["low", "lowest"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_they_sample_validation_pictures(make_recipe: MakeRecipe, tmp_path: Path, family: str, mode: str) -> None:
    base = {} if family == "sd" else {"model": str(xl_miniature.write(tmp_path / "xl"))}
    looking = {"validation_prompts": ["a photo of {}"], "num_validation_images": 1, "validation_sampling_steps": 2}
    [*_, last] = train(make_recipe(**base, **looking, memory=mode, steps="2", loss_steps=1))
    assert np.isfinite(list(last.loss.values())).all()
    assert [path.name for path in last.pictures] == ["step-000002.png"]


def held(mode: str, base: Path) -> tuple[TorchEngine, StableDiffusion, int]:
    engine, family = TorchEngine(EngineRecipe(memory=mode)), StableDiffusion.load(BaseModel(str(base)))  # pyright: ignore[reportArgumentType]
    engine.prepare(family)
    engine._bring(family)
    size = sum(p.numel() * p.element_size() for p in family.text_encoder.parameters())
    return engine, family, size


def test_what_is_held_in_fewer_bits(base: Path) -> None:
    _, plain, fp32 = held("auto", base)
    assert plain.unet.dtype == torch.float32
    _, low, same = held("low", base)
    assert (low.unet.dtype, same) == (torch.bfloat16, fp32)
    _, lowest, half = held("lowest", base)
    assert half < 0.6 * fp32
    layers = [m for m in lowest.unet.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert len(layers) == lowest.layers
    assert {layer.parametrizations.weight.original.dtype for layer in layers} == {torch.int8}  # pyright: ignore
    plain_weight, weight = low.unet.conv_in.weight.float(), lowest.unet.conv_in.weight.float()
    assert 0 < (plain_weight - weight).abs().max() < plain_weight.abs().max() / 100
    assert not any(p.requires_grad for p in lowest.unet.parameters())
    assert low.unet.is_gradient_checkpointing


def test_they_take_one_picture_at_a_time(make_recipe: MakeRecipe, passes: list[list[int]]) -> None:
    list(train(make_recipe(batch_size=3, steps="1", memory="low", loss_steps=1)))
    assert len(passes) == 16 + 3 + 16
    assert {len(own) for own in passes} == {1}


def test_a_run_that_was_out_of_memory_goes_on_one_picture_at_a_time(
    make_recipe: MakeRecipe, passes: list[list[int]]
) -> None:
    stopped_after(make_recipe(), 2)
    assert {len(own) for own in passes} == {2}
    passes.clear()
    list(train(make_recipe(memory="low"), resume="latest"))
    assert {len(own) for own in passes} == {1}


def test_the_vae_is_gone_when_the_rest_arrives(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("bring_vae", "encode_images", "leave_vae", "bring"):
        own = getattr(StableDiffusion, name)

        def noted(self: StableDiffusion, *args: object, name: str = name, own: object = own, **options: object):
            done.append(name)
            return own(self, *args, **options)  # pyright: ignore[reportCallIssue]

        monkeypatch.setattr(StableDiffusion, name, noted)
    list(train(make_recipe(steps="1")))
    assert list(dict.fromkeys(done)) == ["bring_vae", "encode_images", "leave_vae", "bring"]


def test_what_they_refuse(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"^memory is 'lowest', which holds the model in fewer bits, so full_"):
        make_recipe(memory="lowest", full_pipeline=True)


def test_weights_laid_out_for_gpus_compute_the_same(base: Path) -> None:
    family = StableDiffusion.load(BaseModel(str(base)))
    noised, timestep, condition = torch.randn(2, 4, 8, 8), torch.tensor([1, 500]), torch.randn(2, 77, 32)
    with torch.no_grad():
        before = family.denoise(noised, timestep, condition)
        family.bring("cpu", torch.float32, channels_last=True)
        assert family.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(family.denoise(noised, timestep, condition), before, atol=1e-5)


# Switches


def test_deterministic_algorithms_are_on_for_steps_alone(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen: list[bool] = []
    loss = TorchEngine._loss

    def noted(self: TorchEngine, *args: object, **options: object) -> object:
        seen.append(torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic)
        return loss(self, *args, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(TorchEngine, "_loss", noted)
    for own in train(make_recipe(deterministic=True, steps="2", folder=str(tmp_path / "same"))):
        assert not torch.are_deterministic_algorithms_enabled()
        assert own.step <= 2
    assert seen == [True, True]
    list(train(make_recipe(steps="2")))
    assert not any(seen[2:])
    assert rows_of(tmp_path / "run").tobytes() == rows_of(tmp_path / "same").tobytes()
    torch.use_deterministic_algorithms(True, warn_only=True)  # a caller's own choice
    try:
        for deterministic in (False, True):
            list(train(make_recipe(deterministic=deterministic, steps="1", folder=str(tmp_path / "own"))))
            assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    with caplog.at_level(logging.WARNING):
        list(train(make_recipe(deterministic=True, steps="3"), resume="latest"))
    assert "not bit for bit: deterministic was False and is True" in caplog.text


def test_everything_is_put_on_the_engines_device(base: Path) -> None:
    engine = TorchEngine(EngineRecipe())
    engine.device = torch.device("meta")  # stands for any accelerator
    assert engine._put(np.zeros(3)).device.type == "meta"


@pytest.mark.parametrize(
    ("engine", "part", "said"),
    [
        ("torch", "bring_vae", "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"),
        (
            "torch",
            "encode_images",
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1",
        ),
        ("jax", "bring", "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte."),
    ],
)
def test_a_base_that_does_not_fit_is_said_in_a_sentence(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, engine: str, part: str, said: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(families.part("sd", engine).FAMILY, part, full)
    with pytest.raises(OutOfMemory, match=r"^The device has not enough memory for the base model and a picture; try"):
        list(train(make_recipe(engine=engine)))
