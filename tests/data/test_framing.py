"""Which part of a picture is trained on, and at which size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pseudoword.data.framing import Box, Frame, Framing, Placement, buckets


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "box"), [((40, 20), (10, 0, 30, 20)), ((20, 40), (0, 10, 20, 30)), ((21, 20), (0, 0, 20, 20))]
)
def test_a_crop_is_the_centre_square_and_keeps_the_aspect_ratio(size: tuple[int, int], box: Box):
    image = noise(*size)
    [frame] = Framing(20).frames(size)
    assert np.array_equal(np.asarray(frame.cut(image)), np.asarray(image.crop(box)))


@pytest.mark.parametrize(
    ("size", "count", "lefts"),
    [((50, 20), 2, [0, 30]), ((50, 20), 3, [0, 15, 30]), ((50, 20), 4, [0, 10, 20, 30]), ((20, 20), 3, [0])],
)
def test_several_crops_go_from_end_to_end_evenly(size: tuple[int, int], count: int, lefts: list[int]):
    frames = Framing(10, crops=count).frames(size)
    assert frames == [Frame((left, 0, left + 20, 20), (10, 10)) for left in lefts]
    turned = Framing(10, crops=count).frames((size[1], size[0]))
    assert [frame.box for frame in turned] == [(0, left, 20, left + 20) for left in lefts]


def test_crops_that_would_be_the_same_are_one():
    assert len(Framing(10, crops=5).frames((22, 20))) == 3, "there are three places for a square of 20 in 22"


def test_squashing_keeps_every_pixel_of_the_edge():
    image = noise(40, 20)
    [frame] = Framing(20, "squash").frames(image.size)
    assert np.array_equal(np.asarray(frame.cut(image)), np.asarray(image.resize((20, 20), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("name", ["linear", "bilinear", "bicubic", "lanczos"])
def test_interpolation_is_pillows(name: str):
    filters = {**{f.name.lower(): f for f in Image.Resampling}, "linear": Image.Resampling.BILINEAR}
    image = noise(30, 30)
    [frame] = Framing(17).frames(image.size)
    assert np.array_equal(np.asarray(frame.cut(image, name)), np.asarray(image.resize((17, 17), filters[name])))


def test_a_frame_tells_what_it_leaves_out_and_whether_it_is_enlarged():
    [frame] = Framing(20).frames((40, 20))
    assert frame.share((40, 20)) == 0.5
    assert not frame.enlarged
    assert Framing(21).frames((40, 20))[0].enlarged
    assert Framing(30, "squash").frames((40, 20))[0].enlarged
    assert Framing(30, "squash").frames((40, 20))[0].share((40, 20)) == 1


# Buckets


@pytest.mark.parametrize(("size", "multiple"), [(512, 64), (768, 64), (16, 4), (64, 16), (64, 64), (192, 64)])
def test_buckets_have_at_most_the_area_and_sides_that_the_denoiser_halves_evenly(size: int, multiple: int):
    found = buckets(size, multiple)
    assert all(w % multiple == 0 and h % multiple == 0 and w * h <= size * size for w, h in found)
    assert all(w * (h + multiple) > size * size or h + multiple > 2 * size for w, h in found), "the largest of a width"
    assert all(size / 2 <= side <= 2 * size for sides in found for side in sides)
    assert (size, size) in found


def test_the_buckets_of_stable_diffusion():
    assert {(512, 512), (448, 576), (576, 448), (384, 640), (256, 1024), (1024, 256)} <= set(buckets(512, 64))
    assert buckets(64, 64) == [(64, 64)]


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((1000, 1000), (512, 512)),
        ((4000, 3000), (576, 448)),
        ((3000, 4000), (448, 576)),
        ((1920, 1080), (640, 384)),
        ((5000, 500), (1024, 256)),
        ((20, 3000), (256, 1024)),
    ],
)
def test_a_picture_goes_to_the_bucket_nearest_to_its_shape(size: tuple[int, int], bucket: tuple[int, int]):
    [frame] = Framing(512, "bucket", multiple=64).frames(size)
    assert frame.size == bucket


@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_a_bucket_is_covered_from_the_centre_and_nothing_is_stretched(width: int, height: int):
    [frame] = Framing(512, "bucket", multiple=64).frames((width, height))
    left, top, right, bottom = frame.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1
    assert right - left == width or bottom - top == height, "one side is whole"
    ratio = frame.size[0] / frame.size[1]
    assert abs((right - left) - ratio * (bottom - top)) <= 0.5 * max(1, ratio) + 1e-9 or min(right, bottom) == 1
    best = min(abs(np.log(w / h / (width / height))) for w, h in buckets(512, 64))
    assert abs(np.log(ratio / (width / height))) == pytest.approx(best)


@pytest.mark.parametrize(
    ("size", "options", "plain", "mirrored"),
    [
        ((400, 200), {}, [(200, 400, 0, 50, 100, 100)], [(200, 400, 0, 50, 100, 100)]),
        (
            (400, 200),
            {"crops": 2},
            [(200, 400, 0, 0, 100, 100), (200, 400, 0, 100, 100, 100)],
            [(200, 400, 0, 100, 100, 100), (200, 400, 0, 0, 100, 100)],
        ),
        ((200, 600), {"crops": 2}, [(600, 200, 0, 0, 100, 100), (600, 200, 200, 0, 100, 100)], None),
        ((50, 40), {}, [(40, 50, 0, 12, 100, 100)], None),
        ((300, 100), {"fit": "squash"}, [(100, 300, 0, 0, 100, 100)], None),
        ((410, 200), {"fit": "bucket", "multiple": 20}, [(200, 410, 4, 0, 60, 140)], None),
    ],
)
def test_a_placement_is_where_the_frame_lies_in_the_resized_picture(
    size: tuple[int, int], options: dict[str, Any], plain: list[Placement], mirrored: list[Placement] | None
):
    frames = Framing(100, **options).frames(size)
    assert [frame.placement(size) for frame in frames] == plain
    assert [frame.placement(size, flipped=True) for frame in frames] == (mirrored or plain)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_placement_finds_the_pixels_of_the_frame(flipped: bool):
    ramp = np.add.outer(np.arange(200) / 4, np.arange(400) / 2)
    image = Image.fromarray(np.stack([ramp] * 3, axis=-1).astype(np.uint8))
    shown = ImageOps.mirror(image) if flipped else image
    for frame in Framing(100, crops=3).frames(image.size):
        *_, top, left, high, wide = frame.placement(image.size, flipped=flipped)
        cut = frame.cut(image)
        found = shown.resize((200, 100), Image.Resampling.BICUBIC).crop((left, top, left + wide, top + high))
        expected = ImageOps.mirror(cut) if flipped else cut
        assert np.abs(np.asarray(found, dtype=int) - np.asarray(expected, dtype=int)).max() <= 2
