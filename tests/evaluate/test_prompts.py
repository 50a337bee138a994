from __future__ import annotations

from pathlib import Path

import pytest

from pseudoword.errors import RecipeError
from pseudoword.evaluate.prompts import LISTS, Question, read


def test_every_list_asks_for_the_word_alone_and_for_more():
    for kind, questions in LISTS.items():
        assert [question.plain for question in questions].count(True) == 1
        assert len({question.text for question in questions}) == len(questions) > 12
        if kind != "style":
            assert not any(" style of " in question.text for question in questions)


def test_the_first_paragraph_of_a_file_is_plain(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text("a {}\n\n  a {} in the rain \n\na {} at sea\n", encoding="utf-8")
    assert read(file) == (Question("a {}", plain=True), Question("a {} in the rain"), Question("a {} at sea"))
    file.write_text("a {} in the rain\na {} at sea\n", encoding="utf-8")
    assert [question.plain for question in read(file)] == [False, False]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a cat in the rain", r"The evaluation prompt 'a cat in the rain' needs \{\} once, where the word goes\."),
        ("{} beside {}", r"needs \{\} once"),
        (" \n\n", r"prompts.txt' are empty; write one a line, with \{\} in each\."),
    ],
)
def test_a_file_that_asks_nothing_is_refused(content: str, told: str, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=told):
        read(tmp_path / "prompts.txt")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"Cannot read the evaluation prompts '.*none.txt': .*No such file"):
        read(tmp_path / "none.txt")
