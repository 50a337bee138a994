"""Prompts to pictures, with learned words in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin

from pseudoword import families, toybox
from pseudoword.concept import Concept
from pseudoword.contracts import Family
from pseudoword.errors import RecipeError
from pseudoword.families.locate import locate
from pseudoword.recipe import BaseModel
from pseudoword.vocabulary import encode_all, lent_words


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled."""

    seed: int = 0
    """The first picture's seed; each further picture has the next one."""
    steps: int = 25
    """Denoising steps."""
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
    seeds: Sequence[int] | None = None,
    batch_size: int = 1,
) -> list[Image.Image]:
    """Return a picture for each prompt; concepts' tokens work in prompts and in the negative prompt alike.

    `seeds` are one for each prompt; by default they count from the sampling's.
    The base is as it was afterwards. TokenError if a concept is for another base or its token is taken.
    """
    sampling = sampling or Sampling()
    side = sampling.resolution or family.resolution
    if not 1 <= sampling.steps <= family.num_timesteps:
        raise RecipeError(f"Between 1 and {family.num_timesteps} denoising steps, not {sampling.steps}.")
    multiple = max(8, family.latent_factor)  # diffusers' pipelines insist on 8
    if side % multiple:
        raise RecipeError(f"resolution must be a multiple of {multiple} for this base, but is {side}.")
    seeds = seeds or [sampling.seed + i for i in range(len(prompts))]
    pipeline = family.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    vocabularies = family.vocabularies
    with lent_words(vocabularies, concepts) as rows:
        for first in range(0, len(prompts), batch_size):
            some = prompts[first : first + batch_size]
            pictures += pipeline(
                **family.prompt_inputs(
                    encode_all(vocabularies, some), encode_all(vocabularies, [negative_prompt] * len(some)), rows
                ),
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[first:][: len(some)]],
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                height=side,
                width=side,
            ).images
    return pictures


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
