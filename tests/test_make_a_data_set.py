"""What the page on data sets shows runs as printed, on a miniature where it names a real model."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pseudoword import Concept, cli
from pseudoword.data.folder import look
from pseudoword.recipe import Data

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "make-a-data-set.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    text = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


def files() -> dict[str, str]:
    """Return the files that the page shows, each under its name."""
    return dict(re.findall(r"^`([^`\n]+)`\n```text\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pictures that the page speaks of."""
    for folder in ("my-cat", "cut-outs"):
        (tmp_path / folder).mkdir()
    for i, name in enumerate(("beach.jpg", "sofa.jpg", "window.jpg")):
        values = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "my-cat" / name)
    Image.new("L", (60, 40), 255).save(tmp_path / "my-cat" / "beach-mask.png")
    Image.new("RGBA", (20, 20), (255, 0, 0, 128)).save(tmp_path / "cut-outs" / "0.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_page_runs(here: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    for name, text in files().items():
        (here / name).write_text(text, encoding="utf-8")
    assert set(files()) == {"templates.txt", "my-cat/beach.txt", "my-cat/metadata.jsonl"}
    assert len(commands()) >= 5
    for program, command, *words in commands():
        words = [str(base) if "/stable-diffusion" in word else word for word in words]
        short = ["--steps", "2"] if command == "train" else []
        assert program == "pseudoword"
        assert cli.main([command, *words, *short]) == 0, (command, capsys.readouterr().err)
        said = capsys.readouterr()
        assert "Training would start" in said.out or command == "train"
    assert Concept.load(here / "my-cat-run").steps == 2
    assert Concept.load(here / "captioned-run").steps == 2
    assert look(here / "my-cat", masks=True).masks, "the mask was one"


def test_every_option_that_the_page_names_is_one(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["check", "--help-all"])
    known = capsys.readouterr().out
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert len(named) > 12
    assert {option for option in named if option not in known} == set()


def test_the_page_s_numbers_are_the_code_s():
    assert Data().mask_outside == 0.1
    assert "Black still counts a tenth (`--mask-outside 0.1`)" in PAGE
    from pseudoword.data.captions import OBJECT_TEMPLATES
    from pseudoword.data.framing import buckets

    assert f'"a photo of a `<my-cat>`" and {len(OBJECT_TEMPLATES) - 1} more' in PAGE
    assert OBJECT_TEMPLATES[0] == "a photo of a {}"
    assert (576, 448) in buckets(512, 64)


def test_the_picture_of_the_page_is_drawn_by_the_example(here: Path, monkeypatch: pytest.MonkeyPatch):
    assert (ROOT / "docs" / "frames.png").is_file()
    monkeypatch.syspath_prepend(ROOT / "examples")
    sys.modules.pop("frames", None)
    import frames  # pyright: ignore[reportMissingImports]

    frames.main([str(here / "my-cat" / "beach.jpg"), str(here / "my-cat" / "sofa.jpg"), "--output", "drawn.png"])
    drawn, side = Image.open(here / "drawn.png"), frames.SIDE
    assert drawn.height > 2 * side
    assert drawn.width > 6 * side, "the picture, a crop, three crops, a bucket, a squashed one, and a mask"
