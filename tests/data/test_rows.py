"""Datasets on the Hub, through a stand-in for the calls of the `datasets` library, which is large."""

from __future__ import annotations

import hashlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pseudoword import train
from pseudoword.data import rows
from pseudoword.data.pictures import ConceptPictures
from pseudoword.errors import CaptionError, PicturesError
from pseudoword.recipe import ConceptRecipe, Data
from tests.miniatures import TOKEN, MakeRecipe, rows_of


def png(seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


class StandIn(ModuleType):
    """The calls of `datasets` 3 that we make, over tables given as columns of values."""

    def __init__(self, tables: dict[tuple[str, str], dict[str, list[Any]]]) -> None:
        super().__init__("datasets")
        self.tables = tables
        self.asked: list[str] = []

    class Image:
        def __init__(self, decode: bool = True) -> None:
            self.decode, self.dtype = decode, "PIL.Image.Image"

    class Value:
        def __init__(self, dtype: str) -> None:
            self.dtype = dtype

    class Table:
        def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
            self.columns, self.features = columns, features

        def cast_column(self, name: str, feature: Any) -> StandIn.Table:
            return StandIn.Table(self.columns, {**self.features, name: feature})

        def __iter__(self) -> Iterator[dict[str, Any]]:
            for values in zip(*self.columns.values(), strict=True):
                row = dict(zip(self.columns, values, strict=True))
                for name, feature in self.features.items():
                    if isinstance(feature, StandIn.Image) and feature.decode and row[name]:
                        row[name] = Image.open(io.BytesIO(row[name]["bytes"]))
                yield row

    def load_dataset(self, name: str, *, split: str) -> StandIn.Table:
        if (name, split) not in self.tables:
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub or cannot be accessed.\nMore words.")
        columns = self.tables[name, split]
        kinds = {str: "string", int: "int64", float: "float32"}
        features = {
            name: self.Image() if isinstance(values[0], dict) else self.Value(kinds[type(values[0])])
            for name, values in columns.items()
        }
        return self.Table(columns, features)


Give = Callable[..., None]


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Give:
    """Let 'owner/cats' be a dataset of these columns."""
    monkeypatch.chdir(tmp_path)

    def given(split: str = "train", **columns: list[Any]) -> None:
        monkeypatch.setitem(sys.modules, "datasets", StandIn({("owner/cats", split): columns}))

    return given


def pictures(**data: Any) -> ConceptPictures:
    return ConceptPictures(ConceptRecipe(TOKEN, "owner/cats", "toy"), Data(**data))


CELLS = [{"bytes": png(i), "path": f"{i}.png"} for i in range(3)]


def test_pictures_and_captions_are_found_by_the_types_of_columns(give: Give):
    give(label=[1, 2, 3], picture=CELLS, words=["a {}", "the {}\nred", f"{TOKEN}"])
    own = pictures(captions="files")
    assert [p.sha256 for p in own.pictures] == [hashlib.sha256(cell["bytes"]).hexdigest() for cell in CELLS]
    assert own.captions.texts == [[f"a {TOKEN}"], [f"the {TOKEN} red"], [TOKEN]]
    assert own.facts()[0].startswith("row-0 ")


def test_of_several_texts_the_usual_name_is_the_caption(give: Give):
    give(image=CELLS, author=["x"] * 3, caption=["a {}"] * 3, prompt=["b {}"] * 3)
    assert pictures(captions="files").captions.texts[0] == [f"a {TOKEN}"]
    give(image=CELLS, author=["x"] * 3, source=["y"] * 3)
    with pytest.raises(CaptionError, match=r"^There is no caption for row-0"):
        pictures(captions="files")


def test_a_file_that_a_row_names_is_read(give: Give, tmp_path: Path):
    (tmp_path / "x.png").write_bytes(png(0))
    give(image=[{"bytes": None, "path": str(tmp_path / "x.png")}])
    assert len(pictures().pictures) == 1


def test_rows_without_a_picture_are_named(give: Give, caplog: pytest.LogCaptureFixture):
    give(image=[CELLS[0], {"bytes": b"nothing", "path": None}, {"bytes": None, "path": None}])
    assert len(pictures().pictures) == 1
    assert caplog.messages == ["Not used from owner/cats: row-1 (not a picture), row-2 (zero bytes)"]


def test_a_split_is_asked_for(give: Give):
    give("train[:2]", image=CELLS[:2])
    assert len(pictures(split="train[:2]").pictures) == 2
    with pytest.raises(
        PicturesError,
        match=r"^There is no folder 'owner/cats', and as a dataset it cannot be loaded: Dataset 'owner/cats' does.*\.$",
    ):
        pictures()


def test_a_table_without_pictures_is_refused(give: Give):
    give(text=["a {}"])
    with pytest.raises(PicturesError, match=r"^The dataset 'owner/cats' has no column of pictures: it has text\.$"):
        pictures()
    give(image=[{"bytes": b"", "path": None}])
    with pytest.raises(
        PicturesError, match=r"^No picture in the column 'image' of the dataset 'owner/cats', .*: row-0 \("
    ):
        pictures()


def test_captions_that_are_not_used_are_mentioned(give: Give, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "pseudoword")
    give(image=CELLS, text=["a {}"] * 3)
    pictures()
    assert caplog.messages[0].startswith("There are captions (the column 'text', …), but templates are used")


def test_a_dataset_teaches_what_its_pictures_in_a_folder_teach(give: Give, make_recipe: MakeRecipe, tmp_path: Path):
    give(image=CELLS)
    (tmp_path / "files").mkdir()
    for i in range(3):
        (tmp_path / "files" / f"row-{i}").write_bytes(png(i))
    list(train(make_recipe(pictures="owner/cats", folder=str(tmp_path / "a"))))
    list(train(make_recipe(pictures=str(tmp_path / "files"), folder=str(tmp_path / "b"))))
    assert np.array_equal(rows_of(tmp_path / "a"), rows_of(tmp_path / "b"))


def test_a_folder_here_comes_before_a_dataset(give: Give, tmp_path: Path):
    assert rows.is_dataset("owner/cats")
    (tmp_path / "owner" / "cats").mkdir(parents=True)
    assert not rows.is_dataset("owner/cats")
    assert not any(map(rows.is_dataset, ["cats", "a/b/c", "./cats", "/cats", "../cats", "cats/", "~/cats"]))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        PicturesError,
        match=r"^There is no folder 'owner/cats'; if it is a dataset .*: pip install 'pseudoword\[datasets\]",
    ):
        pictures()
