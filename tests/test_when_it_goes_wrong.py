"""The page `docs/when-it-goes-wrong.md` has every sentence that the code can say, and none that it no longer says."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pseudoword.cli import COMMANDS
from pseudoword.commands.algebra import HOW_MANY
from pseudoword.methods import OPTIONS
from tests.sentences import GAP, Said, plain, read

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "when-it-goes-wrong.md").read_text(encoding="utf-8")
LIST = PAGE.partition("\n## Each sentence, with its cure\n")[2]
CODE = r"(?P<ticks>`+)(?P<sentence>[^`].+?)(?P=ticks)"
ENTRY = re.compile(rf"^- {CODE}\\\n(?P<cure>(?:  [^\n]+\n)+)", re.DOTALL | re.MULTILINE)

HIDDEN = "sentence.replace(token, '***') if token else sentence"
PARTS = {
    ("src/pseudoword/engines/steps.py", "reason"),
    ("src/pseudoword/hub_client.py", "_reason"),
    ("src/pseudoword/hub_client.py", "_answered"),
    ("src/pseudoword/judging/learned.py", "_still"),
    ("src/pseudoword/judging/learned.py", "_long"),
    ("src/pseudoword/judging/learned.py", "_rose"),
    ("src/pseudoword/judging/learned.py", "_ends_worse"),
    ("src/pseudoword/judging/planned.py", "_fitting"),
    ("src/pseudoword/judging/planned.py", "_too_long"),
    ("src/pseudoword/judging/planned.py", "_transparent"),
    ("src/pseudoword/judging/planned.py", "_plain"),
    ("src/pseudoword/judging/planned.py", "_no_word"),
    ("src/pseudoword/judging/planned.py", "_too_high"),
    ("src/pseudoword/judging/planned.py", "_too_low"),
    ("src/pseudoword/toybox/limits.py", "_limits"),
}
"""Functions that return parts of sentences, which are listed too, by file and name."""
NOT_ON_THE_PAGE = {
    ("src/pseudoword/cli.py", "ended"): "a caught error's own sentence, printed as it is",
    ("src/pseudoword/watch.py", "wrapped(self.format(record))"): "what was logged, listed where it is said",
    ("src/pseudoword/data/folder.py", "str(error)"): "what the system says of a file",
    ("src/pseudoword/data/folder.py", "str(error) or type(error).__name__"): "what Pillow says of a broken file",
    ("src/pseudoword/engines/torch_engine.py", "reasons"): "made in steps.reason, where they are read",
    ("src/pseudoword/engines/jax_engine.py", "reasons"): "made in steps.reason, where they are read",
    ("src/pseudoword/engines/jax_engine.py", "failed"): "this process' own error, once the others know of it",
    (
        "src/pseudoword/engines/jax_places.py",
        "str(outcome[1] or unsent)",
    ): "an error's own sentence, if the error cannot be sent",
    ("src/pseudoword/job.py", "failed"): "a caught error's own sentence, once the other processes know of it",
    ("src/pseudoword/engines/torch_engine.py", "outcome[0]"): "the main process' error, raised on the others too",
    ("src/pseudoword/families/locate.py", "ConnectionError"): "becomes a sentence in those who ask the Hub",
    ("src/pseudoword/families/locate.py", "errors[0]"): "the client's own error, which becomes a sentence there too",
    ("src/pseudoword/families/locate.py", "str(refusal)"): "made in _refused_by_hub, where it is read",
    ("src/pseudoword/formats/__init__.py", "f'{path}: {error}'"): "a TokenError's own sentence, with the file's name",
    ("src/pseudoword/flax_models/noise.py", "no timesteps, or a variance below zero"): "in brackets there",
    ("src/pseudoword/hub.py", "'%s'"): "what _warn is given, which is read there",
    ("src/pseudoword/hub_client.py", "LocalTokenNotFoundError"): "caught in the same module; _reason has its sentence",
    ("src/pseudoword/hub_client.py", "_TooLong"): "the same",
    ("src/pseudoword/hub_client.py", "response.status_code"): "the same",
    ("src/pseudoword/hub_client.py", HIDDEN): "the sentence that is read beside it, without the token",
    ("src/pseudoword/job.py", "limit"): "made in toybox/limits.py, where it is read",
    ("src/pseudoword/recipe.py", "f'{path}: {error}'"): "a RecipeError's own sentence, with the file's name",
    ("src/pseudoword/checkpoints.py", "… is …"): "in brackets in 'The checkpoint … cannot be read (…)'",
    (
        "src/pseudoword/watch.py",
        "_sentence(last, losses, pace, left)",
    ): "the line of a step that went well",
    ("examples/textual_inversion/textual_inversion.py", "ended"): "a caught error's own sentence, or the happy end",
}
"""Messages that are not to be listed, by file and sentence, or expression where it cannot be read, with the reason."""


@functools.cache
def said() -> list[Said]:
    """Return what the package and its examples can say."""
    paths = [path for folder in ("src/pseudoword", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
    return read({path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}, PARTS)


IN_BRACKETS = {
    "src/pseudoword/formats/machine.py": "in '… is not read, because it …'",
    "src/pseudoword/formats/pickles.py": "the same",
    "src/pseudoword/formats/pictures.py": "in '… is a picture that holds no word (…)'",
}
"""Files whose messages are parts of a sentence that is on the page."""


def to_be_listed() -> Iterator[tuple[str, str | None]]:
    """Yield where each message is, and its sentence."""
    for one in said():
        if one.file not in IN_BRACKETS and (one.file, one.text) not in NOT_ON_THE_PAGE:
            yield f"{one.file}:{one.line}: {one.text}", one.sentence


def listed() -> Counter[str]:
    """Return the page's sentences, and how often each is there."""
    return Counter(plain(entry["sentence"]) for entry in ENTRY.finditer(LIST))


