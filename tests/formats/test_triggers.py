"""What is typed for a word in each tool, held against restatements of how the tools read prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from hypothesis import given
from hypothesis import strategies as st

from pseudoword import Concept, cli, formats
from pseudoword.formats import triggers
from pseudoword.formats.tools import TOOLS
from tests.formats.test_readers import word

ATTENTION = re.compile(r"\\\(|\\\)|\\\[|\\]|\\\\|\\|\(|\[|:([+-]?[.\d]+)\)|\)|]|[^\\()\[\]:]+|:")
PIECE = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
"""CLIP's: contractions, letters, single digits, signs. Its vocabulary's entries never reach over two of them."""


def pieces(text: str) -> list[str]:
    return PIECE.findall(text.lower())


def weighted(text: str) -> list[tuple[str, float]]:
    """Return chunks of equal weight (`parse_prompt_attention` of A1111 and of sd-scripts)."""
    found: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []

    def weigh(start: int, by: float) -> None:
        for i in range(start, len(found)):
            found[i] = found[i][0], found[i][1] * by

    for match in ATTENTION.finditer(text):
        part, weight = match[0], match[1]
        opener = {")": "(", "]": "["}.get(part, "(" if weight else "")
        place = max((i for i, (sign, _) in enumerate(opened) if sign == opener), default=None)
        if part.startswith("\\"):
            found.append((part[1:], 1.0))
        elif part in ("(", "["):
            opened.append((part, len(found)))
        elif place is not None and opener:
            weigh(opened.pop(place)[1], float(weight) if weight else 1.1 if opener == "(" else 1 / 1.1)
        else:
            found.append((part, 1.0))
    for sign, start in opened:
        weigh(start, 1.1 if sign == "(" else 1 / 1.1)
    merged: list[tuple[str, float]] = []
    for text_, weight_ in found:
        if merged and merged[-1][1] == weight_:
            merged[-1] = merged[-1][0] + text_, weight_
        else:
            merged.append((text_, weight_))
    return merged


def a1111(prompt: str, name: str) -> bool:
    """Whether the tokens of a name stand in the prompt, after all that A1111 takes out of it."""
    prompt = re.sub(r"#[^\n]*(\n|$)", "\n", prompt)
    prompt = re.sub(r"<(\w+):([^>]+)>", "", prompt)
    wanted = pieces(name)
    for part in re.split(r"\bAND\b", prompt):
        text = re.sub(r"\s*:\s*[-+]?(?:\d+\.?|\d*\.\d+)\s*$", "", part)
        for chunk, _ in weighted(text):
            for piece in re.split(r"\s*\bBREAK\b\s*", chunk):
                has = pieces(piece)
                if any(has[i : i + len(wanted)] == wanted for i in range(len(has))):
                    return True
    return False


def kohya(prompt: str, name: str) -> bool:
    """Whether gen_img.py meets the added token of a name, which it finds in the text as it is."""
    prompt = prompt.split(" --")[0]
    prompt = re.sub(r"\{.+?\}", lambda match: match[0].strip("{}").split("|")[0], prompt)
    for part in prompt.split(" AND "):
        for chunk, _ in weighted(part):
            if any(name in piece for piece in chunk.split("BREAK")):  # which stands alone, wherever it is found
                return True
    return False


def comfyui(prompt: str, name: str) -> bool:
    """Whether ComfyUI looks for the file of this name, given a prompt on its page."""
    prompt = re.sub(r"\\([{}|])|\{[^}]*\}", lambda match: match[1] or "", prompt)
    text = prompt.replace("\\)", "\0\1").replace("\\(", "\0\2")
    for segment in segments(text):
        segment = segment.replace("\0\1", ")").replace("\0\2", "(")
        first, *more = re.split(r"(?<=\s)embedding:", segment)
        asked = [first.removeprefix("embedding:")] if first.startswith("embedding:") else []
        for after in (*asked, *more):
            called = re.split(r"[<\[]", after.split()[0])[0] if after.split() else ""
            if name in (called, called.strip(",")):
                return True
    return False


def segments(text: str) -> list[str]:
    """Return the parts of a prompt without their weights (`token_weights`)."""
    parts: list[str] = []
    depth, current = 0, ""
    for sign in text:
        if sign == "(":
            depth += 1
            if depth == 1:
                parts.append(current)
                current = ""
        current += sign
        if sign == ")":
            depth -= 1
            if depth == 0:
                parts.append(current)
                current = ""
    plain: list[str] = []
    for part in [*parts, current]:
        if part.startswith("(") and part.endswith(")"):
            inner, colon, weight = part[1:-1].rpartition(":")
            plain += segments(inner if colon and inner and is_number(weight) else part[1:-1])
        elif part:
            plain.append(part)
    return plain


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def invokeai(prompt: str, name: str) -> bool:
    """Whether InvokeAI finds the trigger, and compel 2.5.1 leaves it in one piece (as compared with its parser)."""
    in_one_piece = not re.search(r",|--|  |-[. ]", name)
    return f"<{name}>" in re.findall(r"<[a-zA-Z0-9., _-]+>", prompt) and in_one_piece


READS: dict[str, Callable[[str, str], bool]] = {
    "a1111": a1111,
    "forge": a1111,
    "comfyui": comfyui,
    "invokeai": invokeai,
    "kohya": kohya,
}
PLAIN = ("{}", "a photo of {} on a table", "a photo of {}, red", "{} and ({}:1.2)", "(red {} here:1.3)")


def of(tool: str, name: str) -> triggers.Trigger:
    if tool == "comfyui":
        return triggers.comfyui(name, ".safetensors")
    return {"a1111": triggers.a1111, "forge": triggers.a1111, "invokeai": triggers.invokeai, "kohya": triggers.kohya}[
        tool
    ](name)


# Each tool, name by name


@pytest.mark.parametrize(
    ("tool", "name", "text"),
    [
        ("a1111", "my-cat", "my-cat"),
        ("a1111", "cat (1)", r"cat \(1\)"),
        ("a1111", "[x]", r"\[x\]"),
        ("a1111", "кот", "кот"),
        ("a1111", "don't", "don't"),
        ("a1111", "a\\b", r"a\\b"),
        ("a1111", "cat!", "cat!"),
        ("a1111", "c#4", ""),
        ("a1111", "rock AND roll", ""),
        ("a1111", "lunch-BREAK", ""),
        ("a1111", "<lora:x>", ""),
        ("comfyui", "my-cat", "embedding:my-cat"),
        ("comfyui", "a,b", "embedding:a,b"),
        ("comfyui", "a:b", "embedding:a:b"),
        ("comfyui", "cat(1)", r"embedding:cat\(1\)"),
        ("comfyui", "x>y]", "embedding:x>y]"),
        ("comfyui", "{x}", r"embedding:\{x\}"),
        ("comfyui", "кот", "embedding:кот"),
        ("comfyui", "cat (1)", ""),
        ("comfyui", "<x>", ""),
        ("comfyui", "[x]", ""),
        ("invokeai", "my-cat", "<my-cat>"),
        ("invokeai", "my cat_2", "<my cat_2>"),
        ("invokeai", "v1.5", "<v1.5>"),
        *(("invokeai", name, "") for name in ("кот", "ünï", "cat(1)", "a+b", "don't", "<x>")),
        *(("invokeai", name, "") for name in ("a,b", "a--b", "a- b", "a  b")),
        ("kohya", "my-cat", "my-cat"),
        ("kohya", "cat", "cat"),
        ("kohya", "cat(1)", r"cat\(1\)"),
        ("kohya", "кот", "кот"),
        *(("kohya", name, "") for name in ("1", "a", "A", "é", "!", "xBREAKx", "a --b", "{a|b}", "<|endoftext|>")),
    ],
)
def test_what_is_typed_is_what_the_tool_reads(tool: str, name: str, text: str):
    trigger = of(tool, name)
    assert trigger.text == text
    assert bool(trigger.refusal) == (not text)
    if text and not trigger.note:
        for prompt in PLAIN:
            typed = prompt.replace("{}", text)
            assert READS[tool](typed, name), typed
    if not text and not triggers.is_piece(name):
        as_it_is = f"embedding:{name}" if tool == "comfyui" else f"<{name}>" if tool == "invokeai" else name
        assert not READS[tool](f"a photo of {as_it_is} there", name)


@pytest.mark.parametrize(
    ("tool", "name", "note", "wrong", "right"),
    [
        ("a1111", "cat!", "spaces around", "a {}, red", "a {} , red"),
        ("a1111", "[x]", "spaces around", "a {}. red", "a {} . red"),
        ("a1111", "a:2", "not at the end", "a {}", "a {} b"),
        ("comfyui", "1e5", "in brackets with a weight", "a ({}) b", "a ({}:1.1) b"),
        ("comfyui", "nan", "in brackets with a weight", "a ({}) b", "a ({}:1.1) b"),
        ("comfyui", "a,", "before a comma", "a {}, red", "a {} , red"),
    ],
)
def test_a_note_says_where_a_trigger_is_not_read(tool: str, name: str, note: str, wrong: str, right: str):
    trigger = of(tool, name)
    assert note in trigger.note
    assert not READS[tool](wrong.replace("{}", trigger.text), name)
    assert READS[tool](right.replace("{}", trigger.text), name)


@pytest.mark.parametrize("name", ["cat", "toy", "sks", "...", "'s"])
def test_a_name_that_may_be_a_piece_of_clips_vocabulary_is_said_to(name: str):
    assert "if " in triggers.kohya(name).note
    assert len(pieces(name)) == 1


@pytest.mark.parametrize("name", ["cat-toy", "cat2", "12", "my_cat", "a.b", "кот"])
def test_a_name_that_cannot_be_one_is_taken_without_a_note(name: str):
    assert not triggers.kohya(name).note


@pytest.mark.parametrize("ending", [".PT", ".SAFETENSORS", ".Bin", ".ckpt"])
def test_comfyui_is_told_an_ending_that_it_does_not_try(ending: str):
    assert triggers.comfyui("my-cat", ending).text == f"embedding:my-cat{ending}"
    assert triggers.comfyui("my-cat", ending.lower()).text == (
        "embedding:my-cat" if ending.lower() != ".ckpt" else "embedding:my-cat.ckpt"
    )


# A stem for all of them


@pytest.mark.parametrize(
    ("token", "stem"),
    [
        ("<cat-toy>", "cat-toy"),
        ("<my_cat2>", "my_cat2"),
        ("<кот>", "kot-ti"),
        ("<мой-кот>", "moy-kot"),
        ("ünï-x", "uni-x"),
        ("<cat(1)>", "cat-1"),
        ("a+b", "a-b"),
        ("don't", "don-t"),
        ("<toy>", "toy-ti"),
        ("1", "1-ti"),
        ("1e5", "1e5-ti"),
        ("sks_1.5", "sks_1-5"),
        ("rock-AND-roll", "rock-and-roll"),
        ("BREAK-dance", "break-dance"),
        ("a--b", "a-b"),
        ("_x-y_", "x-y"),
        ("com1", "com1-ti"),
        ("*", "word-ti"),
        ("<日本>", "RiBen-ti"),
    ],
)
def test_a_safe_stem_stays_close_to_its_token(token: str, stem: str):
    assert formats.safe_stem(token) == stem


@given(token=st.text(min_size=1, max_size=100) | st.from_regex(r"[a-cAND \-_.,'(\[#:{1-2BREKé]{1,12}", fullmatch=True))
def test_a_safe_stem_is_read_by_every_tool_as_it_is(token: str):
    stem = formats.safe_stem(token)
    assert stem.isascii()
    assert formats.safe_stem(stem) == stem
    assert Path(f"{stem}.safetensors").stem == stem
    assert len(pieces(stem)) > 1, "one piece may be in CLIP's vocabulary, or an ordinary word"
    for tool, reads in READS.items():
        trigger = of(tool, stem)
        assert trigger.text.removeprefix("embedding:").strip("<>") == stem
        assert not trigger.note
        for prompt in (*PLAIN, "a ({}) b", "a {} . b", "({})"):
            assert reads(prompt.replace("{}", trigger.text), stem), (tool, prompt)


def test_a_stem_fits_on_disks_whatever_the_token_grows_to():
    assert len(formats.safe_stem("<" + "日" * 98 + ">")) <= triggers.LONGEST + len(triggers.ADDED)


# What people see


def test_inspect_says_what_to_type_or_what_to_call_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = formats.write_file(word("sd1"), tmp_path / "cat (1).safetensors", "kohya")
    assert cli.main(["inspect", str(path), "--json"]) == 0
    [shown] = json.loads(capsys.readouterr().out)
    tools = shown["tools"]
    assert tools["a1111"]["trigger"] == r"cat \(1\)"
    assert tools["a1111"]["note"] == "with spaces around it, as signs that touch are read as one"
    assert not tools["invokeai"]["loads"]
    assert tools["invokeai"]["says"] == ("knows no triggers but of a-z, A-Z, 0-9, spaces, and . , _ -; call it cat-1")
    assert tools["comfyui"]["says"] == "ends a name after embedding: at a space, < or [; call it cat-1"
    assert cli.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert r"yes, as cat \(1\), with spaces around it" in out


def test_a_picture_is_called_as_it_says_and_not_as_its_file(tmp_path: Path):
    path = formats.write_file(word("sd1"), tmp_path / "my-cat.png", "webui").rename(tmp_path / "c#4.png")
    verdict = TOOLS["a1111"].verdict(formats.open_file(path), path.name)
    assert verdict.trigger == "my-cat"


def test_convert_names_a_word_so_that_all_tools_read_it_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = tmp_path / "source"
    word("sd1", token="<кот>").save(source)
    output = tmp_path / "out"
    assert cli.main(["convert", str(source), "--to", "invokeai,comfyui,diffusers", "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert (output / "invokeai" / "kot-ti.safetensors").is_file()
    assert "in prompts <kot-ti>; it is called kot-ti, which every tool reads in prompts" in out
    assert out.count("it is called") == 2, "diffusers calls a word by its token"
    assert formats.read(output / "comfyui" / "kot-ti.safetensors").token == "<кот>"
    assert cli.main(["convert", str(source), "--to", "invokeai", "--output", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["renamed"] == "kot-ti"


def test_convert_refuses_a_name_of_yours_that_the_tool_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = word("sd1", token="<my-cat>").save(tmp_path / "my-cat.safetensors")
    output = tmp_path / "кот.safetensors"
    assert cli.main(["convert", str(source), "--to", "invokeai", "--output", str(output)]) == 1
    assert not output.exists()
    assert "InvokeAI would load кот.safetensors, but not read its name in prompts" in capsys.readouterr().err
    assert cli.main(["convert", str(source), "--to", "a1111", "--output", str(tmp_path / "кот.pt")]) == 0


def test_a_lora_has_a_word_under_its_safe_stem_or_the_one_that_it_was_under(
    tmp_path: Path, lora: Path, capsys: pytest.CaptureFixture[str]
):
    source = word("sd1", token="<кот>").save(tmp_path / "kot.safetensors")
    both = tmp_path / "both.safetensors"
    assert cli.main(["convert", str(source), "--into", str(lora), "--output", str(both)]) == 0
    assert "has <кот> as kot-ti." in capsys.readouterr().out
    tensors = safetensors.torch.load_file(both)
    assert {key.split(".")[1] for key in tensors if key.startswith("bundle_emb.")} == {"kot-ti"}
    earlier = {key.replace(".kot-ti.", ".кот."): tensor for key, tensor in tensors.items()}
    safetensors.torch.save_file(earlier, both)
    formats.bundle_into(both, [Concept("<кот>", word("sd1", 3).rows)], tmp_path / "again.safetensors")
    [again] = formats.read_all(tmp_path / "again.safetensors")
    assert again.num_vectors == 3


def test_a_run_exports_a_word_under_its_safe_stem_and_keeps_an_export_that_it_has(tmp_path: Path):
    concept = word("sd1", token="<кот>")
    exports = tmp_path / "exports"
    formats.write_exports(concept, tmp_path, ".safetensors")
    assert [path.name for path in exports.iterdir()] == ["kot-ti.safetensors"]
    formats.write_file(word("sd1", 3, token="<кот>"), exports / "кот.safetensors", "kohya")  # an earlier version's
    written = formats.write_exports(concept, tmp_path, ".bin")
    assert {path.name for path in written} == {"kot-ti.bin", "кот.bin"}
    assert {path.name for path in exports.iterdir()} == {"kot-ti.bin", "кот.bin"}
    for path in formats.exports_in(tmp_path):
        assert (formats.read(path).rows["clip_l"] == concept.rows["clip_l"]).all()
