"""Many words in one run: each learns what it would learn alone, in a folder of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pseudoword import Concept, cli, train
from pseudoword.errors import RunError
from pseudoword.families.sdxl import miniature as xl_miniature
from pseudoword.recipe import Recipe
from tests.miniatures import in_folder, log_of, stopped_after, word


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


def test_in_bf16_the_fixed_draw_losses_are_those_of_words_learned_alone(
    make_many: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Rounding to 8 bits of mantissa depends on the batch, so rows differ; what they are worth does not."""
    recipe = make_many(mixed_precision="bf16", steps="10", loss_steps=10)
    [*_, together] = train(recipe)
    for concept in recipe.concepts:
        [*_, alone] = train(in_folder(recipe.alone(concept), tmp_path / f"alone-{concept.initializer}"))
        assert together.fixed_draw_loss[concept.token] == pytest.approx(alone.fixed_draw_loss[concept.token], rel=0.01)


def test_words_of_a_base_with_two_text_encoders(make_many: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_many(model=str(xl_miniature.write(tmp_path / "xl")), steps="2")
    list(train(recipe))
    list(train(in_folder(recipe.alone(recipe.concepts[1]), tmp_path / "alone")))
    own, found = Concept.load(tmp_path / "alone"), word(tmp_path / "run", "dog")
    assert all(np.allclose(own.rows[name], found.rows[name], rtol=0, atol=1e-5) for name in ("clip_l", "clip_g"))


def test_a_step_sees_all_words_in_one_pass(make_many: Callable[..., Recipe], passes: list[list[int]]) -> None:
    list(train(make_many(steps="2")))
    assert passes == [[0, 0, 1, 1, 2, 2]] * 2


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
    own = tmp_path / "run" / "words"
    own.mkdir(parents=True)
    (own / "notes.txt").write_text("mine")
    list(train(make_many(steps="1").alone(make_many().concepts[0])))
    assert (own / "notes.txt").exists(), "a folder of one's own stays"
    list(train(make_many(steps="1")))
    before = word(tmp_path / "run", "cat").rows["clip_l"]
    list(train(make_many(steps="1", seed=8)))
    assert np.array_equal(word(tmp_path / "run" / "earlier-2", "cat").rows["clip_l"], before)
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
