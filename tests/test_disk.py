"""Files and folders that are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest

from pseudoword import Concept, cli, disk
from pseudoword.errors import RecipeError


class PowerCutError(Exception):
    pass


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_a_file_is_written_replaced_and_returned(tmp_path: Path):
    path = tmp_path / "a.txt"
    assert disk.write(path, "grün\n") == path
    assert path.read_bytes() == "grün\n".encode()
    disk.write(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert listing(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
):
    path = tmp_path / "a.txt"
    disk.write(path, "old")

    def fail(*_: object) -> None:
        assert path.read_text() == "old"
        raise PowerCutError

    monkeypatch.setattr(*((os, "fsync", fail) if at == "fsync" else (Path, "replace", fail)))
    with pytest.raises(PowerCutError):
        disk.write(path, "new")
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["a.txt"]


def test_a_file_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (happened.append("fsync"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (happened.append("replace"), replace(self, to)))
    disk.write(tmp_path / "a", "x")
    assert happened[:2] == ["fsync", "replace"]


def test_a_temporary_name_begins_so_that_it_can_be_told_and_is_in_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Path] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (seen.append(self), replace(self, to)))
    disk.write(tmp_path / "a", "x")
    [temporary] = seen
    assert temporary.parent == tmp_path
    assert temporary.name.startswith(disk.TEMPORARY)


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(name)


def test_a_folder_appears_when_it_is_complete(tmp_path: Path):
    path = tmp_path / "kept"

    def make(folder: Path) -> None:
        assert not path.exists()
        fill(folder, "a", "b")
        assert not path.exists()

    assert disk.write_folder(path, make) == path
    assert listing(tmp_path) == ["kept", "kept/a", "kept/b"]


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path):
    path = tmp_path / "kept"
    disk.write_folder(path, lambda folder: fill(folder, "a", "b"))
    disk.write_folder(path, lambda folder: fill(folder, "c"))
    assert listing(tmp_path) == ["kept", "kept/c"]


def test_a_failure_while_filling_a_folder_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "kept"
    disk.write_folder(path, lambda folder: fill(folder, "a"))

    def fail(folder: Path) -> None:
        fill(folder, "c")
        raise PowerCutError

    with pytest.raises(PowerCutError):
        disk.write_folder(path, fail)
    with pytest.raises(PowerCutError):
        disk.write_folder(tmp_path / "new", fail)
    assert listing(tmp_path) == ["kept", "kept/a"]


def test_what_an_earlier_death_left_under_the_temporary_names_is_in_nobodys_way(tmp_path: Path):
    for name in (f"{disk.TEMPORARY}{os.getpid()}-kept", f"{disk.TEMPORARY}old-kept", "kept"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, "left")
    disk.write_folder(tmp_path / "kept", lambda folder: fill(folder, "c"))
    assert listing(tmp_path) == ["kept", "kept/c"]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("sw5-high0.3", False),
        ("model.v1-5", False),
        ("x.html", False),
        ("x.png", True),
        ("X.PNG", True),
        ("there.png", False),
        ("file", True),
    ],
)
def test_the_disk_says_what_an_output_is_and_only_then_a_known_ending(name: str, answer: bool, tmp_path: Path) -> None:
    (tmp_path / "there.png").mkdir()
    (tmp_path / "file").touch()
    assert disk.means_file(tmp_path / name, (".png",)) is answer


@pytest.mark.parametrize("name", ["sw5-high0.3", "x.html", "there.png"])
def test_any_name_can_become_a_folder_but_that_of_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "there.png").mkdir()
    disk.check_folder(tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=r"must be a folder, but '.*file' is a file"):
        disk.check_folder(tmp_path / "file")


def test_commands_make_folders_with_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["toybox", "render", "--count", "2", "--output", "world-0.3"]) == 0
    assert sorted(path.name for path in Path("world-0.3").iterdir()) == ["0.png", "1.png"]
    Concept("<toy>", {"clip_l": np.ones((1, 768))}).save("toy.safetensors")
    assert cli.main(["convert", "toy.safetensors", "--to", "comfyui", "--output", "made-0.3"]) == 0
    assert Path("made-0.3/comfyui/toy.safetensors").is_file()


WAYS = ("replace", "unlink", "open", "rmtree")


def held(times: int, monkeypatch: pytest.MonkeyPatch, winerror: int | None, ways: Collection[str] = WAYS) -> list[str]:
    """Let these ways to change files fail so many times each, as Windows does while another program holds a file."""
    tries: list[str] = []

    def failing(name: str, kind: object, real: Callable[..., object]) -> None:
        def action(*args: object, **options: object) -> object:
            if name == "open" and args[1:2] == ("rb",):
                return real(*args, **options)
            tries.append(name)
            if tries.count(name) <= times:
                error = PermissionError(13, "Access is denied")
                error.winerror = winerror  # pyright: ignore[reportAttributeAccessIssue]
                raise error
            return real(*args, **options)

        monkeypatch.setattr(kind, name, action)

    for way in ways:
        owner = shutil if way == "rmtree" else Path
        failing(way, owner, getattr(owner, way))
    monkeypatch.setattr(disk.time, "sleep", lambda seconds: None)
    return tries


@pytest.mark.parametrize("winerror", disk.BUSY)
def test_a_file_that_another_program_holds_is_tried_again(
    winerror: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    tries = held(2, monkeypatch, winerror)
    disk.write(tmp_path / "file", "text")
    disk.rename(tmp_path / "file", tmp_path / "other")
    disk.remove(tmp_path / "old")
    assert listing(tmp_path) == ["other"]
    assert (tmp_path / "other").read_bytes() == b"text"
    assert all(tries.count(way) > 2 for way in WAYS)


def test_a_file_that_stays_held_is_told_in_a_sentence_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.write(tmp_path / "file", "old")
    with monkeypatch.context() as patch:
        tries = held(10**6, patch, 32, ["replace"])
        with pytest.raises(PermissionError, match="another program holds it, such as a virus scanner"):
            disk.write(tmp_path / "file", "new")
    assert len(tries) == len(disk.DELAYS) + 1
    assert listing(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_file_that_may_not_be_written_at_all_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = held(10**6, monkeypatch, None)
    with pytest.raises(PermissionError, match="Access is denied"):
        disk.rename(tmp_path / "a", tmp_path / "b")
    assert tries == ["replace"]
