"""Pictures become upright RGB without surprises, then numbers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pseudoword.data import images

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def quarters() -> Image.Image:
    """A wide picture: red and green above, blue and white below."""
    image = Image.new("RGB", (40, 20))
    for i, colour in enumerate((RED, GREEN, BLUE, WHITE)):
        image.paste(colour, (20 * (i % 2), 10 * (i // 2), 20 * (i % 2) + 20, 10 * (i // 2) + 10))
    return image


def read(image: Image.Image, tmp_path: Path, name: str = "a.png", **options: object) -> Image.Image:
    image.save(tmp_path / name, **options)
    return images.read_rgb(tmp_path / name)


def corners(image: Image.Image) -> list[object]:
    """Return the colours near the corners: above left, above right, below left, below right."""
    w, h = image.width - 3, image.height - 3
    return [image.getpixel(at) for at in ((2, 2), (w, 2), (2, h), (w, h))]


# Reading

TURNED = {
    1: (RED, GREEN, BLUE, WHITE),
    2: (GREEN, RED, WHITE, BLUE),
    3: (WHITE, BLUE, GREEN, RED),
    4: (BLUE, WHITE, RED, GREEN),
    5: (RED, BLUE, GREEN, WHITE),
    6: (BLUE, RED, WHITE, GREEN),
    7: (WHITE, GREEN, BLUE, RED),
    8: (GREEN, WHITE, RED, BLUE),
}
"""What a viewer shows of `quarters()` for each value of the EXIF tag Orientation (EXIF 2.3, 4.6.4 A)."""


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff"])
def test_a_camera_s_orientation_is_applied(tmp_path: Path, orientation: int, name: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if name == "a.jpg" else {"lossless": True} if name == "a.webp" else {}
    upright = read(quarters(), tmp_path, name, exif=exif, **options)
    assert upright.size == ((40, 20) if orientation < 5 else (20, 40))
    assert np.allclose(corners(upright), TURNED[orientation], atol=3)


def test_a_broken_exif_block_is_no_obstacle(tmp_path: Path):
    for i, exif in enumerate([b"Exif\0\0garbage!", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0"]):
        quarters().save(tmp_path / f"{i}.jpg", exif=exif)
        with np.testing.suppress_warnings() as quiet:
            quiet.filter(UserWarning)
            assert images.read_rgb(tmp_path / f"{i}.jpg").size == (40, 20)


def test_transparency_is_laid_on_white(tmp_path: Path):
    image = quarters().convert("RGBA")
    image.putpixel((2, 2), (255, 0, 0, 0))
    image.putpixel((37, 2), (0, 255, 0, 51))
    result = read(image, tmp_path)
    assert result.mode == "RGB"
    assert corners(result) == [WHITE, (204, 255, 204), BLUE, WHITE]


def test_a_palette_s_transparent_colour_is_white(tmp_path: Path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*BLACK, *RED, *BLUE])
    image.putpixel((2, 2), 0)
    image.putpixel((5, 5), 2)
    for name in ("a.png", "a.gif"):
        assert corners(read(image, tmp_path, name, transparency=0)) == [WHITE, RED, RED, BLUE]
    assert corners(read(image, tmp_path)) == [BLACK, RED, RED, BLUE]


def test_a_transparent_colour_of_rgb_and_grey_pictures_is_white(tmp_path: Path):
    assert corners(read(quarters(), tmp_path, transparency=BLUE)) == [RED, GREEN, WHITE, WHITE]
    grey = Image.new("L", (8, 8), 100)
    grey.putpixel((2, 2), 7)
    assert corners(read(grey, tmp_path, transparency=7)) == [WHITE, *[(100, 100, 100)] * 3]


def test_grey_with_alpha_is_laid_on_white(tmp_path: Path):
    image = Image.new("LA", (8, 8), (100, 255))
    image.putpixel((2, 2), (0, 0))
    image.putpixel((5, 2), (0, 51))
    assert corners(read(image, tmp_path)) == [WHITE, (204, 204, 204), (100, 100, 100), (100, 100, 100)]


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bits_of_grey_become_eight_without_clipping(tmp_path: Path, name: str):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    result = np.asarray(read(Image.fromarray(values), tmp_path, name))
    assert result.shape == (8, 8, 3)
    assert np.abs(result[..., 0] - values / 257).max() <= 1
    assert (result[..., 0] == result[..., 1]).all()
    assert (result[..., 0] == result[..., 2]).all()


def test_floats_are_scaled_by_the_largest_and_nan_is_black(tmp_path: Path):
    values = np.array([[0, 0.5], [1, np.nan]], dtype=np.float32)
    assert np.asarray(read(Image.fromarray(values), tmp_path, "a.tiff"))[..., 0].tolist() == [[0, 127], [255, 0]]
    bright = np.array([[0, 500], [1000, 250]], dtype=np.float32)
    assert np.asarray(read(Image.fromarray(bright), tmp_path, "b.tiff"))[..., 0].tolist() == [[0, 127], [255, 63]]


def test_cmyk_becomes_the_colours_that_it_prints(tmp_path: Path):
    for name in ("a.jpg", "a.tiff"):
        result = read(quarters().convert("CMYK"), tmp_path, name)
        assert result.mode == "RGB"
        assert np.allclose(corners(result), corners(quarters()), atol=40)


@pytest.mark.parametrize(("colour", "rgb"), [("black", BLACK), ("#102030", (16, 32, 48)), ("rgb(1, 2, 3)", (1, 2, 3))])
def test_transparency_is_laid_on_the_colour_that_is_asked_for(tmp_path: Path, colour: str, rgb: tuple[int, ...]):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((2, 2), (0, 255, 0, 255))
    image.save(tmp_path / "a.png")
    assert corners(images.read_rgb(tmp_path / "a.png", colour)) == [GREEN, rgb, rgb, rgb]
    quarters().save(tmp_path / "opaque.png")
    assert corners(images.read_rgb(tmp_path / "opaque.png", colour)) == corners(quarters())


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_plain_modes_are_what_pillow_makes_of_them(tmp_path: Path, mode: str):
    image = quarters().convert(mode)
    assert np.array_equal(np.asarray(read(image, tmp_path)), np.asarray(image.convert("RGB")))


# Numbers


def test_pixels_are_channels_first_between_minus_one_and_one():
    values = images.pixels(quarters())
    assert values.shape == (3, 20, 40)
    assert values.dtype == np.float32
    assert (values.min(), values.max()) == (-1.0, 1.0)
    assert values[:, 2, 2].tolist() == [1.0, -1.0, -1.0]
    assert values[:, 17, 2].tolist() == [-1.0, -1.0, 1.0]


def test_mirrored_pixels_are_those_of_the_mirrored_picture():
    mirrored = images.pixels(quarters().transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert np.array_equal(images.pixels(quarters(), True), mirrored)
    assert not np.array_equal(images.pixels(quarters()), mirrored)


def test_every_grey_level_is_the_guides_number():
    levels = np.arange(256, dtype=np.uint8)
    image = Image.fromarray(np.stack([levels] * 3, axis=-1)[None])
    expected = (levels / 127.5 - 1.0).astype(np.float32)
    assert np.abs(images.pixels(image)[0, 0] - expected).max() <= np.spacing(np.float32(1))


def test_a_file_need_not_be_on_disk_by_a_known_ending(tmp_path: Path):
    content = io.BytesIO()
    quarters().save(content, "PNG")
    (tmp_path / "picture").write_bytes(content.getvalue())
    assert corners(images.read_rgb(str(tmp_path / "picture"))) == [RED, GREEN, BLUE, WHITE]
