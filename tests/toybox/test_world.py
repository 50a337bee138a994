from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pseudoword.toybox import captions, shapes, words, world
from pseudoword.toybox.cache import held_out_pictures, training_pictures
from pseudoword.toybox.render import SIDE, render
from pseudoword.toybox.world import Drawing, Thing, generator, held_out, held_out_drawing, training_drawing

SEEDS = range(400)


def digest() -> str:
    pictures = np.stack([render(training_drawing(seed), seed) for seed in range(40)])
    said = [captions.caption(training_drawing(seed), generator(seed, 2), 0.75) for seed in range(40)]
    return hashlib.sha256(pictures.tobytes() + "\n".join(said).encode()).hexdigest()


# Pictures


def test_a_seed_is_the_same_picture_and_caption_in_every_process():
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
    code += "from tests.toybox.test_world import digest; print(digest())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == digest(), ran.stderr


def test_other_seeds_are_other_pictures():
    pictures = {render(training_drawing(seed), seed).tobytes() for seed in SEEDS}
    assert len(pictures) == len(SEEDS)
    one = training_drawing(0)
    assert render(one, 0).tobytes() != render(one, 1).tobytes()


@pytest.mark.parametrize("field", ["shape", "colour", "pattern", "second", "size"])
def test_every_attribute_of_an_object_shows(field: str):
    values = {"shape": world.SHAPES, "pattern": world.PATTERNS, "size": world.SIZES}.get(field, tuple(world.COLOURS))
    thing = Thing("circle", "red" if field != "colour" else "x", "striped", "yellow")
    for style in (*world.STYLES, *world.NAMELESS_STYLES):
        drawn = {render(Drawing((replace(thing, **{field: v}),), "white", style), 3).tobytes() for v in values}
        assert len(drawn) == len(values)


def test_every_background_style_and_light_shows():
    drawing = Drawing((Thing("star", "red"),), "white")
    drawings = {
        *(replace(drawing, background=background) for background in world.BACKGROUNDS),
        *(replace(drawing, style=style) for style in (*world.STYLES, *world.NAMELESS_STYLES)),
        *(replace(drawing, light=light) for light in world.LIGHTS),
    }
    assert len({render(d, 5).tobytes() for d in drawings}) == len(drawings)


