"""Prompts to pictures, with learned words in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pseudoword import engines, families, toybox
from pseudoword.concept import Concept
from pseudoword.contracts import Family
from pseudoword.data import images
from pseudoword.data.framing import Framing
from pseudoword.errors import OutOfMemory, RecipeError
from pseudoword.families.locate import locate
from pseudoword.recipe import BaseModel, Sampler
from pseudoword.vocabulary import LentRows, encode_all, lent_words, warn_of_strays


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled."""

    seed: int = 0
    """The first picture's seed; each further picture has the next one."""
    steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 7.5
    """Weight of the prompt against the negative prompt; 1 turns guidance off."""
    sampler: Sampler = "dpm++"
    """Whose steps; DPM-Solver++ 2M needs few."""
    resolution: int | None = None
    """Side of the picture in pixels; by default the model's own."""


@dataclass(frozen=True)
class Redraw:
    """A picture to start from, instead of noise alone (SDEdit, Meng et al. 2022)."""

    image: Image.Image
    """Its centre is cut to the resolution's square."""
    strength: float = 0.6
    """How much of it is drawn anew, from 0 (nothing) to 1."""


def load(base: BaseModel, engine: str = "torch") -> Family:
    """Load a base for sampling on the best device there is, in half precision on a GPU."""
    engines.module(engine)  # says what to install
    base = locate(base, toybox.BASES)
    family: Family = families.part(base.family, engine).FAMILY.load(base)
    family.to_sample()
    return family


def repeated(prompts: Sequence[str], count: int, seed: int) -> tuple[list[str], list[int]]:
    """Return each prompt `count` times with seeds that count up, the same for every prompt."""
    return [prompt for prompt in prompts for _ in range(count)], [seed + i for _ in prompts for i in range(count)]


def generate(
    family: Family,
    concepts: Sequence[Concept],
    prompts: Sequence[str],
    *,
    negative_prompt: str = "",
    sampling: Sampling | None = None,
    seeds: Sequence[int] | None = None,
    batch_size: int = 1,
    redraw: Redraw | None = None,
) -> list[Image.Image]:
    """Return a picture for each prompt; concepts' tokens work in prompts and in the negative prompt alike.

    `seeds` are one for each prompt; by default they count from the sampling's.
    The base is as it was afterwards. TokenError if a concept is for another base or its token is taken.
    """
    with lent_words(family.vocabularies, concepts) as rows:
        warn_of_strays(family.vocabularies, [*prompts, negative_prompt])
        return sample(family, rows, prompts, negative_prompt, sampling or Sampling(), seeds, batch_size, redraw)


def sample(
    family: Family,
    rows: LentRows | None,
    prompts: Sequence[str],
    negative_prompt: str,
    sampling: Sampling,
    seeds: Sequence[int] | None = None,
    batch_size: int = 1,
    redraw: Redraw | None = None,
) -> list[Image.Image]:
    """Return a picture for each prompt, with words that are lent to the family's vocabularies already.

    Where `batch_size` pictures do not fit into memory at once, it takes half as many.
    """
    side = sampling.resolution or family.resolution
    if not 1 <= sampling.steps <= family.num_timesteps:
        raise RecipeError(f"Denoising steps must be between 1 and {family.num_timesteps}, not {sampling.steps}.")
    multiple = max(8, family.latent_factor)  # diffusers' pipelines insist on 8
    if side % multiple:
        raise RecipeError(f"resolution must be a multiple of {multiple} for this base, but is {side}.")
    seeds = seeds or [sampling.seed + i for i in range(len(prompts))]
    start = _start(family, redraw, sampling, side) if redraw else None

    def some(chosen: slice) -> list[Image.Image]:
        asked = prompts[chosen]
        latents = family.sample(
            encode_all(family.vocabularies, asked),
            encode_all(family.vocabularies, [negative_prompt] * len(asked)),
            rows,
            seeds=seeds[chosen],
            sampler=sampling.sampler,
            steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            side=side,
            start=start,
        )
        return family.decode(latents)

    pictures: list[Image.Image] = []
    while len(pictures) < len(prompts):
        try:
            pictures += some(slice(len(pictures), len(pictures) + batch_size))
        except STRANGE as error:
            raise RecipeError(
                f"The sampler {sampling.sampler!r} cannot take {sampling.steps} steps on this base; "
                "try another number, or another sampler."
            ) from error
        except RuntimeError as error:
            if not family.is_full(error):
                raise
            if batch_size == 1:
                raise OutOfMemory(
                    f"The device has not enough memory to sample a picture of {side} pixels; try a smaller resolution."
                ) from error
            batch_size //= 2
    return pictures


STRANGE = (ValueError, AssertionError, IndexError, FloatingPointError)
"""What samplers make of too few or too many steps."""


def _start(family: Family, redraw: Redraw, sampling: Sampling, side: int) -> tuple[np.ndarray, float]:
    """Return what to start from: the mean of a picture's latents, and the share that is drawn anew."""
    if not 0 < redraw.strength <= 1 or int(sampling.steps * redraw.strength) < 1:
        raise RecipeError(
            f"The strength with which a picture is drawn anew must be above 0, up to 1, and leave at least one of the "
            f"{sampling.steps} steps, but is {redraw.strength:g}."
        )
    [frame] = Framing(side).frames(redraw.image.size)
    mean, _ = family.encode_images(images.pixels(frame.cut(redraw.image.convert("RGB")), False)[None])
    return mean, redraw.strength
