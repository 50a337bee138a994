"""Who can load an embedding file, and who cannot and why: each tool's own rules, in its order, with their source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from pseudoword.contents import Contents, Parameters
from pseudoword.formats import triggers
from pseudoword.formats.names import PICTURES, container_of
from pseudoword.formats.tensors import BUNDLED
from pseudoword.formats.triggers import Trigger

BASES = {
    ("clip_l:768",): "Stable Diffusion 1.x",
    ("clip_h:1024",): "Stable Diffusion 2.x",
    ("clip_l:768", "clip_g:1280"): "Stable Diffusion XL",
    ("clip_l:768", "clip_g:1280", "t5:4096"): "Stable Diffusion 3",
    ("clip_l:768", "t5:4096"): "FLUX.1",
    ("t5:4096",): "a base with T5-XXL alone (PixArt, or FLUX.1 without its CLIP)",
    ("clip_g:1280",): "the second text encoder of Stable Diffusion XL",
}
"""Kinds of base models by the text encoders and widths of their words."""


WITH_ONE_ENCODER = (768, 1024)
"""Widths of text encoders that bases have alone: Stable Diffusion 1.x and 2.x."""
LOADABLE = (".pt", ".bin", ".safetensors")


def base_of(rows: Mapping[str, np.ndarray]) -> str | None:
    """Return for which kind of base model a word's rows are; None for widths that no released one has."""
    return BASES.get(tuple(f"{encoder}:{block.shape[1]}" for encoder, block in rows.items()))


@dataclass(frozen=True)
class File:
    """A file as tools look at it: what is in it, and what it is called."""

    contents: Contents
    name: str

    @property
    def values(self) -> Mapping[str, Any]:
        """Its named values."""
        return self.contents.values

    @property
    def path(self) -> PurePath:
        """Its name, to be taken apart."""
        return PurePath(self.name)

    @property
    def ending(self) -> str:
        """Its ending, in lower case."""
        return self.path.suffix.lower()

    @property
    def is_what_it_says(self) -> bool:
        """Whether the container is the one that the file's ending promises."""
        return self.contents.container == container_of(self.ending)

    @property
    def terms(self) -> Mapping[str, Any]:
        """The rows of `string_to_param` by their names; none in a file of another kind."""
        own = self.values.get("string_to_param")
        return own if isinstance(own, Mapping) else {}

    @property
    def bundled(self) -> bool:
        """Whether words are bundled with a LoRA."""
        return any(name.startswith(BUNDLED) for name in self.values)

    @property
    def beside_others(self) -> bool:
        """Whether what was read is a part of the file, a LoRA's."""
        return self.contents.others > 0

    @property
    def only_width(self) -> int:
        """The width of the file's only rows; 0 if it has rows of several."""
        rows = list(self.terms.values() or self.values.values())
        return self.width(rows[0]) if len(rows) == 1 else 0

    def has(self, *names: str) -> bool:
        """Whether there are values of all these names."""
        return all(name in self.values for name in names)

    def width(self, value: Any) -> int:
        """The last dimension of an array; 0 of anything else."""
        return value.shape[-1] if isinstance(value, np.ndarray) and value.ndim else 0

    @property
    def first(self) -> Any:
        """The first value, as tools take it that do not look at names."""
        return next(iter(self.values.values()), None)


@dataclass(frozen=True)
class Rule:
    """What a tool does with a file for which `when` holds and no earlier rule did."""

    when: Callable[[File], bool]
    loads: bool
    says: str
    """As what it is loaded, or why it is not."""


@dataclass(frozen=True)
class Verdict:
    """Whether a tool loads a file, and how the word is written in its prompts, or why not."""

    loads: bool
    says: str
    trigger: str = ""
    note: str = ""
    """How the trigger is written, where that is not plain."""
    rename: str = ""
    """Where only the file's name stands in the way: a stem that does not."""


