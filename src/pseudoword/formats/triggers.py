"""What is typed in a tool's prompts for a word that is called as its file, and stems that all of them can read.

Read in the tools' sources: A1111's modules/prompt_parser.py, sd_hijack_clip.py, extra_networks.py and
processing_scripts/comments.py (00e0938; the same in Forge dfdcbab), ComfyUI 4f874c5 comfy/sd1_clip.py and its page's
processDynamicPrompt, InvokeAI 8e71a8a invokeai/app/util/ti_utils.py with compel 2.5.1's prompt_parser.py, sd-scripts
48d368f gen_img.py.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

LONGEST = 150
"""Characters of a stem; disks take 255 bytes for a name, with its ending and what a temporary file has besides."""
ADDED = "-ti"
"""What a plain word or number gets as a stem: `ti` is what people write for Textual Inversion."""
WEIGHT_AT_END = re.compile(r":\s*[-+]?(\d+\.?\d*|\.\d+)$")


@dataclass(frozen=True)
class Trigger:
    """What is typed for a word, or why nothing that is typed is read as the word."""

    text: str
    note: str = ""
    """How to write it, where that is not plain."""
    refusal: str = ""
    """What the tool does with the name instead; the file needs another."""


def safe_stem(token: str) -> str:
    """Return a file stem that is read in the prompts of every tool at once: of a-z, A-Z, 0-9, `-` and `_`.

    Other scripts are transliterated. It neither begins nor ends with a sign, since CLIP's tokenizer reads signs that
    stand together as one piece, and is no plain word or number: A1111 would take every `cat` in a prompt for it,
    kohya's scripts refuse pieces of CLIP's vocabulary, and ComfyUI reads `(embedding:2)` as a weight.
    """
    text = token
    if not token.isascii():
        from anyascii import anyascii

        text = anyascii(token)
    text = re.sub(r"[^A-Za-z0-9_-]+", "-", text)
    text = re.sub(r"-{2,}", "-", text)  # in InvokeAI's prompts -- after a word lowers its weight
    text = re.sub(r"[A-Za-z]*BREAK[A-Za-z]*|\bAND\b", lambda match: match[0].lower(), text)
    text = text.strip("-_")[:LONGEST].rstrip("-_") or "word"
    return text + ADDED if _is_plain(text) else text


def plain_name(token: str) -> str:
    """Return a token without the brackets around it, which tools that call a word as its file leave out."""
    return token[1:-1] if token.startswith("<") and token.endswith(">") else token


def _is_plain(stem: str) -> bool:
    """Whether a stem is a word or a number like those in prompts, or a device of Windows."""
    return stem.isalpha() or _is_number(stem) or re.fullmatch(r"(?i)(com|lpt)\d", stem) is not None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _is_letter_or_digit(character: str) -> bool:
    """Whether CLIP's tokenizer ends a piece of signs there."""
    return unicodedata.category(character)[0] in "LN"


def _escaped(name: str) -> str:
    """Return a name with a backslash before each sign that weights text in A1111's syntax."""
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", name)


def a1111(name: str) -> Trigger:
    """Return what A1111 and Forge read as the word of this name: its tokens, wherever they stand in a prompt."""
    if "#" in name:
        return Trigger("", refusal="takes what follows # for a comment")
    if match := re.search(r"\b(AND|BREAK)\b", name):
        return Trigger("", refusal=f"divides prompts at {match[0]}")
    if re.search(r"<\w+:[^>]+>", name):
        return Trigger("", refusal="takes <…:…> for a network to load")
    ends = name and _is_letter_or_digit(name[0]) and _is_letter_or_digit(name[-1])
    return Trigger(
        _escaped(name),
        _joined(
            "" if ends else "with spaces around it, as signs that touch are read as one",
            "not at the end, where its number would be a weight" if WEIGHT_AT_END.search(name) else "",
            "not between [ and ]" if re.search("[:|]", name) else "",
        ),
    )


def comfyui(stem: str, suffix: str) -> Trigger:
    """Return what ComfyUI reads as the word in a file: its name after `embedding:`, up to a space, `<` or `[`.

    An ending that it does not try by itself, as any in capitals where the disk tells them apart, is written too.
    """
    name = stem if suffix in (".safetensors", ".pt", ".bin") else f"{stem}{suffix}"
    if re.search(r"[\s<\[]", name):
        return Trigger("", refusal="ends a name after embedding: at a space, < or [")
    is_number = _is_number(name.rpartition(":")[2])
    return Trigger(
        "embedding:" + re.sub(r"[(){}]", r"\\\g<0>", name),
        _joined(
            f"in brackets with a weight, (embedding:{name}:1.1), or {name} is taken for one" if is_number else "",
            "with a space before a comma that follows" if name.strip(",") != name else "",
            "without the backslashes before { and } where prompts come by its API" if re.search("[{}]", name) else "",
        ),
    )


def invokeai(name: str) -> Trigger:
    """Return what InvokeAI reads as the model of this name, which is its file's when it is added."""
    if not re.fullmatch(r"[a-zA-Z0-9., _-]+", name):
        return Trigger("", refusal="knows no triggers but of a-z, A-Z, 0-9, spaces, and . , _ -")
    if re.search(r",|--|  |-[. ]", name) or name != name.strip():
        return Trigger("", refusal="takes triggers apart at commas, --, two spaces, and - before a space or .")
    return Trigger(
        f"<{name}>",
        _joined(
            "without a weight, which it does not read beside a full stop" if "." in name else "",
            f"in brackets with a weight, (<{name}>)1.1" if " " in name and "." not in name else "",
        ),
    )


def kohya(name: str) -> Trigger:
    """Return what gen_img.py reads as the word of this name, wherever it stands, as it is spelled.

    It refuses a name that its tokenizer has. CLIP's vocabulary is of letters, single digits and signs, each kind alone,
    never mixed; every single character of its 256 is there, and which longer ones are is not known here.
    """
    if is_piece(name):
        return Trigger("", refusal="refuses names that are pieces of CLIP's vocabulary")
    if match := re.search(r"BREAK| AND | --|\{.+\}", name):
        return Trigger("", refusal=f"has a meaning of its own for {match[0].strip()} in prompts")
    may_be = re.fullmatch(r"'?[a-z]+|[!-/:-@\[-`{-~]+", name)
    note = f"if {name!r} is no piece of CLIP's vocabulary, as common words are: it refuses those" if may_be else ""
    return Trigger(_escaped(name), note)


def is_piece(name: str) -> bool:
    """Whether a name certainly is in CLIP's vocabulary: a character that stands for a byte, or start and end."""
    is_byte = len(name) == 1 and ("!" <= name <= "~" or ("\u00a1" <= name <= "\u0143" and name != "\u00ad"))
    return is_byte or name in ("<|startoftext|>", "<|endoftext|>")
