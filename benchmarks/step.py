"""Where a training step's time goes: its parts, its operations against a matrix product's, its memory.

    python benchmarks/step.py --geometry sd15-small --at-once 1 4 16

For each number of pictures at once: seconds of preparing the batch, of encoding prompts, of the denoiser, of the
backward pass to the rows and of a whole step; achieved FLOP/s as a share of a large matrix product's in the same
precision, timed in the same call; the most memory held (on a CPU: so far, so ask for one number of pictures to know
its own). With `--words 8` the pictures are those of as many words, and words per hour are told for 400 steps of 4
pictures each, without start-up. Random weights at real sizes: nothing is
downloaded. Results: benchmarks/results/step-GEOMETRY.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from geometries import RESOLUTIONS, written
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from pseudoword import disk, families, methods, schedules
from pseudoword.batch import Batch, Pair
from pseudoword.engines import switches
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.evaluate.machine import machine
from pseudoword.families.locate import locate
from pseudoword.methods.classic import ClassicOptions
from pseudoword.recipe import BaseModel, EngineRecipe

STEPS, PICTURES = 400, 4
"""What a word takes, for words per hour."""
PARTS = ("batch", "prompts", "denoiser", "backward", "step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--geometry", choices=RESOLUTIONS, default="toybox")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="pictures at once")
    parser.add_argument("--words", type=int, default=1, help="how many words the pictures are of")
    parser.add_argument("--rounds", type=int, default=10, help="steps that are timed")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default=None)
    parser.add_argument("--memory", choices=("auto", "low", "lowest"), default="auto")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("step"), help="folder for the base")
    parser.add_argument("--output", type=Path, help="where to keep results")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.mixed_precision is None:
        args.mixed_precision = "bf16" if torch.cuda.is_available() else "no"
    counts = [count for count in args.at_once if count >= args.words]
    if not counts:
        parser.error(f"--at-once needs at least a picture for each of {args.words} words")
    lines = [measured(args, count) for count in counts]
    product = max(lines[0]["matrix_product_tflops"], lines[-1]["matrix_product_tflops"])
    for line in lines:
        line["share_of_matrix_product"] = round(line["tflops"] / product, 3)
    command = shlex.join(["python", "benchmarks/step.py", *sys.argv[1:]])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    results = {"command": command, **machine(), "device": device, "words": args.words, "at_once": lines}
    show(lines)
    if args.output:
        disk.write(args.output, json.dumps(results, indent=1) + "\n")


def measured(args: argparse.Namespace, count: int) -> dict[str, Any]:
    """Return what a step of so many pictures takes, on a base that is gone afterwards."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return Measured(args, count).result()


class Measured:
    """A base with words to learn, and a step of some pictures."""

    def __init__(self, args: argparse.Namespace, count: int) -> None:
        self.args, self.count = args, count
        base = locate(BaseModel(str(written(args.geometry, args.work / args.geometry))), {})
        self.family = families.part(base.family, "torch").FAMILY.load(base)
        options = EngineRecipe(
            mixed_precision=args.mixed_precision,
            memory=args.memory,
            deterministic=args.deterministic,
            compile="on" if args.compile else "off",
        )
        self.engine = TorchEngine(options)
        self.tokens = [f"<word-{i}>" for i in range(args.words)]
        rows = {}
        for token in self.tokens:
            for vocabulary in self.family.vocabularies.values():
                vocabulary.lend(token, 1)
            rows[token] = {e: v.table[300:301].astype(np.float32) for e, v in self.family.vocabularies.items()}
        self.engine.start(self.family, methods.build(ClassicOptions()), rows)
        side = RESOLUTIONS[args.geometry] // self.family.latent_factor
        self.shape = (self.family.vae.config["latent_channels"], side, side)

    def pair(self, step: int) -> Pair:
        """Return made-up pictures with captions that differ, dealt to the words in turn."""
        concept = np.arange(self.count) % len(self.tokens)
        draw = schedules.draw(
            0,
            self.tokens[0],
            step,
            range(self.count),
            self.count,
            num_pictures=5,
            flip_p=0.5,
            num_timesteps=self.family.num_timesteps,
            latent_shape=self.shape,
        )
        texts = [f"{'a ' * (1 + i // len(self.tokens) % 50)}{self.tokens[c]}" for i, c in enumerate(concept)]
        ids = {e: np.stack([v.encode(text).ids for text in texts]) for e, v in self.family.vocabularies.items()}
        placement = np.tile([side := RESOLUTIONS[self.args.geometry], side, 0, 0, side, side], (self.count, 1))
        return Batch(ids, draw.noise, np.full_like(draw.noise, 0.1), concept, placement), draw

    def result(self) -> dict[str, Any]:
        """Return what a step takes, its parts one after the other."""
        pair, engine = self.pair(1), self.engine
        counts = engine._counts([pair])
        batch, draw = pair
        leaves = engine._leaves()
        flat = [p for own in leaves for p in own.values()]

        def prompts() -> Any:
            return engine._told(leaves, batch)

        def forward() -> torch.Tensor:
            return engine._loss(leaves, batch, draw, counts).sum()

        def both() -> None:
            torch.autograd.grad(forward(), flat)

        counter = FlopCounterMode(display=False)
        with counter:  # on the plain layers
            forward().backward()
        engine.compile(lambda: [pair], 1, None)
        works = {
            "batch": lambda: self.pair(2),
            "prompts": prompts,
            "forward": forward,
            "both": both,
            "step": lambda: engine.step([pair], 1e-3),
        }
        with switches.thrown(engine.options):
            seconds = timed(works, self.args.rounds)
        step = seconds["step"]
        return {
            "at_once": self.count,
            "seconds": {
                "batch": seconds["batch"],
                "prompts": seconds["prompts"],
                "denoiser": seconds["forward"] - seconds["prompts"],
                "backward": seconds["both"] - seconds["forward"],
                "step": step,
            },
            "pictures_per_second": round(self.count / step, 3),
            "words_per_hour": round(3600 * self.count / step / (STEPS * PICTURES), 2),
            "tflop": round(counter.get_total_flops() / 1e12, 5),
            "tflops": round(counter.get_total_flops() / 1e12 / step, 4),
            "matrix_product_tflops": round(matrix_product(engine.device, engine.dtype), 4),
            "peak_mib": peak(engine.device),
        }


def timed(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each work, all of them in turns."""
    took: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 2):
        for name, work in works.items():
            synchronize()
            began = time.perf_counter()
            work()
            synchronize()
            if turn >= 2:
                took[name].append(time.perf_counter() - began)
    return {name: round(statistics.median(own), 6) for name, own in took.items()}


def matrix_product(device: torch.device, dtype: torch.dtype) -> float:
    """Return the TFLOP/s of a large product of matrices."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / timed({"product": lambda: a @ b}, 10)["product"] / 1e12


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(device: torch.device) -> int:
    """Return the most memory held so far, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def show(lines: list[dict[str, Any]]) -> None:
    table = Table(box=None)
    headings = ("pictures", *(f"{name}, ms" for name in PARTS), "pictures/s", "words/hour", "of a product", "MiB")
    for heading in headings:
        table.add_column(heading, justify="right")
    for line in lines:
        parts = [f"{1e3 * line['seconds'][name]:.1f}" for name in PARTS]
        share = f"{line['share_of_matrix_product']:.0%}"
        last = (f"{line['pictures_per_second']:.1f}", f"{line['words_per_hour']:.1f}", share, str(line["peak_mib"]))
        table.add_row(str(line["at_once"]), *parts, *last)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
