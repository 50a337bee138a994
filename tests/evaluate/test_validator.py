"""What is looked at along the way: it changes nothing, comes when due, and is the same after an interruption."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from pseudoword import Concept
from pseudoword.data.dataset import TextualInversionDataset
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.errors import RecipeError
from pseudoword.evaluate.fixed_draw import fixed_draw_loss
from pseudoword.families.samplers import SAMPLERS
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.generate import Sampling, generate, load
from pseudoword.recipe import BaseModel, Sampler
from pseudoword.training import train
from tests.miniatures import TOKEN, MakeRecipe, log_of, rows_of, stopped_after
from tests.test_processes import together

PROMPTS = [f"a photo of a {TOKEN}", f"a red {TOKEN}"]
LOOKING: dict[str, Any] = {
    "validation_prompts": PROMPTS,
    "validation_negative_prompt": f"the {TOKEN}",
    "num_validation_images": 2,
    "validation_steps": "2",
    "validation_sampling_steps": 2,
    "validation_seed": 5,
    "loss_steps": 2,
    "report_to": "tensorboard",
}


def files_of(folder: Path) -> dict[str, bytes]:
    """Return what a run leaves, but for what tells the time or its own folder."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "logs" not in path.parts]
    own = ("log.jsonl", "recipe.toml", "checkpoint.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name not in own}


# Nothing that is learned changes


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"mixed_precision": "bf16"},
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 2, "num_vectors": 2},
        {"validation_sampler": "euler-a"},
    ],
    ids=str,
)
def test_looking_leaves_the_rows_bit_identical(make_recipe: MakeRecipe, tmp_path: Path, how: dict[str, Any]) -> None:
    off = {name: value for name, value in how.items() if not name.startswith("validation")}
    list(train(make_recipe(folder=str(tmp_path / "off"), **off)))
    list(train(make_recipe(folder=str(tmp_path / "on"), **LOOKING, **how)))
    assert (tmp_path / "on" / "samples" / "step-000004.png").is_file()
    assert rows_of(tmp_path / "on").tobytes() == rows_of(tmp_path / "off").tobytes()
    losses = [[line["loss"] for line in log_of(tmp_path / name) if line["step"]] for name in ("on", "off")]
    assert losses[0] == losses[1]


