"""Caption templates: the guide's own, each with one place for the word."""

from __future__ import annotations

import hashlib
import string

import pytest

from pseudoword.data.captions import OBJECT_TEMPLATES, STYLE_TEMPLATES, TEMPLATES

# Of the two lists joined by line breaks in diffusers' examples/textual_inversion/textual_inversion.py.
SHA256 = {
    "object": "371f97a75395160ff3d9224cd0dfa7ac7b21c46fd66e2ffc20c77d5d495707e9",
    "style": "e7ec2b1750c5ab55d7abc8afd59dba90ef334f8f48b7b1bf720c5ff8a9438749",
}


@pytest.mark.parametrize(("kind", "templates"), TEMPLATES.items())
def test_templates_are_the_guides_in_its_order(kind: str, templates: tuple[str, ...]):
    assert hashlib.sha256("\n".join(templates).encode()).hexdigest() == SHA256[kind]


@pytest.mark.parametrize("template", [*OBJECT_TEMPLATES, *STYLE_TEMPLATES])
def test_a_template_has_one_place_for_the_word_and_it_stands_alone_there(template: str):
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    assert fields == [""]
    assert template.endswith(" {}")


def test_there_are_as_many_as_the_guide_has():
    assert len(OBJECT_TEMPLATES) == len(set(OBJECT_TEMPLATES)) == 27
    assert len(STYLE_TEMPLATES) == 19
    twice = {template for template in STYLE_TEMPLATES if STYLE_TEMPLATES.count(template) > 1}  # in the guide too
    assert twice == {"a cropped painting in the style of {}", "a close-up painting in the style of {}"}


def test_the_table_has_both_kinds():
    assert TEMPLATES == {"object": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}