def test_every_sentence_is_on_the_page():
    page = listed()
    missing = [where for where, sentence in to_be_listed() if sentence and sentence not in page]
    assert missing == [], "add these to docs/when-it-goes-wrong.md, each with its cure"


def test_every_sentence_on_the_page_is_still_said():
    gone = listed().keys() - {sentence for _, sentence in to_be_listed()}
    assert gone == set(), "no code says these any more; mend or delete them in docs/when-it-goes-wrong.md"


def test_every_message_can_be_read_from_the_source_or_has_a_reason_not_to_be():
    unread = [where for where, sentence in to_be_listed() if sentence is None]
    assert unread == [], "make these literal, or say in NOT_ON_THE_PAGE why they are not listed"
    assert NOT_ON_THE_PAGE.keys() <= {(one.file, one.text) for one in said()}, "these need no reason any more"


def test_every_sentence_is_listed_once_with_a_cure_in_whole_sentences():
    assert [sentence for sentence, times in listed().items() if times > 1] == []
    entries = list(ENTRY.finditer(LIST))
    assert len(entries) == len(re.findall(r"^- ", LIST, re.MULTILINE)), "an entry is not `sentence`\\ and its cure"
    cures = {entry["sentence"]: " ".join(entry["cure"].split()) for entry in entries}
    assert {s: cure for s, cure in cures.items() if len(cure.split()) < 3 or not cure.endswith(".")} == {}


def test_the_page_names_only_options_that_there_are():
    commands = [importlib.import_module(f"pseudoword.commands.{name}") for name in COMMANDS]
    kinds = [command.Options for command in commands if hasattr(command, "Options")] + [*OPTIONS.values(), *HOW_MANY]
    guide = (ROOT / "examples" / "textual_inversion" / "textual_inversion.py").read_text(encoding="utf-8")
    known = {f"--{name.replace('_', '-')}" for kind in kinds for name in settings(kind)}
    known |= set(re.findall(r'add_argument\(\s*"(--\w+)"', guide)) | {
        "--help",
        "--help-all",
        "--cpu",
    }  # the last is accelerate launch's
    assert len(known) > 100
    assert set(re.findall(r"(?<![\w-])--\w[\w-]*", PAGE)) - known == set()


def settings(kind: type) -> Iterator[str]:
    """Yield the names of a dataclass's fields, and of the fields of those that are dataclasses."""
    for name, hint in typing.get_type_hints(kind).items():
        yield name
        if dataclasses.is_dataclass(hint):
            yield from settings(typing.cast(type, hint))


