"""A folder of pictures: what is used, what is passed over, and what is named with its reason."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from pseudoword.data import folder
from pseudoword.errors import PicturesError


def picture(path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def truncated(path: Path) -> Path:
    picture(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_pictures_are_found_by_name_with_the_hash_of_their_bytes(tmp_path: Path):
    for name in ("b.png", "a.JPG", "c.webp", "d.bmp", "e.gif", "f.tiff", "G.JPEG"):
        picture(tmp_path / name)
    found = folder.scan(tmp_path)
    assert [p.path.name for p in found] == ["G.JPEG", "a.JPG", "b.png", "c.webp", "d.bmp", "e.gif", "f.tiff"]
    assert all(p.sha256 == hashlib.sha256(p.path.read_bytes()).hexdigest() for p in found)
    assert folder.scan(str(tmp_path)) == found


def test_what_decodes_is_a_picture_whatever_its_name(tmp_path: Path):
    picture(tmp_path / "a.png").rename(tmp_path / "no extension")
    assert [p.path.name for p in folder.scan(tmp_path)] == ["no extension"]


def test_hidden_files_and_subfolders_are_passed_over_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG, "pseudoword")
    picture(tmp_path / "a.png")
    picture(tmp_path / ".hidden.png")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "more").mkdir()
    picture(tmp_path / "more" / "b.png")
    (tmp_path / "folder.png").mkdir()
    assert [p.path.name for p in folder.scan(tmp_path)] == ["a.png"]
    assert not caplog.records


def test_files_that_are_no_use_are_named_once_with_their_reasons(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    picture(tmp_path / "a.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("a cat")
    (tmp_path / "page.jpg").write_text("<html></html>")
    truncated(tmp_path / "half.jpg")
    truncated(tmp_path / "half.png")
    assert [p.path.name for p in folder.scan(tmp_path)] == ["a.png"]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith(f"Not used from {tmp_path}: empty.png (zero bytes), half.jpg (")
    assert re.search(
        r"half\.jpg \([^()]*truncated[^()]*\), half\.png \([^()]*truncated[^()]*\)", message, re.IGNORECASE
    )
    assert message.endswith("notes.txt (not a picture), page.jpg (not a picture)")


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(folder.Unusable, match=r"^too many pixels to be safe$"):
        folder.read(picture(tmp_path / "a.png"))


def test_folders_inside_are_read_on_request_and_hidden_ones_never(tmp_path: Path):
    for name in ("b", "b/c", ".cache/huggingface"):
        (tmp_path / name).mkdir(parents=True)
        picture(tmp_path / name / "0.png")
    (tmp_path / "b" / "round").symlink_to(tmp_path)
    picture(tmp_path / "a.png")
    assert [p.path.name for p in folder.scan(tmp_path)] == ["a.png"]
    found = [p.path.relative_to(tmp_path).as_posix() for p in folder.scan(tmp_path, recursive=True)]
    assert found == ["a.png", "b/0.png", "b/c/0.png"]


def test_a_plugin_that_is_installed_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "a.png").rename(tmp_path / "phone.HEIC")
    (tmp_path / "broken.heif").write_bytes(b"nothing")
    opened: list[bool] = []
    plugin = ModuleType("pillow_heif")
    plugin.__dict__["register_heif_opener"] = lambda: opened.append(True)
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    found = folder.look(tmp_path)
    assert [p.path.name for p in found.pictures] == ["phone.HEIC"]
    assert found.skipped == [(tmp_path / "broken.heif", "not a picture")], "the plugin is there, so it is not missing"
    assert opened
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert folder.look(tmp_path).skipped == [(tmp_path / "broken.heif", "needs pip install pillow-heif")]


def test_the_same_pixels_are_named_whatever_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    picture(tmp_path / "a.png")
    Image.open(tmp_path / "a.png").save(tmp_path / "copy.bmp")
    Image.open(tmp_path / "a.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    assert len(folder.scan(tmp_path)) == 3, "named, not left out: some mean it"
    assert [r.getMessage() for r in caplog.records] == ["The same picture: a.png, copy.bmp"]


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(PicturesError, match=r"^There is no folder '.*nowhere'; give the folder that holds your pict"):
        folder.scan(tmp_path / "nowhere")
    with pytest.raises(PicturesError, match=r"^'.*a\.png' is a file, not a folder"):
        folder.scan(picture(tmp_path / "a.png"))


def test_a_folder_without_a_picture_is_refused_saying_what_is_there(tmp_path: Path):
    with pytest.raises(
        PicturesError, match=r"^No picture in '.*': no files\. Put three to six pictures of the concept"
    ):
        folder.scan(tmp_path)
    (tmp_path / "notes.txt").write_text("a cat")
    (tmp_path / "x.png").touch()
    with pytest.raises(
        PicturesError, match=r"^No picture in '.*': only notes\.txt \(not a picture\), x\.png \(zero byt"
    ):
        folder.scan(tmp_path)


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "cat").mkdir()
    picture(tmp_path / "cat" / "a.png")
    assert len(folder.scan("~/cat")) == 1
