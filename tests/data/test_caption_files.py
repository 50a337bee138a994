"""Captions of one's own: templates, a text file or a metadata.jsonl; shuffled, dropped, and refused by name."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pseudoword import schedules, train
from pseudoword.data import examples
from pseudoword.data.captions import Captions, read_templates
from pseudoword.data.pictures import ConceptPictures
from pseudoword.errors import CaptionError, RunError
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.recipe import ConceptRecipe, Data
from tests.miniatures import TOKEN, MakeRecipe, rows_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures."""
    made = tmp_path / "captioned"
    made.mkdir()
    for i, name in enumerate(("a.png", "b.png")):
        values = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(made / name)
    return made


Prepare = Callable[..., examples.Cached]


@pytest.fixture
def prepare(family: StableDiffusion, folder: Path) -> Prepare:
    def made(templates: str | None = None, **changes: Any) -> examples.Cached:
        concept = ConceptRecipe(TOKEN, str(folder), "toy", templates=templates)
        data = Data(captions="templates" if templates else "files", **changes)
        framed = ConceptPictures(concept, data).framed(family)
        source = examples.prepare(framed, family.vocabularies, [TOKEN], family.encode_images, seed=7, workers=0)
        assert isinstance(source, examples.Cached)
        return source

    return made


def seen(source: examples.Cached, family: StableDiffusion, steps: int = 30) -> list[tuple[int, str]]:
    """Return which picture and which words each example of some steps has."""
    [(encoder, vocabulary)] = family.vocabularies.items()
    options = {"flip_p": 0.5, "num_timesteps": 1000, "latent_shapes": source.latent_shapes}
    drawn = [d for step in range(steps) for d in schedules.draws(7, TOKEN, step, range(2), 2, **options)]
    words = []
    for batch, draw in source.batches(drawn):
        for picture, ids in zip(draw.picture.tolist(), batch.ids[encoder], strict=True):
            names = vocabulary.tokenizer.convert_ids_to_tokens([i for i in ids.tolist() if i < vocabulary.size])
            assert vocabulary.size in ids.tolist(), "the word is always there"
            text = "".join(n for n in names if not n.startswith("<|")).replace("</w>", " ")
            words.append((picture, text.strip()))
    return words


# Where captions come from


