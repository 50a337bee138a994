"""Files and folders that are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pseudoword import cli, disk, formats
from pseudoword.concept import Concept
from pseudoword.errors import PseudowordError, RecipeError, RunError
from pseudoword.progress import Progress
from pseudoword.run import Run


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
    assert Path("made-0.3/comfyui/toy-ti.safetensors").is_file()


# What another program holds open, as virus scanners and synchronised folders do on Windows


def sharing_violation(code: int = 32) -> PermissionError:
    error = PermissionError(13, "The process cannot access the file because it is being used by another process")
    error.winerror = code  # pyright: ignore[reportAttributeAccessIssue]
    return error


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let waiting take no time; return the seconds that were waited, one by one."""
    waited: list[float] = []
    fake = SimpleNamespace(monotonic=lambda: sum(waited), sleep=waited.append)
    monkeypatch.setattr(disk, "time", fake)
    return waited


def held(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, times: int, code: int = 32) -> list[str]:
    """Let a way to change the disk fail as often as said for each path; return what it was asked for."""
    works, asked = getattr(owner, name), list[str]()

    def changed(path: Path, *args: Any, **options: Any) -> Any:
        writes = name != "open" or "w" in str(args) or "a" in str(args)
        if writes:
            asked.append(str(path))
            if asked.count(str(path)) <= times:
                raise sharing_violation(code)
        return works(path, *args, **options)

    monkeypatch.setattr(owner, name, changed)
    return asked


WAYS = [(Path, "replace"), (Path, "open"), (shutil, "rmtree"), (Path, "unlink")]


@pytest.mark.parametrize(("owner", "name"), WAYS[:2], ids=["replace", "open"])
@pytest.mark.parametrize("code", [5, 32, 33])
def test_a_file_that_is_held_open_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float], owner: Any, name: str, code: int
):
    disk.write(tmp_path / "a", "old")
    with monkeypatch.context() as patched:
        held(patched, owner, name, 2, code)
        disk.write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert len(clock) == 2
    assert listing(tmp_path) == ["a"]


def test_one_that_is_never_let_go_of_is_a_sentence_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
):
    disk.write(tmp_path / "a", "old")
    with monkeypatch.context() as patched:
        held(patched, Path, "replace", 10**6)
        message = (
            r"^Another program holds '.*a' open, such as .*\. Close it, .* again; a run goes on with --resume latest\.$"
        )
        with pytest.raises(RunError, match=message), disk.writing(tmp_path):
            disk.write(tmp_path / "a", "new")
    assert 4 < sum(clock) <= disk.PATIENCE
    assert (tmp_path / "a").read_text() == "old"
    assert listing(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_what_does_not_pass_by_waiting_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float], error: OSError
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(error), match=error.strerror):
        disk.write(tmp_path / "a", "new")
    assert clock == []


def test_a_folder_that_cannot_take_the_others_place_leaves_it_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
):
    path = tmp_path / "kept"
    disk.write_folder(path, lambda folder: fill(folder, "a"))
    replace = Path.replace

    def fail(source: Path, to: Path) -> Path:
        if to == path and "old" not in source.name:
            raise sharing_violation()
        return replace(source, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(disk.FileInUse):
            disk.write_folder(path, lambda folder: fill(folder, "b"))
    assert listing(tmp_path) == ["kept", "kept/a"]
    assert clock


def written(folder: Path) -> Callable[[], None]:
    """Return what a run does to its folder: checkpoints, log, words, what is set aside, what is deleted."""
    word = Concept("<cat-toy>", {"clip_l": np.ones((1, 768), np.float32)})

    def work() -> None:
        run = Run(folder)
        for step in (1, 2, 2):
            run.keep(step, {"rows": np.ones(3)}, {})
            run.report(Progress(step, 2, {"<cat-toy>": 0.5}, 1e-3, 0.1))
        run.rotate(1)
        formats.write_folder(word, folder)
        formats.write_exports(word, folder, ".bin")
        formats.write_exports(word, folder, ".safetensors")
        run.set_aside([folder / "log.jsonl"])
        run.close()

    return work


@pytest.mark.parametrize(("owner", "name"), WAYS, ids=[name for _, name in WAYS])
def test_nothing_that_a_run_does_to_its_folder_minds_files_that_are_held_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float], owner: Any, name: str
):
    written(tmp_path / "plain")()
    with monkeypatch.context() as patched:
        asked = held(patched, owner, name, 1)
        written(tmp_path / "held")()
    assert asked
    assert clock
    assert listing(tmp_path / "held") == listing(tmp_path / "plain")


@pytest.mark.parametrize(("owner", "name"), WAYS[:2], ids=["replace", "open"])
def test_a_run_whose_folder_is_held_for_good_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float], owner: Any, name: str
):
    held(monkeypatch, owner, name, 10**6)
    with pytest.raises(PseudowordError, match="Another program holds"):
        written(tmp_path / "run")()
