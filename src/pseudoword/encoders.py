"""Text encoders: what files call their rows, how wide those are, which bases have them, and which tools read words.

Keys and widths are those of ComfyUI's tokenizers (Comfy-Org/ComfyUI@4f874c5 comfy/sd1_clip.py, comfy/sdxl_clip.py and
comfy/text_encoders) and of OneTrainer's savers of embeddings (Nerogar/OneTrainer@23df383 modules/modelSaver).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Encoder:
    """A kind of text encoder, under the key that rows for it have here."""

    key: str
    bases: Mapping[int, tuple[str, ...]]
    """Kinds of base models that read prompts with it, by the width of its rows there."""
    readers: Mapping[str, str] = field(default_factory=dict)
    """Tools that read rows for it in a file of several encoders, and the key under which each looks."""

    @property
    def keys(self) -> set[str]:
        """Everything that files call it."""
        return {self.key, *self.readers.values()}


SD1, SD2, SDXL = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "Stable Diffusion XL"
SD3, FLUX, HIDREAM, HUNYUAN_VIDEO = "Stable Diffusion 3", "FLUX.1", "HiDream", "HunyuanVideo"
T5_ALONE = ("PixArt", "Chroma", "CogVideoX", "LTX-Video", "Mochi")


def _everywhere(key: str) -> dict[str, str]:
    return dict.fromkeys(("a1111", "forge", "comfyui", "invokeai", "kohya", "onetrainer"), key)


ENCODERS = (
    Encoder("clip_l", {768: (SD1, SDXL, SD3, FLUX, HIDREAM, HUNYUAN_VIDEO, "Kandinsky 5")}, _everywhere("clip_l")),
    Encoder("clip_h", {1024: (SD2,)}, {"comfyui": "clip_h"}),
    Encoder("clip_g", {1280: (SDXL, SD3, HIDREAM)}, _everywhere("clip_g")),
    Encoder(
        "t5",
        {4096: (SD3, FLUX, HIDREAM, *T5_ALONE), 1024: ("Cosmos",)},
        {"comfyui": "t5xxl", "onetrainer": "t5"},
    ),
    Encoder("llama", {4096: (HIDREAM, HUNYUAN_VIDEO)}, {"comfyui": "llama", "onetrainer": "llama"}),
    Encoder("gemma2_2b", {2304: ("Sana", "Lumina 2")}, {"onetrainer": "gemma"}),
    Encoder("qwen3_4b", {2560: ("Z-Image", "FLUX.2 klein 4B")}, {"comfyui": "qwen3_4b"}),
    Encoder("qwen3_8b", {4096: ("FLUX.2 klein 9B",)}, {"comfyui": "qwen3_8b"}),
    Encoder("qwen3_06b", {1024: ("Anima", "ACE-Step 1.5")}, {"comfyui": "qwen3_06b"}),
    Encoder("mistral3_24b", {5120: ("FLUX.2",), 3072: ("ERNIE-Image",)}, {"comfyui": "mistral3_24b"}),
    Encoder("ministral3_3b", {3072: ("ERNIE-Image",)}, {"comfyui": "ministral3_3b"}),
    Encoder(
        "qwen25_7b",
        {3584: ("Qwen-Image", "HunyuanImage", "HunyuanVideo 1.5", "Kandinsky 5", "LongCat-Image")},
    ),
    Encoder("qwen25_3b", {2048: ("OmniGen 2",)}),
    Encoder("qwen3_2b", {2048: ("Ovis-Image",)}),
    Encoder("qwen3vl_4b", {2560: ("Krea 2", "MageFlow")}, {"comfyui": "qwen3vl_4b"}),
    Encoder("qwen3vl_8b", {4096: ("Boogu", "Ideogram 4", "JoyImage")}, {"comfyui": "qwen3vl_8b"}),
    Encoder("qwen35_08b", {1024: ("Qwen 3.5 0.8B",)}, {"comfyui": "qwen35_08b"}),
    Encoder("qwen35_2b", {2048: ("Qwen 3.5 2B",)}, {"comfyui": "qwen35_2b"}),
    Encoder("qwen35_4b", {2560: ("Qwen 3.5 4B",)}, {"comfyui": "qwen35_4b"}),
    Encoder("qwen35_9b", {4096: ("Qwen 3.5 9B",)}, {"comfyui": "qwen35_9b"}),
    Encoder("qwen35_27b", {5120: ("Qwen 3.5 27B",)}, {"comfyui": "qwen35_27b"}),
    Encoder("gpt_oss", {2880: ("Lens",)}, {"comfyui": "gpt_oss"}),
    Encoder("hidream_o1", {4096: ("HiDream-O1",)}),
    Encoder("gemma3_4b", {2560: ("NewBie",)}),
    Encoder("gemma3_12b", {3840: ("LTX-2",)}),
    Encoder("gemma4", {1536: ("Gemma 4",), 2560: ("Gemma 4",), 3840: ("Gemma 4",), 5376: ("Gemma 4",)}),
    Encoder("umt5xxl", {4096: ("Wan",)}),
    Encoder("umt5base", {768: ("ACE-Step",)}),
    Encoder("mt5xl", {2048: ("HunyuanDiT",)}),
    Encoder("pile_t5xl", {2048: ("AuraFlow",)}),
    Encoder("t5base", {768: ("Stable Audio",)}),
    Encoder("t5gemma", {768: ("Stable Audio 3",)}),
    Encoder("byt5_small", {1472: ("HunyuanImage", "HunyuanVideo 1.5")}),
    Encoder("chinese_roberta", {1024: ("HunyuanDiT",)}),
    Encoder("jina_clip_2", {1024: ("NewBie",)}),
    Encoder("lyrics", {1024: ("ACE-Step",)}),
    Encoder("sam3_clip", {1024: ("SAM 3",)}, {"comfyui": "sam3_clip"}),
)
"""In the order in which a word has its blocks; of encoders of one width the most usual is first."""
BY_KEY = {encoder.key: encoder for encoder in ENCODERS}
CALLED: dict[str, str] = {}
"""Text encoders by everything that files call them: ComfyUI calls T5-XXL t5xxl, OneTrainer calls it t5."""
for _encoder in ENCODERS:
    CALLED |= dict.fromkeys(sorted(_encoder.keys), _encoder.key)
ORDER = {encoder.key: place for place, encoder in enumerate(ENCODERS)}
CLIP = ("clip_l", "clip_h", "clip_g")
ALONE = ("clip_l", "clip_h")
"""Text encoders of bases that have just this one; the keys of their files do not say which."""


def encoder_of_width(width: int) -> str:
    """Return the encoder of rows without a key; a width of no known encoder is a small CLIP's."""
    return next((encoder.key for encoder in ENCODERS if width in encoder.bases), "clip_l")


