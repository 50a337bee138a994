"""What loading many words into a pipeline costs: seconds a word, of 125 to 1,000 words, to load, unload and read.

    python benchmarks/loading_many.py

A text encoder of Stable Diffusion 1.5's sizes with one layer, random weights and a table of 49,408 rows; words of one
vector. Results: benchmarks/results/loading-many.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.lending import base

import pseudoword
from pseudoword import Concept, disk
from pseudoword.evaluate.machine import machine

WIDTH = 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--words", type=int, nargs="+", default=[125, 250, 500, 1000])
    parser.add_argument("--rounds", type=int, default=5, help="times that each number is loaded")
    parser.add_argument("--output", type=Path, help="where to keep results")
    args = parser.parse_args()
    pipeline, _ = base("sd15", small=True)
    results = {**machine(), "milliseconds_a_word": {n: measured(pipeline, n, args.rounds) for n in args.words}}
    print(json.dumps(results, indent=1))
    if args.output:
        disk.write(args.output, json.dumps(results, indent=1) + "\n")


def measured(pipeline: Any, count: int, rounds: int) -> dict[str, float]:
    """Return the median milliseconds a word to load and to unload, and those of the first prompt and of later ones."""
    numbers = np.random.default_rng(0)
    words = [Concept(f"<word-{i}>", {"clip_l": numbers.standard_normal((1, WIDTH))}) for i in range(count)]
    seconds: dict[str, list[float]] = {"load": [], "unload": [], "first_prompt": [], "later_prompt": []}
    for _ in range(rounds):
        clock = [time.perf_counter()]
        loaded = pseudoword.load(pipeline, *words)
        clock.append(time.perf_counter())
        for _ in range(2):
            pipeline.tokenizer(f"a photo of <word-{count // 2}> on the beach")
            clock.append(time.perf_counter())
        loaded.unload()
        clock.append(time.perf_counter())
        for name, took in zip(("load", "first_prompt", "later_prompt", "unload"), np.diff(clock), strict=True):
            seconds[name].append(float(took))
    return {name: _milliseconds(took, count if "prompt" not in name else 1) for name, took in seconds.items()}


def _milliseconds(seconds: Sequence[float], words: int) -> float:
    return round(1000 * statistics.median(seconds) / words, 4)


if __name__ == "__main__":
    main()
