"""The model card: metadata that YAML reads back whatever the token, how to load the word, and the picture it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from pseudoword import Concept, formats
from pseudoword.card import card, picture_in, pictures_shown, write_card
from tests.miniatures import TOKEN, MakeRecipe

ODD = [
    "<cat-toy>",
    "<a:b>",
    "\"quoted'",
    "`code`",
    "<猫>",
    "#x",
    "{a:1}",
    "[b]",
    "-x",
    "*x",
    "&a",
    "!t",
    "%x",
    "@x",
    "null",
    "1e3",
    "yes",
    "|",
    "\\",
    "<script>",
    "---",
]


def word(token: str = TOKEN, **told: Any) -> Concept:
    return Concept(token, {"clip_l": np.ones((1, 32))}, **{"base": "someone/base", "steps": 5, **told})


def metadata(text: str) -> dict[str, Any]:
    return ModelCard(text).data.to_dict()


@pytest.mark.parametrize("token", ODD)
def test_metadata_is_read_back_whatever_the_token(token: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(token=token, model="someone/base")
    text = card(word(token), tmp_path, recipe, 4, [f"a red {token}", f"{token}: 'here'"])
    assert metadata(text) == {
        "base_model": "someone/base",
        "library_name": "diffusers",
        "tags": ["stable-diffusion", "stable-diffusion-diffusers", "text-to-image", "diffusers", "textual_inversion"],
        "instance_prompt": f"a photo of {token}",
        "widget": [{"text": f"a red {token}"}, {"text": f"{token}: 'here'"}],
    }


def test_without_prompts_the_words_own_is_the_example(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    told = metadata(card(word(property="style"), tmp_path, make_recipe(property="style"), 4))
    assert told["instance_prompt"] == f"a painting in the style of {TOKEN}"
    assert told["widget"] == [{"text": f"a painting in the style of {TOKEN}"}]
    assert "license" not in told


@pytest.mark.parametrize(
    ("base", "shown"),
    [
        ("someone/base", "someone/base"),
        ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("toybox", None),
        ("C:/models/base", None),
        ("", None),
    ],
)
def test_base_model_is_an_id_on_the_hub_or_left_out(base: str, shown: str | None, tmp_path: Path) -> None:
    text = card(word(base=base), tmp_path)
    assert metadata(text).get("base_model") == shown
    assert f'from_pretrained("{shown or "path/to/the/base"}")' in text


def test_a_base_on_this_disk_is_no_id_though_it_looks_like_one(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    recipe = make_recipe(model="models/base")
    assert "base_model" not in metadata(card(word(base="models/base"), tmp_path, recipe))


def test_a_base_in_one_file_is_loaded_as_one(tmp_path: Path) -> None:
    text = card(word(base="models/my.safetensors"), tmp_path)
    assert "base_model" not in metadata(text)
    assert 'from_single_file("path/to/my.safetensors")' in text


def test_how_to_load_it_is_the_familys_pipeline_with_the_runs_clip_skip(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    text = card(word(), tmp_path, make_recipe(clip_skip=1), 4)
    assert "from diffusers import StableDiffusionPipeline" in text
    assert f'pipeline("a photo of {TOKEN}", clip_skip=1)' in text
    assert "an object, 1 vector, 5 steps of 4 pictures." in text
    assert "from diffusers import DiffusionPipeline" in card(word(), tmp_path), "where nobody says which it is"


@pytest.mark.parametrize("token", ODD)
def test_the_python_in_it_is_python(token: str, tmp_path: Path) -> None:
    code = card(word(token), tmp_path).split("```python\n")[1].split("```\n")[0]
    compile(code, "card", "exec")


def test_a_token_of_backticks_stays_code(tmp_path: Path) -> None:
    assert "# `` `code` ``\n" in card(word("`code`"), tmp_path)


def test_the_table_names_the_files_there_are(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    formats.write_folder(word(), tmp_path, safetensors=False)
    (tmp_path / "exports").mkdir()
    formats.write_file(word(), tmp_path / "exports" / "cat-toy.bin", "kohya")
    text = write_card(word(), make_recipe(), 1, tmp_path).read_text()
    assert "| `learned_embeds.bin` | diffusers" in text
    assert "| `exports/cat-toy.bin` | A1111" in text
    assert "| `token_identifier.txt`, `type_of_concept.txt` |" in text
    assert "safetensors" not in text
    assert "5 steps of 1 picture." in text


def test_the_picture_is_the_strip_or_the_newest_grid(tmp_path: Path) -> None:
    assert picture_in(tmp_path) is None
    assert "![" not in card(word(), tmp_path)
    (tmp_path / "samples").mkdir()
    for name in ("step-000900.png", "step-1000000.png", "step-x.png", "other.png"):
        (tmp_path / "samples" / name).write_bytes(b"")
    text = card(word(), tmp_path, prompts=["one", "two"])
    assert "![Pictures of the validation prompts](samples/step-1000000.png)" in text
    assert metadata(text)["widget"] == [
        {"text": "one", "output": {"url": "samples/step-1000000.png"}},
        {"text": "two"},
    ]
    (tmp_path / "samples" / "strip.png").write_bytes(b"")
    assert picture_in(tmp_path) == "samples/strip.png"
    assert pictures_shown(card(word(), tmp_path)) == ["samples/strip.png"]


def test_only_pictures_in_samples_count_as_shown() -> None:
    text = "![](samples/a.png) ![](../samples/b.png) ![](x/samples/c.png) ![](samples/../d.png)"
    text += " url: samples/e.png samples/f.jpg"
    assert pictures_shown(text) == ["samples/a.png", "samples/e.png"]
