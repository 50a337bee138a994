"""Who can load an embedding file, and who cannot and why: each tool's own rules, in its order, with their source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pseudoword.contents import Contents, Parameters
from pseudoword.formats import misread, triggers
from pseudoword.formats.rule import (
    AS_XL,
    BY_ENDING,
    FIRST_IS_WORD,
    FOREIGN,
    NAMELESS,
    NO_BASE,
    NO_LORA,
    NO_PICTURES,
    NO_SAFE_TYPE,
    PART_OF_LORA,
    SEVERAL,
    UNEVEN,
    WRONG_KEY,
    Rule,
)
from pseudoword.formats.rule import is_array as _is_array
from pseudoword.formats.rule import loads as _loads
from pseudoword.formats.rule import one as _one
from pseudoword.formats.rule import refuses as _not
from pseudoword.formats.tool_file import File
from pseudoword.formats.triggers import Trigger
from pseudoword.formats.webui_rules import A1111_RULES, FORGE_RULES


@dataclass(frozen=True)
class Verdict:
    """Whether a tool loads a file, and how the word is written in its prompts, or why not."""

    loads: bool
    says: str
    trigger: str = ""
    needs: str = ""
    """What has to be set in the tool first."""
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
            needs = rule.needs(file) if rule.needs else ""
            return Verdict(True, rule.says, trigger.text, needs, trigger.note)
        stem = triggers.safe_stem(file.path.stem)
        return Verdict(False, f"{trigger.refusal}; call it {stem}", rename=stem)


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


COMFYUI_RULES = (
    NAMELESS,
    PART_OF_LORA,
    NO_PICTURES,
    BY_ENDING,
    _loads(
        lambda f: isinstance(f.terms, Parameters) and misread.is_right_in_zip(f.contents),
        "the numbers of the zip, as it has types that are not safe",
    ),
    _not(
        lambda f: isinstance(f.terms, Parameters),
        "would take the numbers of the zip for fp32 and rows of 768, as it has types that are not safe; "
        "convert --to comfyui mends it",
    ),
    _loads(lambda f: bool(f.terms), "the first term of string_to_param"),
    SEVERAL,
    _not(lambda f: misread.unread_by("comfyui", f.contents), "takes no words for this text encoder"),
    WRONG_KEY,
    _not(
        lambda f: misread.called_otherwise("comfyui", f.contents),
        "looks for another key, such as t5xxl, where this has t5; convert --to comfyui mends it",
    ),
    _loads(lambda f: f.keyed, "rows by text encoder"),
    _not(
        lambda f: f.bundled and not misread.comfyui_finds_bundled(f.contents),
        "looks for a bundled word under the key of its text encoder, such as clip_h, and would take the LoRA's first "
        "tensor; pseudoword convert --to comfyui takes the word out",
    ),
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
    SEVERAL,
    WRONG_KEY,
    AS_XL,
    FOREIGN,
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
    SEVERAL,
    WRONG_KEY,
    AS_XL,
    FOREIGN,
    UNEVEN,
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
    SEVERAL,
    _not(lambda f: misread.unread_by("onetrainer", f.contents), "trains no words for this text encoder"),
    WRONG_KEY,
    _not(
        lambda f: misread.called_otherwise("onetrainer", f.contents),
        "looks for another key, such as t5, where this has t5xxl; convert --to onetrainer mends it",
    ),
    _loads(lambda f: f.keyed and not f.has("clip_h"), "rows by text encoder"),
    _not(
        lambda _: True, "looks for emp_params, clip_l, clip_g, t5, llama or gemma; convert --to onetrainer renames them"
    ),
)


def _vectors_to_set(vectors: int) -> str:
    """What the original's configuration has to say for a word of several vectors; it takes one as it is."""
    place = "num_vectors_per_token in configs/stable-diffusion/v1-inference.yaml"
    return f"set {place} to {vectors}" if vectors > 1 else ""


ORIGINAL_RULES = (
    _not(lambda f: f.contents.container != "pickle", "reads PyTorch files alone"),
    _loads(
        lambda f: (
            bool(f.terms)
            and isinstance(f.values.get("string_to_token"), Mapping)
            and all(_is_array(own, 0, 1) for own in f.values["string_to_token"].values())
        ),
        "the terms of string_to_param, at the ids of string_to_token",
        lambda f: _vectors_to_set(max(len(np.atleast_2d(rows)) for rows in f.terms.values())),
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
    SEVERAL,
    _not(
        lambda f: len(f.values) > 1,
        "takes one text encoder a file; pseudoword.load takes this one, convert --to diffusers splits it",
    ),
    _not(lambda _: True, "expects one tensor"),
)
WEBUI_SOURCE = (
    "AUTOMATIC1111/stable-diffusion-webui@82a973c modules/textual_inversion/textual_inversion.py load_from_file, "
    "modules/safe.py, extensions-builtin/Lora/networks.py"
)
FORGE_SOURCE = (
    "lllyasviel/stable-diffusion-webui-forge@dfdcbab backend/text_processing/textual_inversion.py load_from_file"
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
        FORGE_RULES,
    ),
    "comfyui": Tool(
        "ComfyUI",
        "ComfyUI/models/embeddings/",
        lambda f: triggers.comfyui(f.path.stem, f.path.suffix),
        "Comfy-Org/ComfyUI@4f874c5 comfy/sd1_clip.py load_embed",
        COMFYUI_RULES,
    ),
    "invokeai": Tool(
        "InvokeAI",
        "the Model Manager: Add Model, then this file",
        lambda f: triggers.invokeai(f.path.stem),
        "invoke-ai/InvokeAI@8e71a8a invokeai/backend/model_manager/configs/textual_inversion.py _get_base_or_raise",
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
