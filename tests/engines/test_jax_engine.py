"""The JAX engine against the torch engine: equal losses, gradients and words from one recipe; its own promises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from pseudoword import Concept, Recipe, cli, families, methods, train
from pseudoword.batch import Batch, Draw
from pseudoword.engines.jax_engine import JaxEngine
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.errors import RecipeError, TrainingStopped
from pseudoword.families import jax_cache
from pseudoword.families.sdxl import miniature as xl_miniature
from pseudoword.recipe import BaseModel, ConceptRecipe, EngineRecipe
from tests.miniatures import TOKEN, MakeRecipe, log_of, one_batch, rows_of, stopped_after

JAX = {"engine": "jax"}


@pytest.fixture(scope="session")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return xl_miniature.write(tmp_path_factory.mktemp("xl"))


def learned(recipe: Recipe) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Train, and return the log and the word's rows."""
    list(train(recipe))
    return log_of(Path(recipe.output.folder)), dict(Concept.load(recipe.output.folder).rows)


# Against torch


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": "50", "loss_steps": 10},
        {"model": "xl", "steps": "6", "loss_steps": 3},
        {"gradient_accumulation_steps": 2, "gradient_clip": 0.05, "num_vectors": 2, "adam_weight_decay": 0.01},
        {"loss_weighting": "min-snr=0.5", "loss_steps": 2, "augment": ("colour-jitter", "crop-jitter")},
        {
            "loss_weighting": "debiased",
            "prediction_type": "v_prediction",
            "augment": ("crop-jitter",),
            "augment_variants": 0,
        },
        pytest.param({"fit": "bucket", "resolution": 32, "gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_losses_and_words_are_those_of_torch(
    make_recipe: MakeRecipe, xl: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if changes.get("model") == "xl":
        changes = {**changes, "model": str(xl)}
    theirs, their_rows = learned(make_recipe(**changes, folder=str(tmp_path / "torch")))
    ours, our_rows = learned(make_recipe(**changes, **JAX))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for own, other in zip(ours, theirs, strict=True):
        assert own.get("loss", {}) == pytest.approx(other.get("loss", {}), rel=1e-4)
        assert own.get("fixed_draw_loss", {}) == pytest.approx(other.get("fixed_draw_loss", {}), rel=1e-4)
    for encoder, rows in their_rows.items():
        assert np.abs(our_rows[encoder] - rows).max() < 1e-4


def started(kind: Any, base: BaseModel, engine: str, method: str = "classic") -> Any:
    """Return an engine with a word taken up, and rows that are none of the vocabulary."""
    family = families.part(base.family, engine).FAMILY.load(base)
    rows = {}
    for seed, (encoder, vocabulary) in enumerate(family.vocabularies.items()):
        vocabulary.lend(TOKEN, 2)
        width = vocabulary.table.shape[1]
        rows[encoder] = 0.3 * np.random.default_rng(seed).standard_normal((2, width)).astype(np.float32)
    own = kind(EngineRecipe(engine=engine))
    own.prepare(family)
    own.start(family, methods.build(methods.OPTIONS[method]()), {TOKEN: rows})
    return own


@pytest.mark.parametrize("method", sorted(methods.METHODS))
@pytest.mark.parametrize(("kind", "masked"), [("sd", True), ("sdxl", False)])
def test_gradients_are_those_of_torch(base: Path, xl: Path, kind: str, masked: bool, method: str) -> None:
    where = BaseModel(str(base if kind == "sd" else xl), family=kind)
    torch_engine, own = (
        started(own, where, engine, method) for own, engine in ((TorchEngine, "torch"), (JaxEngine, "jax"))
    )
    batch, draw = one_batch(torch_engine.family, count=4)
    if masked:
        weight = np.random.default_rng(0).uniform(0.1, 1, (4, 8, 8)).astype(np.float32)
        batch = dataclasses.replace(batch, weight=weight)
    losses, [expected] = torch_engine._gradients([(batch, draw)])
    given = own._given(batch, draw, [4])
    devices = own.place.devices_for(4)
    found, [grads] = own._add(own._nothing(devices), *own._read(devices), given)
    assert np.asarray(found) == pytest.approx(losses.numpy(), rel=1e-5)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        reference = expected[name].numpy()
        assert np.abs(np.asarray(grad) - reference).max() < 1e-3 * np.abs(reference).max()


def test_a_run_goes_on_with_the_other_engine(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    common: dict[str, Any] = {"steps": "8", "learning_rate": 5e-4}
    whole = learned(make_recipe(**common, folder=str(tmp_path / "whole")))[1]
    stopped_after(make_recipe(**common, **JAX), 4)
    list(train(make_recipe(**common), resume="latest"))
    assert np.abs(rows_of(tmp_path / "run") - whole["clip_l"]).max() < 1e-4


# Its own promises


SPARED = pytest.param({"gradient_checkpointing": True, "mixed_precision": "bf16"}, marks=pytest.mark.slow)


@pytest.mark.parametrize("changes", [{}, SPARED])
def test_a_stopped_run_goes_on_bit_for_bit(make_recipe: MakeRecipe, tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {**changes, **JAX, "steps": "8", "loss_steps": 2}
    list(train(make_recipe(**changes, folder=str(tmp_path / "whole"))))
    stopped_after(make_recipe(**changes), 3)
    list(train(make_recipe(**changes), resume="latest"))
    assert rows_of(tmp_path / "whole").tobytes() == rows_of(tmp_path / "run").tobytes()
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "run")
    best = [tmp_path / run / "learned_embeds-best.safetensors" for run in ("whole", "run")]
    assert best[0].read_bytes() == best[1].read_bytes()


def test_in_bf16_it_learns_nearly_the_same(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    exact = learned(make_recipe(**JAX, steps="4", folder=str(tmp_path / "exact")))[0]
    half = learned(make_recipe(**JAX, steps="4", memory="low"))[0]
    for own, other in zip(half, exact, strict=True):
        assert own["loss"] == pytest.approx(other["loss"], rel=0.02)
    assert half != exact


def test_rows_are_fp32_and_the_base_stays_as_it_was(base: Path) -> None:
    own = started(JaxEngine, BaseModel(str(base), family="sd"), "jax")
    before = [np.array(array) for array in jax.tree.leaves(own.weights)]
    own.step([one_batch(own.family)], 0.01)
    assert all(np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(own.weights), strict=True))
    assert {str(array.dtype) for array in jax.tree.leaves((own.params, own.state))} == {"float32"}


# Many words


@pytest.fixture
def make_many(make_recipe: MakeRecipe, pictures: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Make a recipe of three concepts that differ in pictures, masks, shapes, vectors and properties."""
    others = tmp_path / "others"
    others.mkdir()
    for i, size in enumerate([(40, 20), (24, 24)]):
        values = np.random.default_rng(10 + i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(values).save(others / f"{i}.png")
    mask = np.zeros((40, 20), np.uint8)
    mask[:10] = 255
    Image.fromarray(mask).save(others / "0-mask.png")

    def make(**changes: Any) -> Recipe:
        concepts = (
            ConceptRecipe("<cat>", str(pictures), "cat"),
            ConceptRecipe("<dog>", str(others), "dog", num_vectors=3),
            ConceptRecipe("<style>", str(pictures), "red", property="style"),
        )
        return dataclasses.replace(make_recipe(**JAX, **changes), concepts=concepts)

    return make


def in_folder(recipe: Recipe, folder: Path) -> Recipe:
    return dataclasses.replace(recipe, output=dataclasses.replace(recipe.output, folder=str(folder)))


def word(run: Path, name: str) -> np.ndarray:
    return Concept.load(run / "words" / name).rows["clip_l"]


BUCKETS = pytest.param({"fit": "bucket", "resolution": 32, "gradient_clip": 0.1}, marks=pytest.mark.slow)


@pytest.mark.parametrize("changes", [{}, BUCKETS])
def test_every_word_learns_what_it_would_learn_alone(
    make_many: Callable[..., Recipe], tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = make_many(**changes, loss_steps=2)
    list(train(recipe))
    together = {line["step"]: line for line in log_of(tmp_path / "run")}
    for concept, name in zip(recipe.concepts, ("cat", "dog", "style"), strict=True):
        alone = tmp_path / f"alone-{name}"
        list(train(in_folder(recipe.alone(concept), alone)))
        assert np.abs(rows_of(alone) - word(tmp_path / "run", name)).max() < 1e-5
        for line in log_of(alone):
            for kind in ("loss", "fixed_draw_loss"):
                if kind in line:
                    own = line[kind][concept.token]
                    assert together[line["step"]][kind][concept.token] == pytest.approx(own, rel=1e-4)


def spoil(monkeypatch: pytest.MonkeyPatch, steps: dict[int, list[int]]) -> None:
    """Let pictures of these concepts be infinite in these steps (from 0)."""
    given = JaxEngine._given

    def spoiled(self: JaxEngine, batch: Batch, draw: Draw, counts: Any) -> Any:
        bad = np.isin(batch.concept, steps.get(self.step_number, []))[:, None, None, None]
        return given(self, dataclasses.replace(batch, std=np.where(bad, np.float32(np.inf), batch.std)), draw, counts)

    monkeypatch.setattr(JaxEngine, "_given", spoiled)


def test_a_loss_that_is_not_finite_is_none_of_the_others(
    make_many: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    list(train(make_many(folder=str(tmp_path / "well"))))
    spoil(monkeypatch, {2: [1], 4: [0, 2]})
    steps = list(train(make_many()))
    assert [list(p.loss) for p in steps] == [["<cat>", "<dog>", "<style>"]] * 2 + [["<cat>", "<style>"]] * 2
    assert "<dog> is given up because the loss of step 3 is not finite; the other concepts go on." in caplog.text
    for name in ("cat", "style"):
        assert np.abs(word(tmp_path / "well", name) - word(tmp_path / "run", name)).max() < 1e-5
    with pytest.raises(TrainingStopped, match="the loss of step 5 is not finite"):
        list(train(make_many(steps="6")))


# Memory


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let the device run out of memory with more than `most` pictures, once it has taken the sums to add to."""
    start = JaxEngine.start

    def started(self: JaxEngine, *given: Any) -> None:
        start(self, *given)
        add = self._add

        def small(totals: Any, *read: Any) -> Any:
            made = add(totals, *read)
            if len(read[-1]["concept"]) > most:
                raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte.")
            return made

        self._add = small

    monkeypatch.setattr(JaxEngine, "start", started)


def test_out_of_memory_halves_what_is_taken_at_once_and_keeps_the_step(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    common: dict[str, Any] = {**JAX, "steps": "3", "batch_size": 2, "learning_rate": 5e-4, "loss_steps": 3}
    free = learned(make_recipe(**common, folder=str(tmp_path / "free")))
    short_of_memory(monkeypatch, 1)
    short = learned(make_recipe(**common))
    assert np.abs(free[1]["clip_l"] - short[1]["clip_l"]).max() < 1e-5
    for own, other in zip(short[0], free[0], strict=True):
        assert own.get("fixed_draw_loss", {}) == pytest.approx(other.get("fixed_draw_loss", {}), rel=1e-5)
    assert "Out of memory with 2 pictures at once; going on with 1, the same step." in caplog.text
    short_of_memory(monkeypatch, 0)
    with pytest.raises(TrainingStopped, match=r"not enough memory for one picture\. Try memory 'low'"):
        list(train(make_recipe(**JAX, folder=str(tmp_path / "none"))))


# Pictures along the way, and what is refused


def test_validation_pictures_are_sampled_and_the_command_makes_more(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looking: dict[str, Any] = {"validation_prompts": [f"a {TOKEN}"], "validation_steps": "2"}
    looking |= {"num_validation_images": 2, "validation_sampling_steps": 2}
    list(train(make_recipe(**JAX, **looking)))
    list(train(make_recipe(**JAX, folder=str(tmp_path / "plain"))))
    assert rows_of(tmp_path / "run").tobytes() == rows_of(tmp_path / "plain").tobytes(), "looking learns nothing"
    samples = tmp_path / "run" / "samples"
    assert {path.name for path in samples.iterdir()} >= {"step-000000.png", "step-000004.png", "strip.png"}
    output = tmp_path / "picture.png"
    own = ["--engine", "jax", "--model", make_recipe().base.model, "--embeds", str(tmp_path / "run")]
    words = ["generate", *own, "--num-inference-steps", "2", "--prompt", f"a {TOKEN}", "--output", str(output)]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.strip().endswith(str(output))
    assert output.is_file()
    assert cli.main([*words, "--sampler", "heun"]) == 1
    assert "error: The JAX engine samples with ddim or dpm++, not with 'heun'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mixed_precision": "fp16"}, r"^The JAX engine does not compute in fp16; take mixed_precision 'bf16', or the"),
        ({"memory": "lowest"}, r"^The JAX engine does not hold weights in 8 bits; take memory 'low', or the torch"),
        ({"xformers": True}, r"^xformers is PyTorch's attention, which the JAX engine cannot use; leave the option"),
        ({"compile": "off"}, r"^compile is 'off', but the JAX engine always compiles; leave the option out\.$"),
        ({"full_pipeline": True}, r"^full_pipeline writes a pipeline of diffusers', .* but engine is 'jax'; leave"),
    ],
)
def test_what_only_torch_has_is_refused(make_recipe: MakeRecipe, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        list(train(make_recipe(**JAX, **changes)))


def test_what_is_compiled_is_kept_in_the_users_cache_where_it_can_be_written(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load = families.part("sd", "jax").FAMILY.load
    before = jax.config.values[jax_cache.CACHE]
    assert before, "the tests have one of their own"
    load(BaseModel(str(base)))
    assert jax.config.values[jax_cache.CACHE] == before
    try:
        jax.config.update(jax_cache.CACHE, None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        load(BaseModel(str(base)))
        assert jax.config.values[jax_cache.CACHE] == str(tmp_path / "pseudoword" / "jax")
        (tmp_path / "file").touch()
        jax.config.update(jax_cache.CACHE, str(tmp_path / "file"))
        load(BaseModel(str(base)))
        assert "What is compiled is not kept, so every run compiles anew: cannot write to" in caplog.text
        assert not jax.config.values["jax_enable_compilation_cache"]
    finally:
        jax.config.update(jax_cache.CACHE, before)
        jax.config.update("jax_enable_compilation_cache", True)
