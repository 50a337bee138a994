"""Training runs on the miniature: what changes, what must not, and what a run leaves behind."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import torch
from accelerate.utils import DistributedType
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

from pseudoword import Concept, Progress, Recipe, disk, families, methods, train
from pseudoword.contracts import NonFiniteLoss
from pseudoword.engines import torch_engine
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.errors import (
    CaptionError,
    FormatError,
    PicturesError,
    RecipeError,
    RunError,
    TokenError,
    TrainingStopped,
)
from pseudoword.families.sd import miniature
from pseudoword.families.sd.torch import StableDiffusion
from tests.miniatures import TOKEN, MakeRecipe, hashes, one_batch, rows_of


def test_a_run_yields_its_steps_and_leaves_the_guides_files(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(steps="4", save_steps=2, checkpointing_steps=2)
    steps = list(train(recipe))
    assert [p.step for p in steps] == [1, 2, 3, 4]
    assert all(isinstance(p, Progress) and p.steps == 4 and p.seconds > 0 for p in steps)
    assert all(set(p.loss) == {TOKEN} and np.isfinite(p.loss[TOKEN]) for p in steps)
    folder = Path(recipe.output.folder)
    left = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    assert left == {
        "recipe.toml",
        "log.jsonl",
        "learned_embeds.safetensors",
        "learned_embeds.bin",
        "learned_embeds-steps-2.safetensors",
        "learned_embeds-steps-4.safetensors",
        "token_identifier.txt",
        "type_of_concept.txt",
        "README.md",
        "exports/cat-toy.safetensors",
        "checkpoint-2/state.safetensors",
        "checkpoint-2/checkpoint.json",
        "checkpoint-4/state.safetensors",
        "checkpoint-4/checkpoint.json",
    }
    assert {p.name for p in steps[1].saved} == {"learned_embeds-steps-2.safetensors", "checkpoint-2"}
    assert (folder / "token_identifier.txt").read_text() == TOKEN
    assert (folder / "type_of_concept.txt").read_text() == "object"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in log] == [dict(p.loss) for p in steps]
    found = dataclasses.replace(recipe, base=dataclasses.replace(recipe.base, family="sd"))
    assert Recipe.read(folder / "recipe.toml") == found
    card = (folder / "README.md").read_text()
    assert TOKEN in card
    assert "load_textual_inversion" in card
    word = Concept.load(folder)
    assert (word.token, word.steps, word.property, word.num_vectors) == (TOKEN, 4, "object", 1)
    assert "/" not in word.base, "a path says more about a disk than about the base"


def test_the_base_is_bit_identical_after_a_run_and_only_rows_get_gradients(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[StableDiffusion] = []
    load = StableDiffusion.load.__func__
    monkeypatch.setattr(StableDiffusion, "load", classmethod(lambda c, b: loaded.append(load(c, b)) or loaded[-1]))
    recipe = make_recipe(num_vectors=2, gradient_checkpointing=True)
    run = train(recipe)
    next(run)
    [family] = loaded
    during = hashes(family)
    list(run)
    assert hashes(family) == during == hashes(load(StableDiffusion, recipe.base))
    assert all(p.grad is None and not p.requires_grad for m in family.modules.values() for p in m.parameters())


def test_the_same_seed_gives_the_same_bits_and_another_does_not(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    rows = []
    for i, seed in enumerate((7, 7, 8)):
        recipe = make_recipe(seed=seed, folder=str(tmp_path / str(i)))
        list(train(recipe))
        rows.append(rows_of(recipe.output.folder))
    assert rows[0].tobytes() == rows[1].tobytes() != rows[2].tobytes()


def test_without_a_seed_one_is_drawn_and_written_down(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    first = make_recipe(seed=None)
    list(train(first))
    seed = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["training"]["seed"]
    again = make_recipe(seed=seed, folder=str(tmp_path / "again"))
    list(train(again))
    assert rows_of(tmp_path / "run").tobytes() == rows_of(tmp_path / "again").tobytes()


def test_batch_4_equals_4_accumulated_batches_of_1(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    rows = []
    for batch, accumulated in ((4, 1), (1, 4), (2, 2)):
        folder = str(tmp_path / f"{batch}x{accumulated}")
        sizes = {"batch_size": batch, "gradient_accumulation_steps": accumulated}
        list(train(make_recipe(**sizes, steps="20", learning_rate=5e-4, folder=folder)))
        rows.append(rows_of(folder))
    assert np.abs(rows[0] - rows[1]).max() < 1e-5
    assert np.abs(rows[0] - rows[2]).max() < 1e-5


def test_scale_lr_counts_the_users_own_numbers(make_recipe: MakeRecipe) -> None:
    sizes = {"batch_size": 2, "gradient_accumulation_steps": 3, "steps": "1", "lr_scheduler": "constant"}
    [progress] = train(make_recipe(**sizes, learning_rate=1e-3, scale_lr=True))
    assert progress.lr == pytest.approx(6e-3)


def test_gradient_checkpointing_changes_nothing(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(folder=str(tmp_path / "plain"))))
    list(train(make_recipe(folder=str(tmp_path / "checkpointed"), gradient_checkpointing=True)))
    assert np.abs(rows_of(tmp_path / "plain") - rows_of(tmp_path / "checkpointed")).max() < 1e-6


def test_gradient_clip_shortens_what_is_longer(make_recipe: MakeRecipe) -> None:
    # With a huge epsilon AdamW's first step is lr * gradient / epsilon, so rows show the gradient's length.
    def moved(clip: float | None) -> float:
        engine, family = started_engine(make_recipe(adam_epsilon=1e6), row=1.0, gradient_clip=clip)
        engine.step([one_batch(family)], 1e9)
        [rows] = engine.rows()[TOKEN].values()
        return float(np.linalg.norm(rows - 1.0)) / 1e3

    free = moved(None)
    assert moved(free / 4) == pytest.approx(free / 4, rel=1e-3)
    assert moved(free * 4) == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_the_rows_in_fp32(make_recipe: MakeRecipe, tmp_path: Path, precision: str) -> None:
    list(train(make_recipe(folder=str(tmp_path / "full"))))
    list(train(make_recipe(folder=str(tmp_path / "half"), mixed_precision=precision)))
    full, half = rows_of(tmp_path / "full"), rows_of(tmp_path / "half")
    assert half.dtype == np.float32
    assert not np.array_equal(half, half.astype(np.float16).astype(np.float32))
    apart = np.abs(full - half)
    assert 0 < np.quantile(apart, 0.9) < 2e-3
    assert apart.max() < 0.08  # where a gradient is near zero its sign may differ, and Adam goes 4 steps of 0.01 by it


def test_a_base_saved_in_fp16_trains_and_generates(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    from pseudoword.generate import Sampling, generate, load
    from pseudoword.recipe import BaseModel

    folder = miniature.write(tmp_path / "half", dtype=torch.float16)
    list(train(make_recipe(model=str(folder))))
    word = Concept.load(tmp_path / "run")
    [picture] = generate(load(BaseModel(str(folder))), [word], [f"a {TOKEN}"], sampling=Sampling(steps=2))
    assert picture.size == (16, 16)


def test_v_prediction_is_another_target(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    velocity = miniature.write(tmp_path / "v", prediction_type="v_prediction")
    [configured] = train(make_recipe(model=str(velocity), steps="1", folder=str(tmp_path / "1")))
    [overridden] = train(make_recipe(prediction_type="v_prediction", steps="1", folder=str(tmp_path / "2")))
    [epsilon] = train(make_recipe(steps="1", folder=str(tmp_path / "3")))
    assert configured.loss == overridden.loss != epsilon.loss


def test_clip_skip_and_style_and_fit_change_what_is_learned(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    changes = [{}, {"clip_skip": 1}, {"property": "style"}, {"fit": "squash"}, {"flip_p": 0.0}, {"initializer": "cat"}]
    learned = set()
    for i, change in enumerate(changes):
        list(train(make_recipe(**change, folder=str(tmp_path / str(i)))))
        learned.add(rows_of(tmp_path / str(i)).tobytes())
    assert len(learned) == len(changes)
    assert Concept.load(tmp_path / "2").property == "style"
    assert (tmp_path / "2" / "type_of_concept.txt").read_text() == "style"


def test_a_word_goes_on_from_an_earlier_file(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(num_vectors=2)))
    earlier = tmp_path / "run" / "learned_embeds.safetensors"
    more = make_recipe(num_vectors=2, initializer=str(earlier), learning_rate=0.0, folder=str(tmp_path / "more"))
    list(train(more))
    assert rows_of(tmp_path / "more").tobytes() == rows_of(tmp_path / "run").tobytes()
    with pytest.raises(RecipeError, match=r"has 2 vector\(s\), but num_vectors is 3"):
        list(train(make_recipe(num_vectors=3, initializer=str(earlier), folder=str(tmp_path / "other"))))


def test_a_length_in_epochs(make_recipe: MakeRecipe) -> None:
    # 3 pictures x 4 repeats = 12 items, 6 batches of 2, 3 steps of 2 batches, twice
    recipe = make_recipe(steps="2 epochs", repeats=4, batch_size=2, gradient_accumulation_steps=2)
    assert [p.steps for p in train(recipe)] == [6] * 6


def test_only_bin_files_without_safe_serialization(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(safe_serialization=False, save_steps=2)))
    files = {p.name for p in (tmp_path / "run").rglob("*") if p.is_file() and "checkpoint-" not in str(p)}
    assert not [name for name in files if name.endswith(".safetensors")]
    assert {"learned_embeds.bin", "learned_embeds-steps-2.bin", "cat-toy.bin"} <= files
    assert "safetensors" not in (tmp_path / "run" / "README.md").read_text()


def test_a_full_pipeline_loads_plainly_with_the_word_inside(
    make_recipe: MakeRecipe, base: Path, tmp_path: Path
) -> None:
    own = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    own.scheduler = EulerDiscreteScheduler.from_config(own.scheduler.config)
    own.save_pretrained(tmp_path / "euler")
    list(train(make_recipe(full_pipeline=True, num_vectors=2, model=str(tmp_path / "euler"))))
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "run")
    assert isinstance(pipeline.scheduler, EulerDiscreteScheduler), "the base's own scheduler"
    ids = pipeline.tokenizer.convert_tokens_to_ids([TOKEN, f"{TOKEN}_1"])
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert np.array_equal(table[ids].detach().numpy(), rows_of(tmp_path / "run"))
    plain = pipeline(f"a photo of {TOKEN} {TOKEN}_1", num_inference_steps=2, output_type="np").images
    assert np.isfinite(plain).all()


def test_diffusers_loads_the_folder_also_as_a_negative_word(
    make_recipe: MakeRecipe, base: Path, tmp_path: Path
) -> None:
    list(train(make_recipe(num_vectors=2, learning_rate=0.3)))
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.load_textual_inversion(tmp_path / "run")

    def draw(prompt: str, negative: str) -> np.ndarray:
        seed = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 2, "output_type": "np", "generator": seed}
        return pipeline(prompt, negative_prompt=negative, **options).images

    plain = draw("a photo of a toy", "")
    assert not np.array_equal(plain, draw(f"a photo of a {TOKEN}", ""))
    assert not np.array_equal(plain, draw("a photo of a toy", TOKEN))


@pytest.mark.parametrize(("one", "other"), [("no", "bf16"), ("bf16", "no")])
def test_many_runs_in_one_process_do_not_touch_each_other(
    make_recipe: MakeRecipe, tmp_path: Path, one: str, other: str
) -> None:
    list(train(make_recipe(folder=str(tmp_path / "alone"), mixed_precision=one)))
    first = train(make_recipe(folder=str(tmp_path / "first"), mixed_precision=one))
    second = train(make_recipe(folder=str(tmp_path / "second"), token="<other>", mixed_precision=other))
    for _ in zip(first, second, strict=True):
        pass
    assert rows_of(tmp_path / "first").tobytes() == rows_of(tmp_path / "alone").tobytes()


def test_a_folder_gives_out_no_word_of_an_earlier_run(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(lr_scheduler="constant")))
    list(train(make_recipe(lr_scheduler="constant", steps="6", safe_serialization=False), resume="latest"))
    word = Concept.load(tmp_path / "run")
    checkpoint = safetensors.numpy.load_file(tmp_path / "run" / "checkpoint-6" / "state.safetensors")
    assert np.array_equal(word.rows["clip_l"], checkpoint["params.0.clip_l"])
    assert [p.name for p in (tmp_path / "run" / "exports").iterdir()] == ["cat-toy.bin"]
    begun = train(make_recipe(token="<other>"))
    next(begun)
    begun.close()
    with pytest.raises(FormatError, match="holds no learned_embeds"):
        Concept.load(tmp_path / "run")
    assert Concept.load(tmp_path / "run" / "earlier-1").token == TOKEN


# What stops a run


def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    denoise = StableDiffusion.denoise

    def poisoned(self: StableDiffusion, noised: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        poisoned.calls += 1
        return denoise(self, noised, *rest) * (float("nan") if poisoned.calls > 3 else 1.0)

    poisoned.calls = 0
    monkeypatch.setattr(StableDiffusion, "denoise", poisoned)
    with pytest.raises(TrainingStopped, match=r"step 4 .*checkpoint-3.*lower learning rate.*gradient_clip"):
        list(train(make_recipe(steps="6", checkpointing_steps=1, folder=str(tmp_path / "nan"))))
    monkeypatch.setattr(StableDiffusion, "denoise", denoise)
    resumed = [p.step for p in train(make_recipe(steps="6", folder=str(tmp_path / "nan")), resume="latest")]
    assert resumed == [4, 5, 6]
    list(train(make_recipe(steps="6", folder=str(tmp_path / "straight"))))
    assert rows_of(tmp_path / "nan").tobytes() == rows_of(tmp_path / "straight").tobytes()


def started_engine(
    recipe: Recipe, row: float, gradient_clip: float | None = None
) -> tuple[TorchEngine, StableDiffusion]:
    engine, family = TorchEngine(recipe.engine, gradient_clip), StableDiffusion.load(recipe.base)
    family.vocabularies["clip_l"].lend(TOKEN, 1)
    engine.prepare(family)
    rows = {TOKEN: {"clip_l": np.full((1, 32), row, dtype=np.float32)}}
    engine.start(family, methods.build(recipe.method), rows)
    return engine, family


def test_a_loss_that_is_not_finite_changes_nothing(make_recipe: MakeRecipe) -> None:
    engine, family = started_engine(make_recipe(), row=1.0)
    before = engine.snapshot()
    batch, draw = one_batch(family)
    poisoned = dataclasses.replace(batch, std=np.full_like(batch.std, np.inf))
    with pytest.raises(NonFiniteLoss, match="step 1"):
        engine.step([(poisoned, draw)], 1e-3)
    after = engine.snapshot()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert engine.step_number == 0


def test_fp16_overflow_halves_the_scale_and_tries_the_same_draws_again(make_recipe: MakeRecipe) -> None:
    engine, family = started_engine(make_recipe(mixed_precision="fp16"), row=1.0)
    engine.loss_scale = 2.0**40
    loss = engine.step([one_batch(family)], 1e-3)
    assert np.isfinite(loss[TOKEN])
    assert engine.loss_scale < 2.0**40
    assert engine.step_number == 1


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"token": "toy"}, TokenError, "already in the vocabulary"),
        ({"initializer": "missing.safetensors"}, FormatError, "no file"),
        ({"resolution": 17}, RecipeError, "multiple of 2"),
        ({"model": "owner/not-there"}, RecipeError, "no folder 'owner/not-there'"),
        ({"model": "./not/there"}, RecipeError, r"There is no folder '\./not/there'"),
        ({"xformers": True}, RecipeError, "xformers"),
        ({"num_vectors": 80}, CaptionError, "longer than the 77 tokens"),
        ({"clip_skip": 3}, RecipeError, "has only 3 layers"),
        ({"pictures": "no-such-folder"}, PicturesError, "There is no folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    make_recipe: MakeRecipe, tmp_path: Path, changes: dict, error: type, sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        list(train(make_recipe(**changes)))
    assert not (tmp_path / "run" / "recipe.toml").exists(), "nothing began"


def test_a_folder_in_use_is_refused(make_recipe: MakeRecipe) -> None:
    first = train(make_recipe())
    next(first)
    with pytest.raises(RunError, match="in use by another run"):
        next(train(make_recipe()))
    first.close()
    assert [p.step for p in train(make_recipe())] == [1, 2, 3, 4]


def test_a_tpu_is_refused_by_name(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    place = SimpleNamespace(distributed_type=DistributedType.XLA)
    monkeypatch.setattr(torch_engine, "PartialState", lambda **options: place)
    with pytest.raises(RecipeError, match=r"not run on TPUs \(the JAX engine does\); use a GPU or CPU"):
        next(train(make_recipe()))


def test_recipe_and_family_tables_say_what_there_is(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="There is no engine 'tpu'; the engines are jax, torch"):
        next(train(make_recipe(engine="tpu")))
    recipe = make_recipe()
    other = dataclasses.replace(recipe, base=dataclasses.replace(recipe.base, family="sd9"))
    with pytest.raises(RecipeError, match="There is no family 'sd9'; the families are sd, sdxl"):
        next(train(other))
    assert families.part("sd", "torch").FAMILY is StableDiffusion


def test_a_folder_that_another_program_holds_ends_the_run_in_a_sentence_and_loses_nothing(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(steps="4", checkpointing_steps=1)
    replace = Path.replace

    def held(path: Path, to: Path) -> Path:
        if Path(to).name == "checkpoint-3":
            error = PermissionError(13, "Access is denied")
            error.winerror = 5  # pyright: ignore[reportAttributeAccessIssue]
            raise error
        return replace(path, to)

    monkeypatch.setattr(disk, "PATIENCE", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", held)
        with pytest.raises(
            RunError, match=r"^Another program holds .*checkpoint-3.* a run goes on with --resume latest\.$"
        ):
            list(train(recipe))
    assert [progress.step for progress in train(recipe, resume="latest")] == [3, 4]
