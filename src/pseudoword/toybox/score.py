"""How well the base draws what its captions say, judged by the oracle on pairings held out of the base's training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import UInt8
from PIL import Image

from pseudoword.toybox import world
from pseudoword.toybox.base import sample
from pseudoword.toybox.cache import HELD_OUT, held_out_pictures
from pseudoword.toybox.captions import full_caption
from pseudoword.toybox.oracle import Judge, agreement
from pseudoword.toybox.train_vae import psnr, round_trip, to_pixels, to_tensor
from pseudoword.toybox.trainer import reading
from pseudoword.toybox.world import Drawing

DRAWN = ("shape", "colour", "background", "style")
FILLED = ("pattern", "second")


@dataclass(frozen=True)
class Goal:
    """One line of the table: what was measured, and what it should be at least (or, if `most`, at most)."""

    what: str
    value: float
    goal: float
    unit: str = "%"
    most: bool = False

    @property
    def reached(self) -> bool:
        """Whether the value is on the right side of its goal."""
        return self.value <= self.goal if self.most else self.value >= self.goal


def as_array(pictures: Sequence[Image.Image]) -> UInt8[np.ndarray, "batch 64 64 3"]:
    """Turn pictures into what the oracle reads."""
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def held_out(count: int) -> tuple[list[Drawing], UInt8[np.ndarray, "count 64 64 3"]]:
    """Return drawings of pairings that training never shows, and their pictures."""
    return [world.held_out_drawing(seed) for seed in range(HELD_OUT, HELD_OUT + count)], held_out_pictures(count)


@torch.no_grad()
def vae_and_oracle(vae: Any, judge: Judge, count: int) -> list[Goal]:
    """Measure the round trip, and the oracle before and after it."""
    drawings, pictures = held_out(count)
    true = to_tensor(pictures, torch.device("cpu"))
    made = round_trip(vae, true)
    before, after = (agreement(judge.read(p), drawings) for p in (pictures, to_pixels(made)))
    drop = sum(before[name] - after[name] for name in before) / len(before)
    return [
        Goal("VAE round trip of held-out renders, PSNR", psnr(made, true), 27, "dB"),
        Goal("VAE round trip, drop in the oracle's accuracy (mean)", 100 * drop, 3, "points", most=True),
        Goal(f"oracle on held-out renders, worst attribute ({_worst(before)})", 100 * min(before.values()), 97),
        Goal(f"oracle on round trips, worst attribute ({_worst(after)})", 100 * min(after.values()), 94),
    ]


def _worst(shares: Mapping[str, float]) -> str:
    return min(shares, key=lambda name: shares[name])


def base_agreement(pipeline: StableDiffusionPipeline, judge: Judge, count: int) -> list[Goal]:
    """Draw held-out captions with guidance 4 in 20 steps, and compare with what the oracle sees."""
    drawings, _ = held_out(count)
    made = sample(pipeline, [full_caption(drawing) for drawing in drawings])
    shares = agreement(judge.read(as_array(made)), drawings)
    line = "base from held-out captions, agreement on "
    wanted = {**dict.fromkeys(DRAWN, 90), **dict.fromkeys(FILLED, 80)}
    said = {name: line + name.replace("second", "second colour") for name in wanted}
    return [Goal(said[name], 100 * shares[name], least) for name, least in wanted.items() if name in shares]


def seconds_for_four(pipeline: StableDiffusionPipeline) -> Goal:
    """Time four pictures in 20 steps with guidance."""
    prompts = ["a photo of a red star in the grass"] * 4
    sample(pipeline, prompts)
    began = time.perf_counter()
    sample(pipeline, prompts)
    return Goal("4 pictures, 20 steps, guidance 4", time.perf_counter() - began, 10, "s", most=True)


def pipeline_of(folder: Path) -> StableDiffusionPipeline:
    """Load a base as anyone would; RecipeError says what to run if it cannot be read."""
    with reading(folder, "train-base"):
        return StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)


def score_base(folder: Path, judge: Judge, count: int) -> list[Goal]:
    """Measure everything that takes no training."""
    pipeline = pipeline_of(folder)
    return [
        *vae_and_oracle(pipeline.vae, judge, count),
        *base_agreement(pipeline, judge, count),
        seconds_for_four(pipeline),
    ]