def contradicts(key: str, width: int) -> bool:
    """Whether rows of this width cannot be for the encoder that a file says, as another of CLIP's sizes has it."""
    return key in BY_KEY and width not in BY_KEY[key].bases and _clip_of(width) not in (None, key)


def _clip_of(width: int) -> str | None:
    return next((key for key in CLIP if width in BY_KEY[key].bases), None)


def corrected(widths: Mapping[str, int]) -> dict[str, str]:
    """Return for which encoder rows are, where their key contradicts their width (OneTrainer 514: FLUX as `clip_g`).

    Only the sizes of CLIP correct a key. Empty if nothing has to be corrected, or two keys would be one encoder's.
    """
    means = {key: _clip_of(width) or key if contradicts(key, width) else key for key, width in widths.items()}
    changed = {key: meant for key, meant in means.items() if meant != key}
    return changed if len(set(means.values())) == len(means) else {}


# Bases

HINTS = (
    (FLUX, r"(?<![a-z])flux(?![a-z])(?![-_. ]?2)"),
    (SD3, r"stable-diffusion-(v?3)|sd[-_]?3|sd_v3"),
    (SDXL, r"stable-diffusion-xl|sd[-_]?xl|\bxl\b"),
    (SD2, r"stable-diffusion-(v?2)|sd[-_]?(v?2)|v2-1"),
    (SD1, r"stable-diffusion-(v?1)|sd[-_]?(v?1)|v1-[45]"),
    (HIDREAM, r"hidream"),
    (HUNYUAN_VIDEO, r"hunyuan-?video"),
)
"""How metadata name kinds of bases: `modelspec.architecture`, `ss_base_model_version`, or the base's own name."""
SAYS_BASE = ("modelspec.architecture", "ss_base_model_version", "base", "sd_checkpoint_name")


def base_of(widths: Mapping[str, int], metadata: Mapping[str, str] | None = None) -> str | None:
    """Return for which kinds of base models a word's rows are; None for widths that no known base has.

    `metadata` are the file's: what they say of the base decides where rows are alike, as those of Stable Diffusion 1.x
    and of FLUX.1's CLIP.
    """
    metadata = metadata or {}
    rows = set(widths.items())
    encoders = _encoders_of_bases()
    fitting = [base for base in encoders if encoders[base] == rows]
    larger = [base for base in encoders if encoders[base] > rows]
    said = next((base for base in _hinted(metadata) if base in (*fitting, *larger)), None)
    if said:
        return said if said in fitting else f"{said} ({' and '.join(widths)} of it)"
    if metadata.get(KEY) == "clip_l" and rows == {("clip_l", 768)}:
        return f"{SD1}, or CLIP alone of {FLUX} or another base of several text encoders"
    if fitting:
        return _either(fitting)
    return f"a part of {_either(larger)}" if larger else None


KEY = "key"
"""Of metadata: what a file called its only rows, where that leaves open for which base they are."""


def _hinted(metadata: Mapping[str, str]) -> list[str]:
    """Return the kinds of bases that metadata name, the plainest field first."""
    named = []
    for field_ in SAYS_BASE:
        named += [base for base, pattern in HINTS if re.search(pattern, metadata.get(field_, ""), re.IGNORECASE)]
    return named


def _encoders_of_bases() -> dict[str, set[tuple[str, int]]]:
    """Return each kind of base's text encoders, with their widths."""
    encoders: dict[str, set[tuple[str, int]]] = {}
    for encoder in ENCODERS:
        for width, bases in encoder.bases.items():
            for base in bases:
                encoders.setdefault(base, set()).add((encoder.key, width))
    encoders["ERNIE-Image"] = {("mistral3_24b", 3072)}
    return encoders


def _either(bases: Collection[str]) -> str:
    *first, last = bases
    return f"{', '.join(first)} or {last}" if first else last
