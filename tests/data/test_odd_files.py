"""A folder of every odd and bad file we could think of: a run uses the good ones and names each bad one."""

from __future__ import annotations

import io
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from pseudoword import train
from pseudoword.data import folder, images
from tests.miniatures import MakeRecipe

SIDE = 24


def made(mode: str = "RGB") -> Image.Image:
    """Return a picture of noise in some mode."""
    noise = np.random.default_rng(len(mode)).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    image = Image.fromarray(noise)
    if mode == "F":
        return Image.fromarray(noise[..., 0].astype(np.float32))
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    return image.convert("RGB").convert(mode) if mode not in ("RGBA", "LA") else image.convert(mode)


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    content = io.BytesIO()
    (image or made()).save(content, kind, **options)
    return content.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", exif=exif)


def animated(kind: str) -> bytes:
    return encoded(kind, save_all=True, append_images=[made("L").convert("RGB")], duration=100)


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a.png", encoded("PNG"))
    return content.getvalue()


GOOD: dict[str, Callable[[], bytes]] = {
    "rgb.png": lambda: encoded("PNG"),
    "UPPER.PNG": lambda: encoded("PNG", made("L").convert("RGB")),
    "rgb.jpg": lambda: encoded("JPEG"),
    "progressive.jpeg": lambda: encoded("JPEG", progressive=True, quality=40),
    "grey.jpg": lambda: encoded("JPEG", made("L")),
    "cmyk.jpg": lambda: encoded("JPEG", made("CMYK")),
    "turned.jpg": rotated,
    "grey.png": lambda: encoded("PNG", made("L")),
    "grey-alpha.png": lambda: encoded("PNG", made("LA")),
    "alpha.png": lambda: encoded("PNG", made("RGBA")),
    "palette.png": lambda: encoded("PNG", made("P")),
    "palette-see-through.png": lambda: encoded("PNG", made("P"), transparency=3),
    "one-bit.png": lambda: encoded("PNG", made("1")),
    "sixteen.png": lambda: encoded("PNG", made("I;16")),
    "float.tiff": lambda: encoded("TIFF", made("F")),
    "ycbcr.tiff": lambda: encoded("TIFF", made("YCbCr")),
    "cmyk.tiff": lambda: encoded("TIFF", made("CMYK")),
    "still.gif": lambda: encoded("GIF"),
    "moving.gif": lambda: animated("GIF"),
    "moving.png": lambda: animated("PNG"),
    "plain.bmp": lambda: encoded("BMP"),
    "plain.ppm": lambda: encoded("PPM"),
    "plain.tga": lambda: encoded("TGA"),
    "plain.ico": lambda: encoded("ICO"),
    "no-extension": lambda: encoded("PNG"),
    "png-called.jpg": lambda: encoded("PNG"),
    "with spaces and ünïcode 😀.png": lambda: encoded("PNG"),
}
if features.check("webp"):
    GOOD |= {"plain.webp": lambda: encoded("WEBP"), "moving.webp": lambda: animated("WEBP")}
