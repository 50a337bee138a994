"""Many words in one run: each learns what it would alone, in a folder of its own; one that fails is left out."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from PIL import Image

from pseudoword import Concept, cli, train
from pseudoword.batch import Batch
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.errors import RecipeError, RunError, TrainingStopped
from pseudoword.families.sdxl import miniature as xl_miniature
from pseudoword.recipe import ConceptRecipe, Recipe
from tests.miniatures import MakeRecipe, log_of, stopped_after


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Two pictures of other shapes than the first concept's, one of them masked."""
    folder = tmp_path / "others"
    folder.mkdir()
    for i, size in enumerate([(40, 20), (24, 24)]):
        values = np.random.default_rng(10 + i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
    mask = np.zeros((40, 20), np.uint8)
    mask[:10] = 255
    Image.fromarray(mask).save(folder / "0-mask.png")
    return folder


@pytest.fixture
def make_many(make_recipe: MakeRecipe, pictures: Path, others: Path) -> Callable[..., Recipe]:
    """Make a recipe of three concepts that differ in pictures, vectors, properties and initializers."""

    def make(**changes: Any) -> Recipe:
        recipe = make_recipe(**changes)
        concepts = (
            ConceptRecipe("<cat>", str(pictures), "cat"),
            ConceptRecipe("<dog>", str(others), "dog", num_vectors=3),
            ConceptRecipe("<style>", str(pictures), "red", property="style"),
        )
        return dataclasses.replace(recipe, concepts=concepts)

    return make


def in_folder(recipe: Recipe, folder: Path) -> Recipe:
    return dataclasses.replace(recipe, output=dataclasses.replace(recipe.output, folder=str(folder)))


def word(run: Path, name: str) -> Concept:
    return Concept.load(run / "words" / name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fit": "bucket", "resolution": 32},
        {"gradient_accumulation_steps": 2, "gradient_clip": 0.1},
        {"pictures_at_once": 4},
        {"batch_size": 8},
    ],
)
def test_every_word_learns_what_it_would_learn_alone(
    make_many: Callable[..., Recipe], tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = make_many(loss_steps=2, **changes)
    list(train(recipe))
    together = {line["step"]: line for line in log_of(tmp_path / "run")}
    for concept, name in zip(recipe.concepts, ("cat", "dog", "style"), strict=True):
        alone = tmp_path / f"alone-{name}"
        list(train(in_folder(recipe.alone(concept), alone)))
        own, found = Concept.load(alone), word(tmp_path / "run", name)
        assert np.allclose(own.rows["clip_l"], found.rows["clip_l"], rtol=0, atol=1e-5)
        assert (own.token, own.property, own.steps) == (found.token, found.property, found.steps)
        for line in log_of(alone):
            for kind in ("loss", "fixed_draw_loss"):
                if kind in line:
                    assert together[line["step"]][kind][concept.token] == pytest.approx(
                        line[kind][concept.token], rel=1e-4
                    )


def test_words_of_a_base_with_two_text_encoders(make_many: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_many(model=str(xl_miniature.write(tmp_path / "xl")), steps="2")
    list(train(recipe))
    list(train(in_folder(recipe.alone(recipe.concepts[1]), tmp_path / "alone")))
    own, found = Concept.load(tmp_path / "alone"), word(tmp_path / "run", "dog")
    assert all(np.allclose(own.rows[name], found.rows[name], rtol=0, atol=1e-5) for name in ("clip_l", "clip_g"))


def test_a_step_sees_all_words_in_one_pass(
    make_many: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[list[int]] = []
    loss = TorchEngine._loss

    def noted(self: TorchEngine, params: Any, batch: Batch, *more: Any) -> Any:
        seen.append(batch.concept.tolist())
        return loss(self, params, batch, *more)

    monkeypatch.setattr(TorchEngine, "_loss", noted)
    list(train(make_many(steps="2")))
    assert seen == [[0, 0, 1, 1, 2, 2]] * 2


# Folders


def test_each_word_has_a_folder_like_a_runs_own(
    make_many: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_many(
        loss_steps=2,
        save_steps=2,
        validation_prompts=["a photo of {}", "<cat> beside a toy"],
        num_validation_images=1,
        validation_steps="2",
        validation_sampling_steps=2,
    )
    steps = list(train(recipe))
    assert len(steps[1].pictures) == 3
    words = tmp_path / "run" / "words"
    assert sorted(path.name for path in words.iterdir()) == ["cat", "dog", "style"]
    for name, token in (("cat", "<cat>"), ("dog", "<dog>"), ("style", "<style>")):
        left = {path.name for path in (words / name).iterdir()}
        wanted = {"learned_embeds.safetensors", "learned_embeds-best.safetensors", "learned_embeds-steps-2.safetensors"}
        assert left >= {*wanted, "token_identifier.txt", "type_of_concept.txt", "exports", "samples", "README.md"}
        assert (words / name / "token_identifier.txt").read_text() == token
        assert Recipe.read(words / name / "recipe.toml").concepts[0].token == token
        assert token in (words / name / "README.md").read_text()
        assert (words / name / "samples" / "strip.png").is_file()
    with (
        Image.open(words / "cat" / "samples" / "step-000004.png") as cat,
        Image.open(words / "dog" / "samples" / "step-000004.png") as dog,
    ):
        assert (cat.info["prompt"], dog.info["prompt"]) == ("a photo of <cat>\n<cat> beside a toy", "a photo of <dog>")
    assert cli.main(["inspect", str(words / "dog")]) == 0
    assert "<dog>" in capsys.readouterr().out


def test_words_whose_files_would_have_one_name_are_told_apart(make_many: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_many(steps="1")
    cat, dog, style = recipe.concepts
    same = (cat, dataclasses.replace(dog, token="[cat]"), dataclasses.replace(style, token="<CAT>"))
    list(train(dataclasses.replace(recipe, concepts=same)))
    found = {path.name: Concept.load(path).token for path in (tmp_path / "run" / "words").iterdir()}
    assert found == {"cat": "<cat>", "cat-2": "[cat]", "CAT-3": "<CAT>"}


def test_a_new_run_sets_the_earlier_ones_words_aside(make_many: Callable[..., Recipe], tmp_path: Path) -> None:
    list(train(make_many(steps="1")))
    before = word(tmp_path / "run", "cat").rows["clip_l"]
    list(train(make_many(steps="1", seed=8)))
    assert np.array_equal(word(tmp_path / "run" / "earlier-1", "cat").rows["clip_l"], before)
    assert not np.array_equal(word(tmp_path / "run", "cat").rows["clip_l"], before)


# Resuming


def test_a_stopped_run_goes_on_bit_for_bit(make_many: Callable[..., Recipe], tmp_path: Path) -> None:
    changes = {"steps": "6", "loss_steps": 2}
    list(train(make_many(**changes, folder=str(tmp_path / "whole"))))
    stopped_after(make_many(**changes), 3)
    list(train(make_many(**changes), resume="latest"))
    for name in ("cat", "dog", "style"):
        one, other = word(tmp_path / "whole", name), word(tmp_path / "run", name)
        assert one.rows["clip_l"].tobytes() == other.rows["clip_l"].tobytes()
        best = [tmp_path / run / "words" / name / "learned_embeds-best.safetensors" for run in ("whole", "run")]
        assert best[0].read_bytes() == best[1].read_bytes()


def test_a_run_of_other_words_is_another_run(make_many: Callable[..., Recipe]) -> None:
    recipe = make_many()
    list(train(recipe))
    with pytest.raises(RunError, match=r"concepts\.2\.token was '<style>' and is None"):
        list(train(dataclasses.replace(recipe, concepts=recipe.concepts[:2]), resume="latest"))


# Failing


def test_a_concept_without_pictures_is_left_out(
    make_many: Callable[..., Recipe], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_many(checkpointing_steps=2)
    cat, dog, style = recipe.concepts
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = dataclasses.replace(recipe, concepts=(cat, dataclasses.replace(dog, pictures=str(empty)), style))
    [*_, last] = train(in_folder(broken, tmp_path / "broken"))
    assert list(last.failed) == ["<dog>"]
    assert "<dog> is left out, and the others are learned: " in caplog.text
    list(train(dataclasses.replace(recipe, concepts=(cat, style))))
    for name in ("cat", "style"):
        one, other = word(tmp_path / "run", name), word(tmp_path / "broken", name)
        assert one.rows["clip_l"].tobytes() == other.rows["clip_l"].tobytes()
    assert not (tmp_path / "broken" / "words" / "dog" / "learned_embeds.safetensors").exists()
    # Mended meanwhile, it stays out: the others' run would be another one.
    list(train(in_folder(dataclasses.replace(recipe), tmp_path / "broken"), resume="checkpoint-2"))
    assert not (tmp_path / "broken" / "words" / "dog" / "learned_embeds.safetensors").exists()


@pytest.mark.parametrize("spoiled", ["initializer", "vectors", "token"])
def test_whatever_is_wrong_with_a_concept_the_others_are_learned(
    make_many: Callable[..., Recipe], tmp_path: Path, spoiled: str
) -> None:
    recipe = make_many(steps="1")
    cat, dog, style = recipe.concepts
    change = {"initializer": {"initializer": "gone.pt"}, "vectors": {"num_vectors": 80}, "token": {"token": "toy"}}
    concepts = (cat, dataclasses.replace(dog, **change[spoiled]), style)
    [last] = train(dataclasses.replace(recipe, concepts=concepts))
    assert list(last.failed) == [concepts[1].token]
    list(train(in_folder(dataclasses.replace(recipe, concepts=(cat, style)), tmp_path / "without")))
    for name in ("cat", "style"):
        one, other = word(tmp_path / "run", name), word(tmp_path / "without", name)
        assert one.rows["clip_l"].tobytes() == other.rows["clip_l"].tobytes()


def test_where_no_concept_can_be_learned_it_says_why(make_many: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_many()
    gone = tuple(dataclasses.replace(own, pictures=str(tmp_path / "gone")) for own in recipe.concepts)
    with pytest.raises(RecipeError, match=r"^None of the 3 concepts can be learned: There is no folder .*gone"):
        list(train(dataclasses.replace(recipe, concepts=gone)))


def spoil(monkeypatch: pytest.MonkeyPatch, steps: dict[int, list[int]]) -> None:
    """Let pictures of these concepts be infinite in these steps (from 0)."""
    loss = TorchEngine._loss

    def spoiled(self: TorchEngine, params: Any, batch: Batch, *more: Any) -> Any:
        bad = np.isin(batch.concept, steps.get(self.step_number, []))[:, None, None, None]
        return loss(self, params, dataclasses.replace(batch, std=np.where(bad, np.float32(np.inf), batch.std)), *more)

    monkeypatch.setattr(TorchEngine, "_loss", spoiled)


@pytest.mark.parametrize("at_once", [0, 1])
def test_a_loss_that_is_not_finite_is_none_of_the_others(
    make_many: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at_once: int,
) -> None:
    list(train(make_many(pictures_at_once=at_once, folder=str(tmp_path / "well"))))
    spoil(monkeypatch, {2: [1]})
    steps = list(train(make_many(pictures_at_once=at_once, save_steps=1)))
    assert [list(p.loss) for p in steps] == [["<cat>", "<dog>", "<style>"]] * 2 + [["<cat>", "<style>"]] * 2
    assert "<dog> is given up because the loss of step 3 is not finite; the other concepts go on." in caplog.text
    assert steps[-1].failed == {"<dog>": "the loss of step 3 is not finite"}
    for name in ("cat", "style"):
        well, other = word(tmp_path / "well", name), word(tmp_path / "run", name)
        assert np.allclose(well.rows["clip_l"], other.rows["clip_l"], rtol=0, atol=1e-5)
    left = {path.name for path in (tmp_path / "run" / "words" / "dog").iterdir()}
    assert "learned_embeds-steps-2.safetensors" in left
    assert not {"learned_embeds.safetensors", "learned_embeds-steps-3.safetensors"} & left


def test_a_run_goes_on_without_what_had_been_given_up(
    make_many: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {1: [0]})
    list(train(make_many(steps="6", folder=str(tmp_path / "whole"))))
    stopped_after(make_many(steps="6"), 4)
    monkeypatch.undo()
    [*_, last] = train(make_many(steps="6"), resume="latest")
    assert list(last.failed) == ["<cat>"]
    for name in ("dog", "style"):
        one, other = word(tmp_path / "whole", name), word(tmp_path / "run", name)
        assert one.rows["clip_l"].tobytes() == other.rows["clip_l"].tobytes()


def test_when_the_last_ones_fail_the_run_stops(
    make_many: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {1: [0], 2: [1, 2]})
    with pytest.raises(TrainingStopped, match="the loss of step 3 is not finite"):
        list(train(make_many()))


# The command


def test_the_command_trains_a_recipe_of_several_concepts(
    make_many: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_many(steps="2")
    path = tmp_path / "many.toml"
    path.write_text(tomli_w.dumps(recipe.to_dict()))
    assert cli.main(["train", "--recipe", str(path), "--steps", "1"]) == 0
    assert f"3 words are in {tmp_path / 'run' / 'words'}." in capsys.readouterr().out
    assert cli.main(["train", "--recipe", str(path), "--token", "<other>"]) == 1
    assert "has 3 concepts, so options of one, such as --token, cannot say which" in capsys.readouterr().err
    assert cli.main(["check", "--recipe", str(path), "--json"]) == 0
    assert [told["token"] for told in json.loads(capsys.readouterr().out)] == ["<cat>", "<dog>", "<style>"]
    assert cli.main(["sweep", "--recipe", str(path), "--vary", "learning_rate=0.1,0.2", "--output", "x"]) == 1
    assert "has 3 concepts, but a sweep trains words one by one" in capsys.readouterr().err
    values = recipe.to_dict()
    values["concepts"][1]["pictures"] = str(tmp_path / "gone")
    path.write_text(tomli_w.dumps(values))
    assert cli.main(["train", "--recipe", str(path)]) == 1
    told = capsys.readouterr()
    assert f"2 words are in {tmp_path / 'run' / 'words'}." in told.out
    assert "error: <dog> was not learned: There is no folder" in told.err
    assert cli.main(["check", "--recipe", str(path)]) == 1


def test_threads_prepare_what_comes_next_and_let_errors_through() -> None:
    from pseudoword.data.lessons import ahead

    def numbers() -> Any:
        yield from range(5)
        raise ValueError("no more")

    found = []
    with pytest.raises(ValueError, match="no more"):
        found.extend(ahead(numbers()))
    made = ahead(iter(range(100)))
    assert next(made) == 0
    made.close()
    assert list(ahead(iter([]))) == []


def test_other_words_in_captions_stay_plain_text(
    make_many: Callable[..., Recipe], tmp_path: Path, others: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A caption of one word that happens to name another would otherwise teach that one too."""
    captioned = tmp_path / "captioned"
    captioned.mkdir()
    Image.new("RGB", (24, 24), "red").save(captioned / "0.png")
    (captioned / "0.txt").write_text("{} beside <dog>")
    for name in ("0", "1"):
        (others / f"{name}.txt").write_text("a {}")
    recipe = make_many(captions="files", steps="2")
    cat, dog, _ = recipe.concepts
    both = dataclasses.replace(recipe, concepts=(dataclasses.replace(cat, pictures=str(captioned)), dog))
    with caplog.at_level(logging.INFO):
        list(train(both))
    list(train(in_folder(both.alone(dog), tmp_path / "alone")))
    own, found = Concept.load(tmp_path / "alone"), word(tmp_path / "run", "dog")
    assert np.allclose(own.rows["clip_l"], found.rows["clip_l"], rtol=0, atol=1e-5)
