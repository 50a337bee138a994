"""What tools refuse or misread for how a file is stored, rather than for what its rows are."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from pseudoword import encoders
from pseudoword.contents import Contents, blocks
from pseudoword.encoders import BY_KEY, CALLED
from pseudoword.formats import bundle, diffusers
from pseudoword.formats.names import are_keys
from pseudoword.formats.tensors import BUNDLED

# A1111: modules/safe.py, which looks into a PyTorch file before torch does

RECORDS = re.compile(r"[^/]+/(data/\d+|version|byteorder|data\.pkl)")
"""What it lets into a zip; versions before 1.10 and some forks not even `byteorder`."""
CLASSES = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_device_tensor_from_numpy",
        "torch.FloatStorage",
        "torch.HalfStorage",
        "torch.BFloat16Storage",
        "torch.DoubleStorage",
        "torch.IntStorage",
        "torch.LongStorage",
        "torch.ByteStorage",
        "torch.float32",
        "torch.nn.modules.container.ParameterDict",
        "__builtin__.set",
    }
)
"""What it lets a pickle name."""


def has_other_records(contents: Contents) -> bool:
    """Whether A1111 finds more in a PyTorch file's zip than it knows, as in those of newer versions of torch."""
    return any(not RECORDS.fullmatch(name) for name in contents.records)


def has_other_classes(contents: Contents) -> bool:
    """Whether A1111 finds a name in a PyTorch file's pickle that it does not know."""
    return not contents.classes <= CLASSES


# ComfyUI: safe_load_embed_zip, for files that torch does not take to be safe


def is_right_in_zip(contents: Contents) -> bool:
    """Whether the zip's last numbers, taken for fp32 and rows of 768 or else 1024, are the file's rows."""
    name, rows = list(contents.values["string_to_param"].items())[-1]
    if not contents.records or contents.dtypes.get(f"string_to_param.{name}") != "F32":
        return False
    return rows.size >= 768 and rows.shape[-1] == (768 if rows.size % 768 == 0 else 1024)


# Words in a LoRA's file


def bundled_words(contents: Contents) -> dict[str, dict[str, np.ndarray]]:
    """Return the rows of the words in a LoRA's file by word and by what each calls them."""
    words: dict[str, dict[str, np.ndarray]] = {}
    for name, rows in contents.values.items():
        if name.startswith(BUNDLED) and isinstance(rows, np.ndarray):
            word, _, key = bundle.parted(name.removeprefix(BUNDLED))
            words.setdefault(word, {})[key] = rows
    return words


def a1111_drops_lora(contents: Contents) -> bool:
    """Whether a bundled word is none for A1111, which then leaves out the whole LoRA."""
    return any(not _is_word_of_a1111(parts) for parts in bundled_words(contents).values())


def _is_word_of_a1111(parts: Mapping[str, np.ndarray]) -> bool:
    """Whether `create_embedding_from_data` takes it: one tensor, or rows for both text encoders of SDXL."""
    return len(parts) == 1 or "string_to_param" in parts or {"clip_l", "clip_g"} <= set(parts)


def forge_skips_lora(contents: Contents) -> bool:
    """Whether the words are more tensors than Forge forgives a LoRA."""
    return sum(len(parts) for parts in bundled_words(contents).values()) > bundle.MOST_UNMATCHED


def comfyui_finds_bundled(contents: Contents) -> bool:
    """Whether ComfyUI finds rows under the key of each text encoder that the words are for.

    Where it finds none it takes the file's first tensor, mostly a single number, at which the prompt fails.
    """
    words = bundled_words(contents)
    return bool(words) and all(_is_word_of_comfyui(parts) for parts in words.values())


def _is_word_of_comfyui(parts: Mapping[str, np.ndarray]) -> bool:
    if set(parts) == {"string_to_param"}:
        return True
    for key, rows in parts.items():
        encoder = CALLED.get(key.removesuffix("_out"))
        known = encoder is not None and BY_KEY[encoder].readers.get("comfyui") == key.removesuffix("_out")
        if not known or encoders.contradicts(encoder or "", rows.shape[-1]):
            return False
    return True


# Keys


def _keyed(contents: Contents) -> dict[str, np.ndarray]:
    """Return those of a file's arrays that are called as text encoders are."""
    arrays = {name: rows for name, rows in contents.values.items() if isinstance(rows, np.ndarray) and rows.ndim}
    keyed = {name: rows for name, rows in arrays.items() if name in CALLED}
    return keyed if are_keys(keyed) else {}


def foreign_encoders(contents: Contents) -> set[str]:
    """Return the text encoders that a file has keys of, other than those of Stable Diffusion and FLUX.1."""
    return {CALLED[name] for name in _keyed(contents)} - {"clip_l", "clip_h", "clip_g", "t5"}


def unread_by(tool: str, contents: Contents) -> bool:
    """Whether a file has rows of a text encoder for which a tool takes no words."""
    return any(tool not in BY_KEY[encoder].readers for encoder in foreign_encoders(contents))


def called_otherwise(tool: str, contents: Contents) -> bool:
    """Whether a file has rows under another key than the one that a tool looks for, and not under that."""
    looked_for = {name: BY_KEY[CALLED[name]].readers.get(tool, name) for name in _keyed(contents)}
    return any(key not in contents.values for key in looked_for.values())


def has_key_of_another(contents: Contents) -> bool:
    """Whether rows are under the key of a text encoder of CLIP that is not as wide."""
    return any(encoders.contradicts(CALLED[name], rows.shape[-1]) for name, rows in _keyed(contents).items())


def has_several_words(contents: Contents) -> bool:
    """Whether a file has a tensor under each of several tokens."""
    return len(contents.values) > 1 and diffusers.are_words(blocks(contents.values))


def has_uneven_counts(contents: Contents) -> bool:
    """Whether the rows for SDXL's text encoders are not equally many."""
    pair = [contents.values.get(key) for key in ("clip_l", "clip_g")]
    counts = {len(np.atleast_2d(rows)) for rows in pair if isinstance(rows, np.ndarray)}
    return len(counts) > 1
