"""How fast a word is learned: the guide's own script and our command of the same name, on the same work, in turns.

    python benchmarks/against_guide.py --script diffusers/examples/textual_inversion/textual_inversion.py

Each run is a process of its own, with the guide's flags: the same base, pictures and optimizer steps of 1 × 4
pictures. Both write their word every few steps, so the files' times say how fast steps follow each other once all is
loaded; seconds of the whole process are told beside. Geometries: `toybox`, `sd15-small` (CLIP-L with its table of
49,408 rows, a reduced UNet), `sd15` (real sizes; for a GPU). The guide's script is run as it is printed in the guide
(fp32), and, where there is a GPU, with its speed flags too. Results: benchmarks/results/against-guide-GEOMETRY.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from geometries import RESOLUTIONS, written
from guide_baseline import OURS, WITHOUT_TORCHVISION
from processes import carried_out

from pseudoword import disk
from pseudoword.evaluate.machine import machine
from pseudoword.toybox import suite

FAST = ("--mixed_precision=bf16", "--allow_tf32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--script", type=Path, required=True, help="the guide's textual_inversion.py")
    parser.add_argument("--geometry", choices=RESOLUTIONS, default="toybox")
    parser.add_argument("--resolution", type=int, help="of the pictures, if not the geometry's own")
    parser.add_argument("--batch", type=int, nargs=2, default=[1, 4], help="pictures and micro-batches of a step")
    parser.add_argument("--warm", type=int, default=10, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=50, help="steps that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs")
    parser.add_argument("--work", type=Path, default=Path("against-guide"), help="folder for bases and runs")
    parser.add_argument("--output", type=Path, help="where to keep results")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    base = written(args.geometry, args.work / args.geometry)
    suite.write(suite.NAMED["toadstool"], args.work / "pictures")
    arms = {"guide": (), "pseudoword": ()}
    if torch.cuda.is_available():
        arms = {"guide": (), "guide-fast": FAST, "pseudoword": FAST}
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for turn in range(args.rounds):
        for arm in list(arms)[:: -1 if turn % 2 else 1]:
            runs[arm].append(timed(arm, arms[arm], base, args))
            print(arm, json.dumps(runs[arm][-1]), flush=True)
    results = {"command": command(args), **machine(), **summary(runs)}
    if torch.cuda.is_available():
        results["gpu"] = torch.cuda.get_device_name()
    print(json.dumps(results, indent=1))
    if args.output:
        disk.write(args.output, json.dumps(results, indent=1) + "\n")


def command(args: argparse.Namespace) -> str:
    """Return how to measure the same again."""
    batch = " ".join(map(str, args.batch))
    sides = f" --resolution {args.resolution}" if args.resolution else ""
    return (
        f"python benchmarks/against_guide.py --script PATH --geometry {args.geometry}{sides} --batch {batch} "
        f"--warm {args.warm} --steps {args.steps} --rounds {args.rounds}"
    )


def timed(arm: str, more: tuple[str, ...], base: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Carry out one run and return pictures a second between its first and last word, and what the process took."""
    folder = args.work / f"run-{arm}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    script = [str(OURS)] if arm == "pseudoword" else [str(WITHOUT_TORCHVISION), str(args.script)]
    rounds = -(-args.steps // args.warm)
    steps = args.warm * (1 + rounds)
    flags = [
        f"--pretrained_model_name_or_path={base}",
        f"--train_data_dir={args.work / 'pictures'}",
        "--learnable_property=object",
        "--placeholder_token=<word>",
        "--initializer_token=" + ("thing" if args.geometry == "toybox" else "toy"),
        f"--resolution={args.resolution or RESOLUTIONS[args.geometry]}",
        f"--train_batch_size={args.batch[0]}",
        f"--gradient_accumulation_steps={args.batch[1]}",
        f"--max_train_steps={steps}",
        "--learning_rate=5.0e-04",
        "--scale_lr",
        "--lr_scheduler=constant",
        "--lr_warmup_steps=0",
        f"--save_steps={args.warm}",
        f"--checkpointing_steps={10 * steps}",
        "--seed=1",
        f"--output_dir={folder}",
    ]
    took = carried_out([sys.executable, *script, *flags, *more], args.work / f"{arm}.log", {"HF_HUB_OFFLINE": "1"})
    first, last = ((folder / f"learned_embeds-steps-{step}.safetensors").stat().st_mtime for step in (args.warm, steps))
    pictures = args.batch[0] * args.batch[1]
    shutil.rmtree(folder)
    return {
        "pictures_per_second": round(pictures * args.warm * rounds / (last - first), 3),
        "start_up_seconds": round(first - took.pop("began"), 2),
        "steps": steps,
        **took,
    }


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return medians by arm, and ours over each other arm's, pair by pair."""
    found: dict[str, Any] = {
        arm: {
            "pictures_per_second": round(statistics.median(one["pictures_per_second"] for one in own), 3),
            "start_up_seconds": statistics.median(one["start_up_seconds"] for one in own),
            "peak_mib": max(one["peak_mib"] for one in own),
        }
        for arm, own in runs.items()
    }
    for arm, others in runs.items():
        if arm != "pseudoword":
            pairs = zip(runs["pseudoword"], others, strict=True)
            ratios = [ours["pictures_per_second"] / theirs["pictures_per_second"] for ours, theirs in pairs]
            whole = [t["seconds"] / o["seconds"] for o, t in zip(runs["pseudoword"], others, strict=True)]
            found[f"times_as_fast_as_{arm}"] = {
                "median": round(statistics.median(ratios), 2),
                "pairs": [round(ratio, 2) for ratio in ratios],
                "whole_process_of_these_steps": round(statistics.median(whole), 2),
            }
    return {**found, "runs": runs}


if __name__ == "__main__":
    main()
