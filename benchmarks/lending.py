"""What words in a pipeline cost: prompts encoded at real sizes with words loaded and without, in turns.

    python benchmarks/lending.py

Text encoders of Stable Diffusion 1.5's and XL's sizes with random weights and tables of 49,408 rows; the same prompts,
whose word is a learned one or an ordinary one. Results: benchmarks/results/lending.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import pseudoword
from pseudoword import Concept, disk
from pseudoword.evaluate.machine import machine
from pseudoword.families.clip_miniature import clip_tokenizer

ROWS = 49_408
L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
BASES = {"sd15": {"clip_l": (CLIPTextModel, L)}}
BASES["sdxl"] = {**BASES["sd15"], "clip_g": (CLIPTextModelWithProjection, {**G, "projection_dim": 1280})}


class Pipeline:
    """What of a diffusers pipeline reads prompts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20, help="pairs of encodings, with and without words")
    parser.add_argument("--vectors", type=int, default=4)
    parser.add_argument("--small", action="store_true", help="a layer of each encoder, to try it out")
    parser.add_argument("--output", type=Path, help="where to keep results")
    args = parser.parse_args()
    results = {**machine(), "vectors": args.vectors, **{name: measured(name, args) for name in BASES}}
    print(json.dumps(results, indent=1))
    if args.output:
        disk.write(args.output, json.dumps(results, indent=1) + "\n")


def measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of a prompt with and without words, pair by pair, either first in turn."""
    pipeline, widths = base(name, args.small)
    rows = {
        encoder: np.random.default_rng(0).standard_normal((args.vectors, width)) for encoder, width in widths.items()
    }
    concept = Concept("<word>", rows)
    prompts = {"with": "a photo of <word> on the beach", "without": "a photo of cat on the beach"}
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for turn in range(2 * args.rounds + 2):
        arm = "with" if turn % 4 in (1, 2) else "without"  # A B B A, so that neither always comes after the other
        words = pseudoword.load(pipeline, concept) if arm == "with" else None
        began = time.perf_counter()
        encode(pipeline, prompts[arm])
        took = time.perf_counter() - began
        if words:
            words.unload()
        if turn >= 2:  # after a warm-up of each
            seconds[arm].append(took)
    began = time.perf_counter()
    for _ in range(100):
        pseudoword.load(pipeline, concept).unload()
    loading = (time.perf_counter() - began) / 100
    ratios = [w / o for w, o in zip(seconds["with"], seconds["without"], strict=True)]
    return {
        "median_seconds": {arm: round(statistics.median(own), 5) for arm, own in seconds.items()},
        "ratio": {"median": round(statistics.median(ratios), 4), "quartiles": quartiles(ratios)},
        "load_and_unload_seconds": round(loading, 6),
    }


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 4) for value in np.percentile(values, (25, 75)).tolist()]


@torch.no_grad()
def encode(pipeline: Any, prompt: str) -> None:
    """Read a prompt as diffusers' pipelines do."""
    for tokenizer, encoder in ((pipeline.tokenizer, pipeline.text_encoder), second(pipeline)):
        if tokenizer is not None:
            ids = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
            encoder(ids, output_hidden_states=True)


def second(pipeline: Any) -> tuple[Any, Any]:
    return getattr(pipeline, "tokenizer_2", None), getattr(pipeline, "text_encoder_2", None)


def base(name: str, small: bool) -> tuple[Any, dict[str, int]]:
    """Return what of a pipeline reads prompts, at its real size, and the widths of its rows."""
    made, widths = Pipeline(), {}
    for i, (encoder, (kind, sizes)) in enumerate(BASES[name].items()):
        sizes = {**sizes, **({"num_hidden_layers": 1} if small else {})}
        suffix = f"_{i + 1}" if i else ""
        tokenizer = clip_tokenizer(size=ROWS)
        config = CLIPTextConfig(vocab_size=ROWS, eos_token_id=tokenizer.eos_token_id, **sizes)
        setattr(made, f"tokenizer{suffix}", tokenizer)
        setattr(made, f"text_encoder{suffix}", kind(config).eval().requires_grad_(False))
        widths[encoder] = sizes["hidden_size"]
    return made, widths


if __name__ == "__main__":
    main()