def test_links_within_the_page_lead_somewhere():
    titles = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    links = re.findall(r"\]\(#([^)]+)\)", PAGE)
    assert links
    assert set(links) <= {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


# What is read from a source


def sentences(source: str) -> list[str | None]:
    return [one.sentence for one in read({"module.py": source})]


ERRORS = "class OurError(Exception): ...\nclass Inner(OurError): ...\nNAME, MOST = 'a.txt', 7\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(x):\n raise OurError('plain')", ["plain"]),
        ("def f(x):\n raise Inner(f'one {x!r}, ' f'two {x:.2f}') from x", ["one …, two …"]),
        ("def f(x):\n raise OurError('it is %s' % x)", [None]),
        ("def f(x):\n raise OurError('a' if x else f'b {x}')", ["a", "b …"]),
        ("def f(x):\n raise OurError(f'it {x if x else 1} is{x}')", ["it … is…"]),
        ("def f(x):\n raise OurError('it ' + x + ' is')", ["it … is"]),
        ("def f(x):\n what = f'the {x}'\n raise OurError(f'{what} fell')", ["the … fell"]),
        ("def f(x):\n what = 'a' if x else 'b'\n raise OurError(f'{what} fell')", ["… fell"]),
        ("def f(x):\n what = 'a'\n what = what + 'b'\n raise OurError(what)", ["a", "…b"]),
        ("def f(x):\n what, code = 'a', 1\n raise OurError(what)", ["a"]),
        ("def f(x):\n for what in x: raise OurError(what)", [None]),
        ("def f(x):\n raise OurError(x)", [None]),
        ("def f(x):\n raise OurError(f'{x}: {x}')", [None]),
        ("def f(x):\n raise (OurError if x else Inner)('either')", ["either"]),
        ("def f(x):\n raise type(error)(f'{error} and more')", ["… and more"]),
        ("def f(x):\n raise OurError(f'{NAME} has {x}{x} {x}')", ["a.txt has …"]),
        ("def f(x):\n return OurError('returned')", ["returned"]),
        ("def f(x):\n return [ValueError('built in')]", ["built in"]),
        ("def f(x) -> OurError:\n return OurError('made')\ndef g(x):\n raise f(x)", ["made"]),
        ("def f(x):\n return OurError('made')\ndef g(x):\n raise f(x)", ["made", None]),
        ("def f(x):\n raise x[0]", [None]),
        ("def f(x):\n raise OurError", [None]),
        ("def f(x) -> OurError:\n return OurError('made')\ndef g(x):\n y = f(x)\n raise y", ["made"]),
        ("def f(x):\n y = x\n raise y", [None]),
        ("def f(x):\n log.warning('%s fell %.2f', x, x)", ["… fell …"]),
        ("def f(x):\n log.info('fine')", []),
        ("def f(x):\n print(f'{x} fell', file=sys.stderr)\n print('fine')", ["… fell"]),
        ("def f(x):\n def g(y):\n  raise OurError(what)\n what = 'outer'\n raise KeyboardInterrupt", ["outer"]),
    ],
)
def test_sentences_are_read_as_they_will_be_said(code: str, expected: list[str | None]):
    assert sentences(ERRORS + code) == expected


def test_named_numbers_and_texts_are_read_from_other_modules_too():
    sources = {
        "a.py": "class OurError(Exception): ...\nMOST = 7\n",
        "b.py": "from a import MOST\ndef f(x):\n raise OurError(f'at most {MOST}, not {x}')",
    }
    assert [one.sentence for one in read(sources)] == ["at most 7, not …"]


def test_parts_of_sentences_are_read_where_they_are_returned():
    source = "def reason(x):\n if x: return True, f'it {x} fell'\n return other(x)\n"
    assert [one.sentence for one in read({"a.py": source}, {("a.py", "reason")})] == ["it … fell"]
    assert read({"a.py": source}) == []


def test_gaps_and_spaces_are_compared_as_one():
    assert plain(f"a  {GAP}{GAP}\n {GAP} b") == f"a {GAP} b"