def test_looking_leaves_a_streamed_datasets_rows_bit_identical(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    class Streamed(TextualInversionDataset):
        def __getitem__(self, i: int) -> dict[str, Any]:
            return super().__getitem__(i)

    def learn(name: str, **changes: Any) -> np.ndarray:
        recipe = make_recipe(folder=str(tmp_path / name), **changes)
        tokenizer = StableDiffusion.load(recipe.base).vocabularies["clip_l"].tokenizer
        tokenizer.add_tokens([TOKEN])
        data = Streamed(recipe.concepts[0].pictures, tokenizer, size=16, placeholder_token=TOKEN)
        list(train(recipe, dataset=data))
        return rows_of(tmp_path / name)

    assert learn("on", **LOOKING).tobytes() == learn("off").tobytes()


def test_two_processes_look_once_and_learn_the_same(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    together(make_recipe(batch_size=1, folder=str(tmp_path / "on"), **LOOKING), 2, tmp_path / "said")
    assert not list(tmp_path.glob("said-*"))
    together(make_recipe(batch_size=1, folder=str(tmp_path / "off")), 2, tmp_path / "said")
    assert rows_of(tmp_path / "on").tobytes() == rows_of(tmp_path / "off").tobytes()
    assert [line["step"] for line in log_of(tmp_path / "on")] == [0, 1, 2, 3, 4]
    assert len(list((tmp_path / "on" / "samples").iterdir())) == 3 + 1


# Pictures


def test_pictures_come_before_every_so_often_and_after(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    progress = list(train(make_recipe(steps="5", **LOOKING)))
    samples = tmp_path / "run" / "samples"
    assert sorted(path.name for path in samples.iterdir()) == [
        *(f"step-{step:06}.png" for step in (0, 2, 4, 5)),
        "strip.png",
    ]
    assert [p.pictures for p in progress] == [
        (),
        (samples / "step-000002.png",),
        (),
        (samples / "step-000004.png",),
        (samples / "step-000005.png",),
    ]
    with Image.open(samples / "step-000002.png") as grid:
        assert grid.size == (2 * 16 + 4, 2 * 16 + 4), "a line for each prompt, a column for each seed"
        assert grid.info == {
            "prompt": "\n".join(PROMPTS),
            "negative_prompt": f"the {TOKEN}",
            "seed": "5",
            "step": "2",
        }


def test_the_first_picture_is_the_initializers_and_the_last_the_learned_words(
    make_recipe: MakeRecipe, tmp_path: Path, base: Path
) -> None:
    list(train(make_recipe(**LOOKING)))
    family = load(BaseModel(str(base)))
    before = Concept(TOKEN, {e: v.initial_rows("toy", 1)[0] for e, v in family.vocabularies.items()})
    for step, word in ((0, before), (4, Concept.load(tmp_path / "run"))):
        [wanted] = generate(
            family, [word], PROMPTS[1:], negative_prompt=f"the {TOKEN}", sampling=Sampling(seed=6, steps=2)
        )
        with Image.open(tmp_path / "run" / "samples" / f"step-{step:06}.png") as grid:
            sampled = grid.convert("RGB").crop((20, 20, 36, 36))
        difference = np.abs(np.asarray(sampled, dtype=int) - np.asarray(wanted, dtype=int))
        assert difference.max() <= 1, "second prompt, second seed, whatever the batch"


def test_the_strip_shows_the_first_pictures_of_every_prompt(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(steps="20", **LOOKING)))
    with Image.open(tmp_path / "run" / "samples" / "strip.png") as strip:
        assert strip.size == (8 * (32 + 8) + 8, 2 * (30 + 32 + 8 + 22) + 8), "eight of eleven steps, two prompts"
        last = strip.crop((8 + 7 * 40, 8 + 30, 8 + 7 * 40 + 32, 8 + 30 + 32)).resize((16, 16), Image.Resampling.NEAREST)
    with Image.open(tmp_path / "run" / "samples" / "step-000020.png") as grid:
        assert last.tobytes() == grid.convert("RGB").crop((0, 0, 16, 16)).tobytes()


def test_every_sampler_samples(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    assert list(SAMPLERS) == list(get_args(Sampler))
    family = load(make_recipe().base)
    pictures = {
        sampler: generate(family, [], ["a toy"], sampling=Sampling(steps=4, sampler=sampler))[0].tobytes()
        for sampler in SAMPLERS
    }
    assert pictures["euler"] == pictures["ddim"], "the same step in other variables (Karras et al. 2022, app. C.3)"
    assert pictures["euler-a"] == pictures["ddpm"]
    assert len(set(pictures.values())) == len(SAMPLERS) - 2


def test_validation_steps_may_be_epochs(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    # Three pictures in batches of two are two steps an epoch.
    list(train(make_recipe(steps="5", repeats=1, **{**LOOKING, "validation_steps": "2 epochs"})))
    names = sorted(path.name for path in (tmp_path / "run" / "samples").glob("step-*"))
    assert names == ["step-000000.png", "step-000004.png", "step-000005.png"]


def test_a_prompt_without_the_word_or_with_too_many_is_named(
    make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = ["a photo of a cat", "a red " * 60 + TOKEN]
    with caplog.at_level(logging.WARNING, "pseudoword"):
        list(train(make_recipe(steps="1", **{**LOOKING, "validation_prompts": prompts})))
    assert f"The validation prompt 'a photo of a cat' does not hold {TOKEN}" in caplog.text
    assert f"Cut off at 77 tokens: {TOKEN} in 'a red" in caplog.text


def test_a_device_that_cannot_hold_the_pictures_takes_fewer_or_goes_without(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decode, most = StableDiffusion.decode, [1]

    def full(self: StableDiffusion, latents: torch.Tensor) -> list[Image.Image]:
        if len(latents) > most[0]:
            raise torch.OutOfMemoryError
        return decode(self, latents)

    monkeypatch.setattr(StableDiffusion, "decode", full)
    list(train(make_recipe(**LOOKING)))
    assert len(list((tmp_path / "run" / "samples").glob("step-*"))) == 3
    most[0] = 0
    with caplog.at_level(logging.WARNING, "pseudoword"):
        list(train(make_recipe(folder=str(tmp_path / "without"), **LOOKING)))
    assert "The device has not enough memory to sample a picture of 16 pixels; try a smaller resolution." in caplog.text
    assert rows_of(tmp_path / "without").tobytes() == rows_of(tmp_path / "run").tobytes()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"validation_prompts": "a cat"}, "validation_prompts must be a list, validation_prompts = "),
        ({"validation_prompts": ["a cat", " "]}, "A validation prompt is empty"),
        ({"num_validation_images": 0}, "num_validation_images must be at least 1, but is 0"),
        ({"validation_steps": "often"}, "validation_steps must be a positive number of steps or epochs"),
        ({"validation_steps": 0}, "validation_steps must be a positive number of steps or epochs"),
        ({"validation_sampler": "magic"}, "validation_sampler must be one of 'dpm\\+\\+'"),
        ({"validation_guidance_scale": float("nan")}, "validation_guidance_scale must be at least 0"),
        ({"validation_seed": -1}, "validation_seed must be between 0"),
        ({"loss_steps": -1}, "loss_steps must be at least 0"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(make_recipe: MakeRecipe, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        make_recipe(**wrong)


def test_more_denoising_steps_than_there_are_is_refused_before_training(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="Denoising steps must be between 1 and 1000, not 2000"):
        next(train(make_recipe(**{**LOOKING, "validation_sampling_steps": 2000})))


def test_what_a_sampler_cannot_do_is_said_before_training(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="The sampler 'unipc' cannot take 1000 steps on this base; try another"):
        next(train(make_recipe(**{**LOOKING, "validation_sampler": "unipc", "validation_sampling_steps": 1000})))


def test_a_prompt_of_several_lines_fits_the_strip(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(**{**LOOKING, "validation_prompts": [f"two\nlines of {TOKEN}"]})))
    assert (tmp_path / "run" / "samples" / "strip.png").is_file()


def test_a_finished_run_shows_the_prompts_that_it_is_resumed_with(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(**LOOKING)))
    list(train(make_recipe(**{**LOOKING, "validation_prompts": [f"the {TOKEN}"]}), resume="latest"))
    with Image.open(tmp_path / "run" / "samples" / "step-000004.png") as grid:
        assert grid.info["prompt"] == f"the {TOKEN}"


# The fixed-draw loss


def test_the_fixed_draw_loss_of_a_run_is_that_of_the_words_it_leaves(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(loss_steps=2, save_steps=2, steps="6")
    list(train(recipe))
    logged = {n["step"]: n["fixed_draw_loss"][TOKEN] for n in log_of(tmp_path / "run") if "fixed_draw_loss" in n}
    assert list(logged) == [0, 2, 4, 6]
    family = load(recipe.base)
    data = TextualInversionDataset(
        recipe.concepts[0].pictures, None, size=16, placeholder_token=TOKEN, center_crop=True
    )
    for step in (2, 4, 6):
        word = Concept.load(tmp_path / "run" / f"learned_embeds-steps-{step}.safetensors")
        assert fixed_draw_loss(family, word, data, num_draws=16, seed=7) == pytest.approx(logged[step], rel=1e-6)
    assert len(set(logged.values())) == 4


def script_of(losses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine find these fixed-draw losses, by the number of steps done."""
    monkeypatch.setattr(TorchEngine, "fixed_loss", lambda self, batches: {TOKEN: losses[self.step_number]})


def best_of(folder: Path) -> Concept:
    return Concept.load(folder / "learned_embeds-best.safetensors")


def test_the_best_step_is_kept_and_named(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script_of([0.5, 0.4, 0.2, 0.3, 0.2], monkeypatch)
    with caplog.at_level(logging.INFO, "pseudoword"):
        list(train(make_recipe(loss_steps=1, save_steps=1)))
    best, same = best_of(tmp_path / "run"), Concept.load(tmp_path / "run" / "learned_embeds-steps-2.safetensors")
    assert (best.steps, best.rows["clip_l"].tobytes()) == (2, same.rows["clip_l"].tobytes())
    assert "The fixed-draw loss was lowest after step 2 (0.2000); that word is in learned_embeds-best" in caplog.text


def test_a_word_that_only_gets_worse_was_best_before_training(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script_of([0.1, 0.2, 0.3, 0.4, 0.5], monkeypatch)
    with caplog.at_level(logging.INFO, "pseudoword"):
        list(train(make_recipe(loss_steps=1)))
    assert best_of(tmp_path / "run").steps == 0
    assert "The fixed-draw loss was lowest before training (0.1000)" in caplog.text


def test_a_loss_that_is_not_finite_is_never_the_best(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script_of([0.5, float("nan"), 0.4, float("inf"), 0.6], monkeypatch)
    list(train(make_recipe(loss_steps=1)))
    assert best_of(tmp_path / "run").steps == 2
    assert f"The fixed-draw loss of {TOKEN} after step 1 is nan." in caplog.text
    assert [line["step"] for line in log_of(tmp_path / "run") if "fixed_draw_loss" in line] == [0, 2, 4]


# After an interruption


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_resumed_run_leaves_the_same_files(make_recipe: MakeRecipe, tmp_path: Path, step: int) -> None:
    common = {"steps": "5", "checkpointing_steps": 2, "save_steps": 3, **LOOKING}
    list(train(make_recipe(folder=str(tmp_path / "straight"), **common)))
    broken = make_recipe(folder=str(tmp_path / "broken"), **common)
    stopped_after(broken, step)
    list(train(broken, resume="latest"))
    straight, resumed = files_of(tmp_path / "straight"), files_of(tmp_path / "broken")
    extra = {name for name in resumed if name.startswith(f"checkpoint-{step}/")} - straight.keys()
    assert {name: hash(content) for name, content in resumed.items() if name not in extra} == {
        name: hash(content) for name, content in straight.items()
    }
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "straight")


def test_a_resumed_run_knows_the_best_step(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_of([0.5, 0.1, 0.4, 0.3, 0.2], monkeypatch)
    recipe = make_recipe(loss_steps=1)
    stopped_after(recipe, 3)
    best = best_of(tmp_path / "run")
    (tmp_path / "run" / "learned_embeds-best.safetensors").unlink()
    list(train(recipe, resume="latest"))
    assert (best_of(tmp_path / "run").steps, best_of(tmp_path / "run").rows["clip_l"].tobytes()) == (
        1,
        best.rows["clip_l"].tobytes(),
    )


def test_a_run_resumed_from_further_back_sets_later_pictures_aside(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(checkpointing_steps=1, **LOOKING)
    list(train(recipe))
    next(train(recipe, resume="checkpoint-1"))
    aside = tmp_path / "run" / "earlier-1" / "samples"
    assert {path.name for path in aside.iterdir()} == {"step-000002.png", "step-000004.png"}
    left = sorted(path.name for path in (tmp_path / "run" / "samples").glob("step-*"))
    assert left == ["step-000000.png", "step-000002.png"], "what the resumed run has sampled again"


def test_a_resumed_run_may_look_at_something_else(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    stopped_after(make_recipe(**LOOKING), 3)
    other = {**LOOKING, "validation_prompts": [f"the {TOKEN}"], "num_validation_images": 3}
    list(train(make_recipe(**other), resume="latest"))
    with Image.open(tmp_path / "run" / "samples" / "step-000004.png") as grid:
        assert grid.size == (3 * 20 - 4, 16)
    assert not (tmp_path / "run" / "samples" / "strip.png").exists(), "one step is no strip"


def test_a_new_run_in_the_folder_sets_the_earlier_ones_pictures_aside(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(**LOOKING)))
    list(train(make_recipe(seed=8)))
    assert (tmp_path / "run" / "earlier-1" / "samples" / "strip.png").is_file()
    assert (tmp_path / "run" / "earlier-1" / "learned_embeds-best.safetensors").is_file()
    assert (tmp_path / "run" / "earlier-1" / "logs").is_dir()
    assert not (tmp_path / "run" / "samples").exists()
