"""Are the JAX engine's words those of the torch engine? The same recipe on the toybox with both, scored alike.

    python benchmarks/engines.py

Each run is a process of its own, with the guide's flags; both engines see the same draws, so a word differs by what
arithmetic leaves after so many steps. Scores are the toybox's, of pictures from the same noises. A run that is done
is not trained again. Results: benchmarks/results/engines.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from guide_baseline import MEASURES, OURS, Trained, flags, score, word_file, written_base
from processes import carried_out
from tqdm import tqdm

from pseudoword import Concept, disk, generate
from pseudoword.evaluate.answer_key import AnswerKey
from pseudoword.evaluate.examine import Examiner
from pseudoword.evaluate.machine import machine
from pseudoword.recipe import BaseModel
from pseudoword.toybox import oracle, suite

ENGINES = {"torch": OURS, "jax": OURS.with_name("textual_inversion_flax.py")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=Path("engines"), help="folder for the runs, to go on from")
    parser.add_argument("--concepts", nargs="+", default=("candy-heart", "toadstool"), choices=tuple(suite.NAMED))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--noises", type=int, default=8, help="pictures for each prompt")
    parser.add_argument("--batch", type=int, nargs=2, default=(1, 4), help="pictures at once, and how often for a step")
    parser.add_argument("--output", type=Path, help="where to keep results")
    args = parser.parse_args()
    args.save_steps = args.steps
    base = written_base(args.work / "base")
    runs = [
        Trained(engine, suite.NAMED[concept], seed, args.work / f"{engine}-{concept}-{seed}")
        for concept in args.concepts
        for seed in args.seeds
        for engine in ENGINES
    ]
    for run in tqdm(runs, desc="runs"):
        suite.write(run.subject, args.work / "pictures" / run.subject.name)
        if not (run.folder / "learned_embeds.safetensors").exists():
            run.folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, str(ENGINES[run.arm]), *flags(run, args, base)]
            carried_out(command, run.folder.with_suffix(".log"), {"HF_HUB_OFFLINE": "1"})
    results = {"command": told(args), **machine(), **compared(runs, args)}
    print(json.dumps(results, indent=1))
    if args.output:
        disk.write(args.output, json.dumps(results, indent=1) + "\n")


def told(args: argparse.Namespace) -> str:
    """Return how to measure the same again."""
    return (
        f"python benchmarks/engines.py --concepts {' '.join(args.concepts)} --seeds {' '.join(map(str, args.seeds))} "
        f"--steps {args.steps} --noises {args.noises} --batch {args.batch[0]} {args.batch[1]}"
    )


def compared(runs: list[Trained], args: argparse.Namespace) -> dict[str, Any]:
    """Return each word's scores by concept, engine and seed, how far the engines' are apart, and how far seeds' are."""
    examiner = Examiner(
        generate.load(BaseModel("toybox")),
        generate.Sampling(seed=1000, steps=25, guidance_scale=4.0),
        args.noises,
        args.work / "examined",
    )
    judge = oracle.load()
    found: dict[str, Any] = {}
    for concept in args.concepts:
        own = {(run.arm, run.seed): run for run in runs if run.subject.name == concept}
        words = {key: Concept.load(word_file(run, args.steps)) for key, run in own.items()}
        key = AnswerKey(suite.NAMED[concept], judge)
        scores = {at: score(examiner, key, word) for at, word in words.items()}
        rows = [[words[engine, seed].rows["clip_l"] for engine in ENGINES] for seed in args.seeds]
        apart = [np.linalg.norm(theirs - ours) / np.linalg.norm(theirs) for theirs, ours in rows]
        found[concept] = {"rows_apart": [float(f"{value:.2g}") for value in apart]}
        for measure in MEASURES:
            by = {
                engine: [round(statistics.mean(scores[engine, seed][measure]), 4) for seed in args.seeds]
                for engine in ENGINES
            }
            apart = abs(statistics.mean(by["torch"]) - statistics.mean(by["jax"]))
            spread = max(by["torch"]) - min(by["torch"])
            found[concept][measure] = {**by, "apart": round(apart, 4), "spread_of_torch": round(spread, 4)}
    return found


if __name__ == "__main__":
    main()