@dataclass(frozen=True)
class Tool:
    """A tool that loads embedding files."""

    title: str
    place: str
    """Where its files go."""
    trigger: Callable[[File], Trigger]
    """What is written in a prompt."""
    source: str
    """Where its rules stand, at the version that was read."""
    rules: tuple[Rule, ...]

    def verdict(self, contents: Contents, name: str) -> Verdict:
        """Say what this tool does with a file of this content and name."""
        file = File(contents, name)
        for rule in self.rules:
            if rule.when(file):
                return self._with_trigger(file, rule) if rule.loads else Verdict(False, rule.says)
        return Verdict(False, "it is of no kind that this tool knows")

    def _with_trigger(self, file: File, rule: Rule) -> Verdict:
        """Say how the word of a file that is loaded is called, or that nothing calls it by this name."""
        trigger = self.trigger(file)
        if not trigger.refusal:
            return Verdict(True, rule.says, trigger.text, trigger.note)
        stem = triggers.safe_stem(file.path.stem)
        return Verdict(False, f"{trigger.refusal}; call it {stem}", rename=stem)


def _loads(when: Callable[[File], bool], says: str) -> Rule:
    return Rule(when, True, says)


def _not(when: Callable[[File], bool], says: str) -> Rule:
    return Rule(when, False, says)


def _is_array(value: Any, *dimensions: int) -> bool:
    return isinstance(value, np.ndarray) and value.ndim in dimensions


def _one(values: Iterable[Any], *dimensions: int) -> bool:
    own = list(values)
    return len(own) == 1 and _is_array(own[0], *dimensions)


def _stem(file: File) -> Trigger:
    return triggers.kohya(file.path.stem)


def _name_in_picture(file: File) -> Trigger:
    """A1111 calls a word as its file, and one in a picture as that says."""
    is_picture = file.contents.container == "picture"
    return triggers.a1111(str(file.values.get("name", file.path.stem)) if is_picture else file.path.stem)


def _token_for_diffusers(file: File) -> Trigger:
    if file.terms:
        return Trigger(str(file.values.get("name")))
    key = next(iter(file.values), "")
    if key in ("", "emb_params", "emp_params"):
        return Trigger(f"{file.path.stem} (load_textual_inversion(…, token=…))")
    return Trigger(key)


NO_BASE = _not(lambda f: f.only_width not in (0, *WITH_ONE_ENCODER), "has no base with one text encoder of this width")
PART_OF_LORA = _not(lambda f: f.beside_others and not f.bundled, "finds the tensors of a LoRA around the word")
NO_PICTURES = _not(lambda f: f.contents.container == "picture", "reads no pictures")
BY_ENDING = _not(lambda f: not f.is_what_it_says, "goes by the ending, which says another kind of file than it is")
NO_LORA = _not(lambda f: f.bundled, "knows no words in LoRA files")
NAMELESS = _not(lambda f: f.has(""), "expects tensors with names")
NO_SAFE_TYPE = _not(
    lambda f: isinstance(f.terms, Parameters),
    "unpickles safe types alone, as torch does since 2.6; this has others",
)
FIRST_IS_WORD = _loads(
    lambda f: f.has("emp_params") and f.first is f.values["emp_params"], "the first of its tensors, emp_params"
)
AS_XL = _not(lambda f: f.has("clip_g") and (f.has("t5") or f.has("t5xxl")), "takes a word for SD 3 for one of SDXL's")
A1111_RULES = (
    NAMELESS,
    PART_OF_LORA,
    _not(lambda f: f.ending not in (*LOADABLE, *PICTURES), "reads .pt, .bin, .safetensors and pictures"),
    BY_ENDING,
    NO_BASE,
    _loads(lambda f: len(f.terms) == 1, "its own kind (string_to_param)"),
    _not(lambda f: bool(f.terms), "expects one word, and there are several"),
    _not(lambda f: f.bundled, "loads words in a LoRA with the LoRA alone: put it into models/Lora"),
    AS_XL,
    _loads(lambda f: f.has("clip_l", "clip_g"), "an SDXL word (clip_l, clip_g)"),
    _loads(lambda f: _one(f.values.values(), 1, 2), "a single tensor, whatever it is called"),
    _not(lambda _: True, "finds several tensors, and is no SDXL word"),
)
COMFYUI_RULES = (
    NAMELESS,
    PART_OF_LORA,
    NO_PICTURES,
    BY_ENDING,
    _loads(lambda f: isinstance(f.terms, Parameters), "the numbers of the zip, as it has types that are not safe"),
    _loads(lambda f: bool(f.terms), "the first term of string_to_param"),
    _not(
        lambda f: f.has("t5") and not f.has("t5xxl"),
        "looks for t5xxl, where this has t5; convert --to comfyui mends it",
    ),
    _loads(lambda f: f.has("clip_l") or f.has("clip_g") or f.has("t5xxl"), "rows by text encoder"),
    _loads(lambda f: f.bundled, "words bundled with a LoRA, all of them one after the other"),
    _loads(lambda f: _is_array(f.first, 1, 2) and len(f.values) == 1, "its first tensor"),
    FIRST_IS_WORD,
    _not(lambda _: True, "takes the first of several tensors, whatever it is"),
)
WIDTHS = {768: "sd-1", 1024: "sd-2", 1280: "sdxl"}
"""Widths by which InvokeAI's import tells bases apart."""
KNOWN_WIDTHS = "knows words of width 768, 1024 and 1280 alone"