def test_a_picture_has_the_caption_of_its_text_file(prepare: Prepare, family: StableDiffusion, folder: Path):
    (folder / "a.txt").write_text("a red {}\n", encoding="utf-8-sig")
    (folder / "b.txt").write_text(f"the {TOKEN}\nin the style of a dog", encoding="utf-8")
    assert set(seen(prepare(), family)) == {(0, "a red"), (1, "the in the style of a dog")}


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_a_picture_has_the_caption_of_metadata_jsonl(
    prepare: Prepare, family: StableDiffusion, folder: Path, column: str
):
    lines = [{"file_name": "b.png", column: "a cat {}", "width": 16}, {"file_name": "a.png", column: "[name] dog"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert set(seen(prepare(), family)) == {(0, "dog"), (1, "a cat")}


def test_a_text_file_comes_before_metadata_jsonl(prepare: Prepare, family: StableDiffusion, folder: Path):
    lines = [{"file_name": name, "text": "a cat {}"} for name in ("a.png", "b.png")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "a.txt").write_text("a dog {}")
    assert set(seen(prepare(), family)) == {(0, "a dog"), (1, "a cat")}


def test_captions_in_folders_inside_a_folder(prepare: Prepare, family: StableDiffusion, folder: Path):
    (folder / "train").mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).rename(folder / "train" / name)
    lines = [{"file_name": name, "text": f"{name[0]} {{}}"} for name in ("a.png", "b.png")]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert set(seen(prepare(recursive=True), family)) == {(0, "a"), (1, "b")}
    lines = [{"file_name": f"train/{name}", "text": f"{name[0]} red {{}}"} for name in ("a.png", "b.png")]
    (folder / "train" / "metadata.jsonl").unlink()
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert set(seen(prepare(recursive=True), family)) == {(0, "a red"), (1, "b red")}


def test_own_templates(prepare: Prepare, family: StableDiffusion, folder: Path, tmp_path: Path):
    file = tmp_path / "templates.txt"
    file.write_text("a {} photo\n\n  [name], a painting  \n", encoding="utf-8-sig")
    assert read_templates(file, "<t>") == ["a <t> photo", "<t>, a painting"]
    assert {text for _, text in seen(prepare(templates=str(file)), family)} == {"a photo", ", a painting"}


def test_captions_that_lie_there_unused_are_mentioned(folder: Path, prepare: Prepare, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "pseudoword")
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("a {}")
    ConceptPictures(ConceptRecipe(TOKEN, str(folder), "toy"), Data())
    assert [r.getMessage() for r in caplog.records] == [
        "There are captions (a.txt, …), but templates are used; captions 'files' uses the captions."
    ]
    caplog.clear()
    ConceptPictures(ConceptRecipe(TOKEN, str(folder), "toy"), Data(captions="files"))
    assert not caplog.records


# Shuffled and dropped


def test_tags_are_shuffled_and_the_first_stay(prepare: Prepare, family: StableDiffusion, folder: Path):
    (folder / "a.txt").write_text("{}, cat, dog,, red ")
    (folder / "b.txt").write_text("a {}")
    texts = seen(prepare(shuffle_tags=True), family, 60)
    assert {text for picture, text in texts if picture == 1} == {"a"}
    orders = ["cat , dog , red", "cat , red , dog", "dog , cat , red", "dog , red , cat", "red , cat , dog"]
    assert {text for picture, text in texts if picture == 0} == {f", {o}" for o in [*orders, "red , dog , cat"]}
    kept = seen(prepare(shuffle_tags=True, keep_tags=2), family, 60)
    assert {text for picture, text in kept if picture == 0} == {", cat , dog , red", ", cat , red , dog"}


def test_a_dropped_caption_is_the_bare_word(prepare: Prepare, family: StableDiffusion, folder: Path):
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("a cat {}")
    texts = [text for _, text in seen(prepare(caption_dropout=0.3), family, 100)]
    assert set(texts) == {"", "a cat"}
    assert 35 <= texts.count("") <= 85
    assert {text for _, text in seen(prepare(caption_dropout=1.0), family)} == {""}


def test_what_a_caption_is_depends_on_nothing_but_the_draw():
    captions = Captions("<t>", [["<t>, a, b, c, d, e"]], ["a.txt"], shuffle_tags=True, keep_tags=0)
    options = {"flip_p": 0.5, "num_timesteps": 10, "latent_shapes": [(1, 1, 1)]}

    def texts(*indices: int) -> list[str]:
        [draw] = schedules.draws(7, "<t>", 3, indices, 4, **options)
        own = zip(draw.template.tolist(), draw.tags.tolist(), draw.drop.tolist(), strict=True)
        return [captions.text(0, *numbers) for numbers in own]

    assert texts(0, 1, 2, 3) == [*texts(0), *texts(1, 2), *texts(3)]
    assert len(set(texts(0, 1, 2, 3))) > 1


# Refused


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "missing": (
        {"a.txt": "a {}"},
        r"There is no caption for b\.png; write it into b\.txt beside it or into metadata\.jsonl, or use captions 't",
    ),
    "empty": ({"a.txt": " \n", "b.txt": "{}"}, r"The caption of a\.png in a\.txt is empty; write \{\} at least\."),
    "no word": (
        {"a.txt": "{}", "b.txt": "a cat"},
        r"The caption of b\.png in b\.txt does not hold '<cat-toy>': 'a cat'\. Write \{\} where the word goes\.",
    ),
    "touched": (
        {"a.txt": "{}", "b.txt": "a{}s"},
        r"The caption 'a<cat-toy>s' \(b\.png from b\.txt\) does not hold '<cat-toy>', .*letters, digits and _ must",
    ),
    "cut": (
        {"a.txt": "{}", "b.txt": "cat " * 75 + "{}"},
        r"The caption 'cat .*' \(b\.png from b\.txt\) is longer than the 77 tokens .* the cut falls into '<cat-toy>'",
    ),
    "not JSON": (
        {"metadata.jsonl": '{"file_name": "a.png", "text": "{}"}\n{"file_name": \n'},
        r".*metadata\.jsonl, line 2, is not JSON: ",
    ),
    "no picture": (
        {"metadata.jsonl": '{"file": "a.png", "text": "{}"}'},
        r'.*metadata\.jsonl, line 1, names no picture; expected \{"file_name": "a\.png", "text": "a \{\}"\}\.',
    ),
    "no caption": (
        {"metadata.jsonl": '\n{"file_name": "a.png", "label": "{}"}'},
        r".*line 2, has no caption: of text, caption, prompt one must be text, and it has file_name, label\.",
    ),
    "not text": ({"metadata.jsonl": '{"file_name": "a.png", "text": 3}'}, r".*line 1, has no caption: "),
    "a list": ({"metadata.jsonl": "[1]"}, r".*line 1, names no picture"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_caption_that_cannot_be_is_refused_by_name(prepare: Prepare, folder: Path, case: str):
    files, message = REFUSED[case]
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(CaptionError, match=f"^{message}"):
        prepare()


def test_an_encoding_that_is_not_utf_8_is_refused(prepare: Prepare, folder: Path):
    (folder / "a.txt").write_bytes("ein {} für mich".encode("latin-1"))
    with pytest.raises(CaptionError, match=r"a\.txt is not UTF-8 text \(byte 8\); save it as UTF-8\.$"):
        prepare()
    (folder / "a.txt").write_text("a {}", encoding="utf-16")
    with pytest.raises(CaptionError, match="is not UTF-8 text"):
        prepare()


def test_tags_that_could_push_the_word_out_in_some_order_are_refused(prepare: Prepare, folder: Path):
    many = ", ".join(["cat"] * 40)
    (folder / "a.txt").write_text("a {}")
    (folder / "b.txt").write_text(f"red, {{}}, {many}")
    prepare()
    with pytest.raises(CaptionError, match=re.escape("b.png from b.txt) is longer than the 77 tokens")):
        prepare(shuffle_tags=True)
    prepare(shuffle_tags=True, keep_tags=2)


def test_pictures_that_metadata_names_and_that_are_not_there(
    prepare: Prepare, folder: Path, caplog: pytest.LogCaptureFixture
):
    lines = [{"file_name": name, "text": "a {}"} for name in ("a.png", "b.png", "c.png")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prepare()
    assert f"{folder / 'metadata.jsonl'} names pictures that are not there: c.png" in caplog.messages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a photo of {}\na photo of a cat",
            r".*own\.txt, line 2, has no \{\} where the word goes: 'a photo of a c",
        ),
        ("a {}, [filewords]", r".*own\.txt, line 1: \[filewords\] is not known; captions 'files' takes them whole\."),
        ("\n\n", r".*own\.txt holds no template; write one a line, such as 'a photo of \{\}'\."),
    ],
)
def test_templates_that_cannot_be_are_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "own.txt").write_text(text)
    with pytest.raises(CaptionError, match=f"^{message}"):
        read_templates(tmp_path / "own.txt", "<t>")
    with pytest.raises(CaptionError, match=r"^Cannot read nowhere\.txt: No such file"):
        read_templates("nowhere.txt", "<t>")


