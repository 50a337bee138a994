"""Names that nothing has are answered with the one that was probably meant; files where folders should be are named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pseudoword import Concept, cli, formats, spelling, train
from pseudoword.data import folder
from pseudoword.errors import FormatError, PseudowordError
from pseudoword.generate import Sampling, generate, load
from tests.miniatures import TOKEN, MakeRecipe


def test_the_nearest_name_is_found_whatever_its_case_and_none_where_none_is_like_it():
    assert spelling.nearest("TOADSTOL", ["fir", "toadstool"]) == "toadstool"
    assert spelling.nearest("<cat-toyy>", ["<dog>", "<Cat-Toy>"]) == "<Cat-Toy>"
    assert spelling.nearest("xyz", ["fir", "toadstool"]) is None
    assert spelling.did_you_mean("xyz", []) == ""


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["trian"], "'train'"),
        (["toybox", "rendr"], "'render'"),
        (["toybox", "render", "--concept", "toadstol"], "'toadstool'"),
        (["demo", "--concept", "toadstol"], "'toadstool'"),
        (["demo", "--concept=toadstol"], "'toadstool'"),
        (["train", "--learnin-rate", "5"], "'--learning-rate'"),
        (["train", "--adam-bta1=0.5"], "'--adam-beta1'"),
        (["check", "--picturs", "cat"], "'--pictures'"),
        (["train", "--method", "clasic"], "'classic'"),
        (["generate", "--promt", "a cat"], "'--prompt'"),
        (["evaluate", "--mesure", "clip"], "'--measure'"),
        (["sweep", "--varry", "steps=1"], "'--vary'"),
    ],
)
def test_commands_options_and_names_are_answered_with_what_was_meant(
    words: Sequence[str], meant: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(words) in (1, 2)
    assert capsys.readouterr().err.rstrip().endswith(f"Did you mean {meant}?")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--learning_rate", "5"],  # underscores are as good
        ["train", "--no-scale-lr"],
        ["train", "--utterly-unlike"],
        ["generate", "--help"],
    ],
)
def test_what_is_known_or_like_nothing_is_left_to_the_parser(words: Sequence[str]):
    with pytest.raises(SystemExit):
        cli.main(words)


def test_a_token_that_a_file_of_several_lacks_is_answered(lora: Path, tmp_path: Path):
    words = [Concept(token, {"clip_l": np.ones((1, 768), np.float32)}) for token in ("<cat-toy>", "<dog>")]
    path = formats.bundle_into(lora, words, tmp_path / "two.safetensors")
    assert len(formats.read_all(path)) == 2
    with pytest.raises(FormatError, match=r"Did you mean '<cat-toy>'\?$"):
        formats.read(path, "<cat-toyy>")
    with pytest.raises(FormatError, match=r"pseudoword convert\.$"):
        formats.read(path)


# Words in prompts that no file brings


def strays(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "read as plain text" in r.getMessage()]


def test_generate_names_words_that_no_file_brings(make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture):
    family = load(make_recipe().base)
    [width] = {v.table.shape[1] for v in family.vocabularies.values()}
    word = Concept(TOKEN, {"clip_l": np.ones((1, width), np.float32)})
    prompts = [f"a {TOKEN}", "a <cat-toyy>", "a <cat-toyy> again", f"two {TOKEN}s", "<|endoftext|>", "1 <2 and 3> 2"]
    generate(family, [word], prompts, negative_prompt="<ugly>", sampling=Sampling(steps=1), batch_size=6)
    assert strays(caplog) == [
        f"No file brings the word <cat-toyy>, so in 'a <cat-toyy>' it is read as plain text. Did you mean '{TOKEN}'?",
        f"In 'two {TOKEN}s' a letter, digit or _ touches {TOKEN}, so it is read as plain text.",
        "No file brings the word <ugly>, so in '<ugly>' it is read as plain text.",
    ]


def test_validation_prompts_name_them_before_training(make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture):
    prompts = (f"a {TOKEN} and a <dog>",)
    recipe = make_recipe(validation_prompts=prompts, validation_sampling_steps=1, num_validation_images=1, steps="1")
    assert list(train(recipe))
    assert strays(caplog) == [f"No file brings the word <dog>, so in '{prompts[0]}' it is read as plain text."]


# A file where a folder should be, and the other way round


def test_a_file_given_as_a_folder_is_said_to_be_one(make_recipe: MakeRecipe, pictures: Path, tmp_path: Path):
    with pytest.raises(PseudowordError, match=r"0\.png' is a file, not a folder; give the folder that holds it"):
        folder.look(pictures / "0.png")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(PseudowordError, match=r"^The run's folder '.*file' is a file; name a folder"):
        list(train(make_recipe(folder=str(file))))
    assert file.read_text() == "x"


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--steps", "1", "--output"],
        ["toybox", "render", "--count", "1", "--output"],
        ["generate", "--model", "toybox", "--prompt", "x", "--output"],
        ["sweep", "--suite", "toybox", "--vary", "steps=1", "--output"],
        ["evaluate", "--suite", "toybox", "--output"],
    ],
)
def test_an_output_that_is_a_file_is_told_before_anything_is_done(
    words: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "file"
    file.write_text("x")
    assert cli.main([*words, str(file)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "is a file" in last or "must be a folder" in last
    assert file.read_text() == "x"