def test_an_object_has_its_colour_where_it_is():
    for colour, value in world.COLOURS.items():
        background = "white" if colour != "white" else "blue"
        pixels = render(Drawing((Thing("square", colour, size="large"),), background), 7)
        middle = pixels[SIDE // 2 - 4 : SIDE // 2 + 4, SIDE // 2 - 4 : SIDE // 2 + 4].mean(axis=(0, 1))
        distances = {name: np.abs(middle - other).sum() for name, other in world.COLOURS.items()}
        assert min(distances, key=lambda name: distances[name]) == colour, value


def test_the_first_of_two_objects_is_left_or_above():
    red, blue = Thing("circle", "red"), Thing("circle", "blue")
    for relation, axis in (("and", 1), ("on", 0)):
        pixels = render(Drawing((red, blue), "white", relation=relation), 11).astype(int)
        reddish = (pixels[..., 0] - pixels[..., 2] > 90).nonzero()[axis].mean()
        bluish = (pixels[..., 2] - pixels[..., 0] > 90).nonzero()[axis].mean()
        assert reddish < SIDE / 2 < bluish


def test_every_shape_has_an_outline_and_none_leaves_the_picture():
    everything = {*world.SHAPES, *world.NAMELESS_SHAPES, *world.UNSEEN_SHAPES}
    assert everything == set(shapes.OUTLINES)
    for name in everything:
        inside = np.asarray(shapes.mask(name, 200, (100, 100), 70, 0.3)) > 0
        assert inside.any()
        assert not inside[[0, -1]].any()
        assert not inside[:, [0, -1]].any()


# What is held out


def test_training_never_pairs_what_is_held_out():
    drawings = [training_drawing(seed) for seed in range(5000)]
    assert not any(held_out(d) for d in drawings)
    pairs = {(t.shape, t.colour) for d in drawings for t in d.things if t.shape in world.SHAPES}
    assert len(pairs) == len(world.SHAPES) * (len(world.COLOURS) - 1)
    scenes = {(t.shape, d.background) for d in drawings for t in d.things if t.shape in world.SHAPES}
    assert len({s for s in scenes if s[1] in world.SCENES}) == len(world.SHAPES) * (len(world.SCENES) - 1)


def test_held_out_drawings_are_and_have_words_for_all_of_it():
    for seed in SEEDS:
        drawing = held_out_drawing(seed)
        assert held_out(drawing)
        assert not drawing.nameless
        assert drawing.style in world.STYLES
        assert len(drawing.things) == 1


def test_training_draws_everything_else_and_never_the_unseen():
    drawings = [training_drawing(seed) for seed in range(3000)]
    assert {t.shape for d in drawings for t in d.things} == {*world.SHAPES, *world.NAMELESS_SHAPES}
    assert {t.pattern for d in drawings for t in d.things} == {*world.PATTERNS, *world.NAMELESS_PATTERNS}
    assert {d.style for d in drawings} == {*world.STYLES, *world.NAMELESS_STYLES}
    assert {d.background for d in drawings} == set(world.BACKGROUNDS)
    assert {d.relation for d in drawings} == {"", "and", "on"}


# Captions

NAMES = {"shape": world.SHAPES, "pattern": world.PATTERNS, "size": ("small", "large"), "style": world.STYLES[1:]}


def said(text: str, names: tuple[str, ...]) -> set[str]:
    return set(re.findall(r"[a-z]+", text)) & set(names)


@pytest.mark.parametrize("keep", [1.0, 0.75])
def test_captions_say_nothing_untrue(keep: float):
    for seed in SEEDS:
        drawing = training_drawing(seed)
        text = captions.caption(drawing, generator(seed, 2), keep)
        things = drawing.things
        assert said(text, world.SHAPES) <= {t.shape for t in things}
        assert said(text, world.PATTERNS) <= {t.pattern for t in things}
        assert said(text, ("small", "large")) <= {things[0].size}
        assert said(text, world.STYLES[1:]) <= {drawing.style}
        assert said(text, ("dark", "bright")) <= {drawing.light} or "style of" in text
        assert said(text, tuple(world.COLOURS)) <= {c for t in things for c in (t.colour, t.second)} | {
            drawing.background
        }
        scenes = [b for b, place in captions.PLACES.items() if place in text]
        assert set(scenes) <= {drawing.background}


def test_a_full_caption_says_everything_that_has_a_word():
    thing = Thing("star", "orange", "striped", "blue", "large")
    assert captions.full_caption(Drawing((thing,), "brick", "neon")) == (
        "a painting of a large orange striped star with blue stripes on a brick wall in the style of neon"
    )
    assert captions.full_caption(Drawing((thing, Thing("arrow", "red")), "white", relation="and")) == (
        "a photo of an orange striped star with blue stripes and a red arrow on a white background"
    )
    assert captions.full_caption(Drawing((Thing("fish", "red"),), "grass")) == "a photo of a thing in the grass"
    assert captions.full_caption(Drawing((Thing("star", "red", "split"),), "sea", "sepia")) == (
        "a painting of a thing in the sea"
    )


def test_what_has_no_word_is_not_named():
    wordless = {*world.NAMELESS_SHAPES, *world.NAMELESS_PATTERNS, *world.NAMELESS_STYLES, *world.UNSEEN_SHAPES}
    assert not wordless & set(words.words())


def test_captions_leave_things_out_and_word_them_in_many_ways():
    drawing = Drawing((Thing("star", "orange", "striped", "blue", "large"),), "brick", "neon")
    texts = {captions.caption(drawing, generator(seed, 2), 0.75) for seed in SEEDS}
    assert len(texts) > 100
    for word in ("star", "orange", "large", "neon", "brick", "striped", "blue"):
        assert 0.4 < sum(word in t for t in texts) / len(texts) < 1


# The tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    words.write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def test_every_word_of_the_world_is_one_token(tokenizer):
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in words.words()]
    assert {len(i) for i in ids} == {1}
    assert len({i for [i] in ids}) == len(ids)
    for seed in SEEDS:
        text = captions.caption(training_drawing(seed), generator(seed, 2), 1.0)
        assert len(tokenizer(text).input_ids) == 2 + len(re.findall(r"[a-z]+|-", text)) <= 32


def test_the_tokenizer_is_clips(tokenizer):
    assert tokenizer.model_max_length == 77
    assert tokenizer.bos_token_id == 0
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 1
    ids = tokenizer("A red STAR", padding="max_length").input_ids
    assert len(ids) == 77
    assert ids == tokenizer("a red star", padding="max_length").input_ids
    for text in ("<toy>", "héllo wörld", "東京 123", "don't!"):
        split = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in split
        assert tokenizer.decode(split).replace(" ", "") == text.replace(" ", "")


def test_a_word_stays_whole_when_its_beginning_or_end_is_another():
    ranks = {pair: i for i, pair in enumerate(words.merges(["to", "photo", "toy", "star", "start", "art"]))}
    assert [words.split(w, ranks) for w in ("photo", "to", "start", "art")] == [
        [w + "</w>"] for w in ("photo", "to", "start", "art")
    ]


# Pictures drawn ahead


def test_pictures_drawn_ahead_are_those_of_their_seeds(tmp_path: Path):
    pictures = training_pictures(tmp_path, 5)
    assert pictures.shape == (5, SIDE, SIDE, 3)
    np.testing.assert_array_equal(pictures[3], render(training_drawing(3), 3))
    before = (tmp_path / "pictures-5.npy").stat().st_mtime_ns
    training_pictures(tmp_path, 5)
    assert (tmp_path / "pictures-5.npy").stat().st_mtime_ns == before
    assert held_out_pictures(2).shape == (2, SIDE, SIDE, 3)
