"""What A1111 and Forge load as words: they have one loader, and differ in what they check and for which bases."""

from __future__ import annotations

from pseudoword.formats import misread
from pseudoword.formats.names import PICTURES
from pseudoword.formats.rule import (
    AS_XL,
    BY_ENDING,
    FOREIGN,
    LOADABLE,
    NAMELESS,
    NO_BASE,
    PART_OF_LORA,
    SEVERAL,
    UNEVEN,
    WRONG_KEY,
    loads,
    one,
    refuses,
)

WEBUI_FIRST = (
    NAMELESS,
    PART_OF_LORA,
    refuses(lambda f: f.ending not in (*LOADABLE, *PICTURES), "reads .pt, .bin, .safetensors and pictures"),
    BY_ENDING,
)
IN_LORA_OF_A1111 = (
    refuses(
        lambda f: f.bundled and misread.a1111_drops_lora(f.contents),
        "leaves out the whole LoRA, as a word in it is for text encoders that it has no base of",
    ),
    refuses(lambda f: f.bundled, "loads words in a LoRA with the LoRA alone: put it into models/Lora"),
)
IN_LORA_OF_FORGE = (
    refuses(
        lambda f: f.bundled and misread.forge_skips_lora(f.contents),
        "leaves the whole LoRA out, as its words are more than 12 tensors that are none of a LoRA's",
    ),
    refuses(
        lambda f: f.bundled, "passes over words in a LoRA's file; pseudoword convert --to forge takes them out of it"
    ),
)
WEBUI_LAST = (
    refuses(lambda f: bool(f.terms), "expects one word, and there are several"),
    SEVERAL,
    WRONG_KEY,
    AS_XL,
    UNEVEN,
    FOREIGN,
    loads(lambda f: f.has("clip_l", "clip_g"), "an SDXL word (clip_l, clip_g)"),
    loads(lambda f: one(f.values.values(), 1, 2), "a single tensor, whatever it is called"),
    refuses(lambda _: True, "finds several tensors, and is no SDXL word"),
)
A1111_RULES = (
    *WEBUI_FIRST,
    refuses(
        lambda f: misread.has_other_records(f.contents),
        "refuses a PyTorch file with more in it than data.pkl, data/N, version and byteorder, as newer torch writes; "
        "convert --to a1111 mends it",
    ),
    refuses(
        lambda f: misread.has_other_classes(f.contents),
        "refuses a PyTorch file with types that it does not know; convert --to a1111 mends it",
    ),
    NO_BASE,
    loads(lambda f: len(f.terms) == 1, "its own kind (string_to_param)"),
    *IN_LORA_OF_A1111,
    *WEBUI_LAST,
)
FORGE_RULES = (
    *WEBUI_FIRST,
    *IN_LORA_OF_FORGE,
    refuses(lambda f: f.only_width not in (0, 768, 1024, 1280), "has no text encoder of this width that takes words"),
    loads(
        lambda f: len(f.terms) == 1 and f.only_width == 768,
        "A1111's kind (string_to_param), also with FLUX.1 and SD 3.5, as rows of their CLIP-L",
    ),
    loads(lambda f: len(f.terms) == 1, "A1111's kind (string_to_param)"),
    *WEBUI_LAST[:-2],
    loads(
        lambda f: one(f.values.values(), 1, 2) and f.only_width == 768,
        "a single tensor, also with FLUX.1 and SD 3.5, as rows of their CLIP-L",
    ),
    loads(
        lambda f: one(f.values.values(), 1, 2) and f.only_width == 1280,
        "a single tensor, with SD 3.5 alone, as rows of its CLIP-G",
    ),
    *WEBUI_LAST[-2:],
)
