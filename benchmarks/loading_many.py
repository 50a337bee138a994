"""What a word more costs in a pipeline that has many: loading, the first prompt, prompts after it, unloading.

    python benchmarks/loading_many.py --output benchmarks/results/loading_many.json

Words of two vectors in a text encoder of Stable Diffusion 1.5's width, of one layer as loading does not compute, and a
table of 49,408 rows; all in one call, and one call a word, for several numbers of words: time should grow as they do,
not faster. `--before SRC` measures another version's sources too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pseudoword
from pseudoword import Concept, disk
from pseudoword.evaluate.machine import machine

if __package__:
    from benchmarks.lending import base
else:
    from lending import base

PROMPT = "a photo of <word-0> and <word-1> on the beach"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--words", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--vectors", type=int, default=2)
    parser.add_argument("--before", type=Path, help="another version's src, to be measured too")
    parser.add_argument("--output", type=Path, help="where to keep results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipeline, widths = base("sd15", small=True)
    runs = [measured(pipeline, widths, count, args.vectors) for count in args.words]
    results: dict[str, Any] = {**machine(), "vectors": args.vectors, "milliseconds": runs}
    if args.before:
        counts = [str(count) for count in args.words]
        command = [sys.executable, __file__, "--words", *counts, "--vectors", str(args.vectors)]
        environment = {**os.environ, "PYTHONPATH": str(args.before.resolve())}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        results["milliseconds_before"] = json.loads(done.stdout)["milliseconds"]
    print(json.dumps(results, indent=1))
    if args.output:
        disk.write(args.output, json.dumps(results, indent=1) + "\n")


def measured(pipeline: Any, widths: dict[str, int], count: int, vectors: int) -> dict[str, float]:
    """Return milliseconds a word, and a prompt, with so many words."""
    draw = np.random.default_rng(0)
    concepts: list[Concept] = []
    for number in range(count):
        rows = {encoder: draw.standard_normal((vectors, width), dtype=np.float32) for encoder, width in widths.items()}
        concepts.append(Concept(f"<word-{number}>", rows))
    together, words = seconds(lambda: pseudoword.load(pipeline, *concepts))
    first, _ = seconds(lambda: read(pipeline))
    prompts, _ = seconds(lambda: [read(pipeline) for _ in range(100)])
    unloading, _ = seconds(words.unload)
    one_by_one, each = seconds(lambda: [pseudoword.load(pipeline, concept) for concept in concepts])
    for one in each:
        one.unload()
    return {
        "words": count,
        "load_a_word": round(1000 * together / count, 4),
        "load_a_word_one_by_one": round(1000 * one_by_one / count, 4),
        "first_prompt": round(1000 * first, 3),
        "prompt": round(10 * prompts, 3),
        "unload_a_word": round(1000 * unloading / count, 4),
    }


def read(pipeline: Any) -> Any:
    """Read a prompt as diffusers' pipelines do."""
    return pipeline.tokenizer(PROMPT, padding="max_length", max_length=77, truncation=True, return_tensors="pt")


def seconds(work: Any) -> tuple[float, Any]:
    """Return how long something took, and what it returned."""
    began = time.perf_counter()
    returned = work()
    return time.perf_counter() - began, returned


if __name__ == "__main__":
    main()