if features.check("jpg_2000"):
    GOOD["plain.jp2"] = lambda: encoded("JPEG2000")
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (lambda: b"", "zero bytes"),
    "one-byte.png": (lambda: b"\x89", "not a picture"),
    "half.png": (lambda: encoded("PNG")[:600], "truncated"),
    "half.jpg": (lambda: encoded("JPEG")[:400], "truncated"),
    "half.bmp": (lambda: encoded("BMP")[:700], "truncated"),
    "half.gif": (lambda: encoded("GIF")[:900], ""),
    "header-only.png": (lambda: encoded("PNG")[:33], ""),
    "text.png": (lambda: b"a cat", "not a picture"),
    "captions.txt": (lambda: b"a photo of a cat", "not a picture"),
    "page.html": (lambda: b"<html></html>", "not a picture"),
    "drawing.svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture"),
    "metadata.csv": (lambda: b"file_name,text", "not a picture"),
    "pictures.zip": (zipped, "not a picture"),
    "paper.pdf": (lambda: b"%PDF-1.4\n%%EOF", "not a picture"),
    "film.mp4": (lambda: b"\0\0\0\x18ftypmp42", "not a picture"),
    "phone.heic": (lambda: b"\0\0\0\x18ftypheic" + bytes(64), "needs pip install pillow-heif"),
    "next.jxl": (lambda: b"\xff\x0a" + bytes(64), "needs pip install pillow-jxl-plugin"),
    "dot.png": (lambda: encoded("PNG", made().resize((1, 1))), "1 x 1 pixels, under 16"),
    "thin.png": (lambda: encoded("PNG", made().resize((300, 8))), "300 x 8 pixels, under 16"),
    "bad-exif.png": (lambda: encoded("PNG", exif=b"garbage"), ""),
    "nan.tiff": (lambda: encoded("TIFF", Image.new("F", (SIDE, SIDE), float("nan"))), "no pixel has a finite value"),
    "zeros.bin": (lambda: bytes(4096), "not a picture"),
}


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder of all of them, with hidden files, a folder, and links."""
    place = tmp_path / "odd"
    place.mkdir()
    for name, content in GOOD.items():
        (place / name).write_bytes(content())
    for name, (content, _) in BAD.items():
        (place / name).write_bytes(content())
    for hidden in (".DS_Store", "._rgb.png", ".hidden.png"):
        (place / hidden).write_bytes(b"hidden")
    (place / ".cache" / "huggingface").mkdir(parents=True)
    (place / "folder.png").mkdir()
    (place / "link.png").symlink_to(place / "rgb.png")
    (place / "broken.png").symlink_to(place / "nowhere.png")
    (place / "circle.png").symlink_to(place / "circle.png")
    os.mkfifo(place / "pipe.png")
    return place


def test_a_run_uses_the_good_ones_and_names_each_bad_one(
    odd: Path, make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(GOOD) + len(BAD) >= 40
    with caplog.at_level(logging.WARNING, logger="pseudoword"):
        list(train(make_recipe(pictures=str(odd), steps="2")))
    [record] = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Not used")]
    for name, (_, reason) in BAD.items():
        assert f"{name} ({reason}" in record or (f"{name} (" in record and "truncated" in record), name
    for name in ("broken.png (broken link)", "circle.png (broken link)", "pipe.png (not a file)"):
        assert name in record
    for name in (*GOOD, ".DS_Store", "folder.png", "link.png"):
        assert f" {name} (" not in record, name
    used = {p.path.name for p in folder.scan(odd)}
    assert used == {*GOOD, "link.png"}


def test_pictures_below_the_resolution_are_named(
    pictures: Path, make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="pseudoword"):
        list(train(make_recipe(resolution=32, steps="1")))
    assert "Smaller than 32 pixels, so enlarged, which teaches blur: 0.png, 1.png, 2.png" in caplog.text


def broken_bytes(kind: str) -> st.SearchStrategy[bytes]:
    """Return a picture's bytes with some of them changed, cut, doubled or put in."""
    content = encoded(kind)
    places = st.integers(0, len(content) - 1)
    changes = st.lists(st.tuples(places, st.binary(min_size=0, max_size=8), st.integers(0, 64)), min_size=1, max_size=6)

    def apply(edits: list[tuple[int, bytes, int]]) -> bytes:
        damaged = content
        for at, put, cut in edits:
            damaged = damaged[:at] + put + damaged[at + cut :]
        return damaged

    return changes.map(apply)


def fuzz(content: bytes, path: Path) -> None:
    """Hold that a file is either read twice alike or named with a reason."""
    path.write_bytes(content)
    try:
        picture = folder.read(path)
    except folder.Unusable:
        return
    assert images.read_rgb(path).size == picture.size


KINDS = ["JPEG", "PNG", "GIF", "TIFF", "BMP", *(["WEBP"] if features.check("webp") else [])]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LONG = settings(QUICK, max_examples=15_000)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_are_read_or_named(kind: str, tmp_path: Path) -> None:
    QUICK(given(broken_bytes(kind))(lambda content: fuzz(content, tmp_path / "fuzzed")))()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_are_read_or_named_for_long(kind: str, tmp_path: Path) -> None:
    LONG(given(broken_bytes(kind))(lambda content: fuzz(content, tmp_path / "fuzzed")))()
