"""The toybox says that it draws only its own world, where pictures are not of it, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pseudoword import Recipe, cli, train
from pseudoword.data import folder
from pseudoword.toybox import BASES, limits, suite
from pseudoword.toybox.words import words


def test_the_number_of_words_is_told_as_it_is_and_in_the_readme(pictures: Path):
    warning = limits.overstepped(folder.look(pictures).pictures) or ""
    assert f"its own world of {len(words())} words" in warning
    assert "3 of 3 pictures" in warning
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"{len(words())} words" in readme


def test_pictures_of_the_world_are_known_by_their_pixels(tmp_path: Path):
    place = suite.write(suite.NAMED["toadstool"], tmp_path / "toadstool")
    (place / "4.png").unlink()  # some of them are enough
    assert limits.overstepped(folder.look(place).pictures) is None
    for more in ([], ["--held-out"]):
        drawn = tmp_path / f"drawn{len(more)}"
        assert cli.main(["toybox", "render", "--output", str(drawn), "--count", "2", *more]) == 0
        assert limits.overstepped(folder.look(drawn).pictures) is None
    Image.new("RGB", (64, 64), "red").save(place / "12.png")  # the size and a name alone are none
    assert "1 of 5 pictures" in (limits.overstepped(folder.look(place).pictures) or "")


def test_the_base_is_known_by_its_name_and_its_folder(tmp_path: Path):
    assert limits.is_toybox("toybox")
    assert limits.is_toybox(str(BASES["toybox"]))
    assert not limits.is_toybox(str(tmp_path))


def test_training_says_it_once(pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    recipe = suite.recipe(suite.NAMED["fir"], tmp_path / "run", "<fir>", steps=1)
    told = [recipe, _with_pictures(recipe, pictures)]
    counts = []
    for one in told:
        caplog.clear()
        assert list(train(one))
        counts.append(sum("The toybox draws only its own world" in record.getMessage() for record in caplog.records))
    assert counts == [0, 1]


def _with_pictures(recipe: Recipe, pictures: Path) -> Recipe:
    import dataclasses

    concept = dataclasses.replace(recipe.concepts[0], pictures=str(pictures))
    output = dataclasses.replace(recipe.output, folder=f"{recipe.output.folder}-2")
    return dataclasses.replace(recipe, concepts=(concept,), output=output)
