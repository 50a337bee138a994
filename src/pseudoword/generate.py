"""Prompts to pictures, with learned words in them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image, PngImagePlugin

from pseudoword import families, toybox
from pseudoword.concept import Concept
from pseudoword.contracts import Family
from pseudoword.families.base import locate
from pseudoword.recipe import BaseModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled."""

    seed: int = 0
    """The first picture's seed; each further picture has the next one."""
    steps: int = 25
    """Denoising steps (DPM-Solver++ 2M)."""
    guidance_scale: float = 7.5
    """Weight of the prompt against the negative prompt; 1 turns guidance off."""
    resolution: int | None = None
    """Side of the picture in pixels; by default the model's own."""


def load(base: BaseModel) -> Family:
    """Load a base for sampling on the best device there is, in half precision on a GPU."""
    family = families.part(base.family, "torch").FAMILY.load(locate(base, toybox.BASES))
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    family.to(device, dtype, vae_dtype=dtype)
    return family


def generate(
    family: Family,
    concepts: Sequence[Concept],
    prompts: Sequence[str],
    *,
    negative_prompt: str = "",
    sampling: Sampling | None = None,
    batch_size: int = 1,
) -> list[Image.Image]:
    """Return a picture for each prompt; concepts' tokens work in prompts and in the negative prompt alike.

    The base is as it was afterwards. TokenError if a concept is for another base or its token is taken.
    """
    sampling = sampling or Sampling()
    side = sampling.resolution or family.resolution
    pipeline = family.pipeline()
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    with words(family, concepts) as rows:
        for first in range(0, len(prompts), batch_size):
            some = prompts[first : first + batch_size]
            seeds = [sampling.seed + first + i for i in range(len(some))]
            pictures += pipeline(
                **family.prompt_inputs(encode(family, some), encode(family, [negative_prompt] * len(some)), rows),
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                height=side,
                width=side,
            ).images
    return pictures


@contextmanager
def words(family: Family, concepts: Sequence[Concept]) -> Iterator[Mapping[str, torch.Tensor] | None]:
    """Lend words to a base's vocabularies for the block; yields all rows under each other, per text encoder."""
    blocks: dict[str, list[np.ndarray]] = {encoder: [] for encoder in family.vocabularies}
    try:
        for encoder, vocabulary in family.vocabularies.items():
            for concept in concepts:
                blocks[encoder].append(vocabulary.check_width(concept, encoder))
                vocabulary.lend(concept.token, concept.num_vectors)
        yield {e: torch.from_numpy(np.concatenate(b)) for e, b in blocks.items()} if concepts else None
    finally:
        for vocabulary in family.vocabularies.values():
            vocabulary.give_back()


def encode(family: Family, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the ids of prompts `[prompts, tokens]` per text encoder; says which words a prompt's end cut off."""
    ids = {}
    for encoder, vocabulary in family.vocabularies.items():
        encoded = [vocabulary.encode(prompt) for prompt in prompts]
        for prompt, one in zip(prompts, encoded, strict=True):
            if one.cut:
                log.warning("Cut off at %d tokens: %s in %r", vocabulary.model_max_length, ", ".join(one.cut), prompt)
        ids[encoder] = np.stack([one.ids for one in encoded])
    return ids


def grid(pictures: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """Return pictures of one size laid out in rows on white."""
    width, height = pictures[0].size
    lines = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, lines * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return sheet


def save(picture: Image.Image, path: Path, told: Mapping[str, str]) -> Path:
    """Write a PNG that says how it was made."""
    info = PngImagePlugin.PngInfo()
    for key, value in told.items():
        info.add_itxt(key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG", pnginfo=info)
    return path