# A run


def test_a_run_learns_from_files_and_goes_on_only_with_the_same(make_recipe: MakeRecipe, folder: Path, tmp_path: Path):
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("{}, cat, dog, red")
    common = {"pictures": str(folder), "captions": "files", "shuffle_tags": True, "caption_dropout": 0.2}
    common |= {"lr_scheduler": "constant"}
    list(train(make_recipe(steps="6", folder=str(tmp_path / "straight"), **common)))
    list(train(make_recipe(steps="3", folder=str(tmp_path / "broken"), **common)))
    list(train(make_recipe(steps="6", folder=str(tmp_path / "broken"), **common), resume="latest"))
    assert np.array_equal(rows_of(tmp_path / "straight"), rows_of(tmp_path / "broken"))
    (folder / "b.txt").write_text("{}, cat, dog")
    with pytest.raises(RunError, match=r"^Cannot resume from checkpoint-6: pictures was \['b\.png .* is \['b\.png "):
        list(train(make_recipe(steps="9", folder=str(tmp_path / "broken"), **common), resume="latest"))


def test_a_run_goes_on_with_the_same_templates_wherever_they_lie(make_recipe: MakeRecipe, tmp_path: Path):
    (tmp_path / "own.txt").write_text("a cat {}")
    recipe = make_recipe(templates=str(tmp_path / "own.txt"), lr_scheduler="constant")
    list(train(recipe))
    (tmp_path / "more").mkdir()
    moved = (tmp_path / "own.txt").rename(tmp_path / "more" / "own.txt")
    common = {"steps": "6", "templates": str(moved), "lr_scheduler": "constant"}
    assert [p.step for p in train(make_recipe(**common), resume="latest")] == [5, 6]
    moved.write_text("a dog {}")
    with pytest.raises(RunError, match=r"own\.txt"):
        list(train(make_recipe(**common), resume="latest"))