def _first_term_width(file: File) -> int:
    return file.width(next(iter(file.terms.values()), None))


INVOKEAI_RULES = (
    NAMELESS,
    PART_OF_LORA,
    NO_SAFE_TYPE,
    NO_PICTURES,
    BY_ENDING,
    AS_XL,
    _loads(
        lambda f: f.has("string_to_token") and _first_term_width(f) in WIDTHS, "a word of string_to_token and _param"
    ),
    _loads(lambda f: f.width(f.values.get("emb_params")) in WIDTHS, "a word for one text encoder (emb_params)"),
    _loads(
        lambda f: f.has("clip_l", "clip_g") and f.width(f.values["clip_g"]) in WIDTHS, "an SDXL word (clip_l, clip_g)"
    ),
    _loads(lambda f: f.width(f.values.get("clip_g")) in WIDTHS, "rows for SDXL's second text encoder"),
    _loads(
        lambda f: _one(f.values.values(), 1, 2) and len(f.first) in WIDTHS,
        "a single flat vector, as diffusers first had",
    ),
    _not(lambda f: f.has("emp_params"), "takes the number of vectors for the width unless it is called emb_params"),
    _not(lambda f: f.only_width not in (0, *WIDTHS), KNOWN_WIDTHS),
    _not(
        lambda f: _one(f.values.values(), 2),
        "takes the number of vectors for the width in files of diffusers' kind; convert --to invokeai mends it",
    ),
    _not(lambda _: True, KNOWN_WIDTHS),
)
KOHYA_RULES = (
    NAMELESS,
    PART_OF_LORA,
    NO_SAFE_TYPE,
    NO_PICTURES,
    BY_ENDING,
    _loads(lambda f: _one(f.terms.values(), 2), "the term of string_to_param"),
    AS_XL,
    _loads(lambda f: f.has("clip_l", "clip_g"), "an SDXL word (clip_l, clip_g)"),
    _not(lambda f: f.has("clip_g"), "expects clip_l beside clip_g"),
    NO_BASE,
    NO_LORA,
    _loads(lambda f: _one(f.values.values(), 2), "a single tensor, whatever it is called"),
    FIRST_IS_WORD,
    _not(lambda f: _one(f.values.values(), 1), "takes the width of a flat vector for a number of vectors"),
    _not(lambda _: True, "expects one tensor [vectors, width], or clip_l and clip_g"),
)
ONETRAINER_RULES = (
    NO_PICTURES,
    _loads(lambda f: f.has("emp_params"), "a word for one text encoder (emp_params)"),
    _not(lambda f: f.has("t5xxl") and not f.has("t5"), "looks for t5, where this has t5xxl; convert --to onetrainer"),
    _loads(lambda f: f.has("clip_l") or f.has("clip_g") or f.has("t5"), "rows by text encoder"),
    _not(lambda _: True, "looks for emp_params, clip_l, clip_g or t5; convert --to onetrainer renames them"),
)
ORIGINAL_RULES = (
    _not(lambda f: f.contents.container != "pickle", "reads PyTorch files alone"),
    _loads(
        lambda f: (
            bool(f.terms)
            and isinstance(f.values.get("string_to_token"), Mapping)
            and all(_is_array(own, 0, 1) for own in f.values["string_to_token"].values())
        ),
        "the terms of string_to_param, at the ids of string_to_token",
    ),
    _not(lambda f: bool(f.terms), "compares ids as tensors, and A1111 writes them as numbers"),
    _not(lambda _: True, "looks for string_to_token and string_to_param"),
)
DIFFUSERS_RULES = (
    PART_OF_LORA,
    NO_PICTURES,
    NO_LORA,
    _loads(lambda f: _one(f.values.values(), 1, 2), "a single tensor, called as the token"),
    _loads(lambda f: "*" in f.terms and f.has("name"), "A1111's kind, called as its name"),
    _not(lambda f: bool(f.terms), "looks for a name, which the original's files have not"),
    _not(
        lambda f: len(f.values) > 1,
        "takes one text encoder a file; pseudoword.load takes this one, convert --to diffusers splits it",
    ),
    _not(lambda _: True, "expects one tensor"),
)
WEBUI_SOURCE = (
    "AUTOMATIC1111/stable-diffusion-webui@22ecb78 modules/textual_inversion/textual_inversion.py load_from_file"
)
FORGE_SOURCE = (
    "lllyasviel/stable-diffusion-webui-forge@42ef31f backend/text_processing/textual_inversion.py load_from_file"
)
TOOLS: dict[str, Tool] = {
    "diffusers": Tool(
        "diffusers",
        "anywhere: pipeline.load_textual_inversion(FILE)",
        _token_for_diffusers,
        "huggingface/diffusers@58eb52c src/diffusers/loaders/textual_inversion.py _extract_textual_inversion",
        DIFFUSERS_RULES,
    ),
    "a1111": Tool("A1111", "stable-diffusion-webui/embeddings/", _name_in_picture, WEBUI_SOURCE, A1111_RULES),
    "forge": Tool(
        "Forge",
        "stable-diffusion-webui-forge/embeddings/",
        _name_in_picture,
        FORGE_SOURCE,
        A1111_RULES,
    ),
    "comfyui": Tool(
        "ComfyUI",
        "ComfyUI/models/embeddings/",
        lambda f: triggers.comfyui(f.path.stem, f.path.suffix),
        "Comfy-Org/ComfyUI@4bd7a40 comfy/sd1_clip.py load_embed",
        COMFYUI_RULES,
    ),
    "invokeai": Tool(
        "InvokeAI",
        "the Model Manager: Add Model, then this file",
        lambda f: triggers.invokeai(f.path.stem),
        "invoke-ai/InvokeAI@9faffe9 invokeai/backend/model_manager/configs/textual_inversion.py _get_base_or_raise",
        INVOKEAI_RULES,
    ),
    "kohya": Tool(
        "kohya's scripts",
        "gen_img.py --textual_inversion_embeddings FILE",
        _stem,
        "kohya-ss/sd-scripts@48d368f gen_img.py",
        KOHYA_RULES,
    ),
    "onetrainer": Tool(
        "OneTrainer",
        "Embedding, base embedding, or Additional embeddings: this file",
        lambda _: Trigger("the placeholder that you set there"),
        "Nerogar/OneTrainer@23df383 modules/modelLoader/mixin/EmbeddingLoaderMixin.py and the setups' state keys",
        ONETRAINER_RULES,
    ),
    "original": Tool(
        "the original",
        "scripts/stable_txt2img.py --embedding_path FILE",
        lambda f: Trigger(next(iter(f.terms), "")),
        "rinongal/textual_inversion@424192d ldm/modules/embedding_manager.py load",
        ORIGINAL_RULES,
    ),
}
