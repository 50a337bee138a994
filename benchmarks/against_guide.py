"""How fast a word is learned: the guide's own script and our command of the same name, on the same work, in turns.

    python benchmarks/against_guide.py --script diffusers/examples/textual_inversion/textual_inversion.py

Each run is a process of its own, with the guide's flags: the same base, pictures and optimizer steps of 1 × 4
pictures. Both write their word every few steps, so the files' times say how fast steps follow each other once all is
loaded; seconds of the whole process are told beside. Geometries: `toybox`, `sd15-small` (CLIP-L with its table of
49,408 rows, a reduced UNet), `sd15` and `sdxl` (real sizes; for a GPU). The guide's script is run as it is printed in
the guide (fp32), and, where there is a GPU, with its speed flags too. With `--words 8` our run learns as many words
at once (`pseudoword train`, the same settings), beside one word of the guide's script, which has to be run as often:
pictures a second are compared as they are, whole processes with the guide's taken eight times.
Results: benchmarks/results/against-guide-GEOMETRY.json, with several words against-guide-GEOMETRY-N-words.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import tomli_w
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
    parser.add_argument("--words", type=int, default=1, help="words that our run learns at once")
    parser.add_argument("--compile", action="store_true", help="with several words: compile the denoiser")
    parser.add_argument("--bf16", action="store_true", help="on a CPU: measure ours in bf16 too (on a GPU all are)")
    parser.add_argument("--jax", action="store_true", help="measure our JAX engine too, of SD bases")
    parser.add_argument("--work", type=Path, default=Path("against-guide"), help="folder for bases and runs")
    parser.add_argument("--output", type=Path, help="where to keep results")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    base = written(args.geometry, args.work / args.geometry)
    for subject in subjects(args.words):
        suite.write(subject, args.work / "pictures" / subject.name)
    arms: dict[str, tuple[str, ...]] = {"guide": (), "pseudoword": ()}
    if args.bf16:
        arms["pseudoword-bf16"] = FAST[:1]
    if torch.cuda.is_available():
        arms = {"guide": (), "guide-fast": FAST, "pseudoword": FAST}
    if args.jax:
        arms["pseudoword-jax"] = arms["pseudoword"]
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for turn in range(args.rounds):
        for arm in list(arms)[:: -1 if turn % 2 else 1]:
            runs[arm].append(timed(arm, arms[arm], base, args))
            print(arm, json.dumps(runs[arm][-1]), flush=True)
    results = {"command": command(args), **machine(), **summary(runs, args.words)}
    if torch.cuda.is_available():
        results["gpu"] = torch.cuda.get_device_name()
    print(json.dumps(results, indent=1))
    if args.output:
        disk.write(args.output, json.dumps(results, indent=1) + "\n")


def command(args: argparse.Namespace) -> str:
    """Return how to measure the same again."""
    batch = " ".join(map(str, args.batch))
    more = f" --resolution {args.resolution}" if args.resolution else ""
    more += f" --words {args.words}" if args.words > 1 else ""
    more += " --compile" if args.compile else ""
    more += " --bf16" if args.bf16 else ""
    more += " --jax" if args.jax else ""
    return (
        f"python benchmarks/against_guide.py --script PATH --geometry {args.geometry} --batch {batch} "
        f"--warm {args.warm} --steps {args.steps} --rounds {args.rounds}{more}"
    )


def subjects(count: int) -> list[suite.Subject]:
    """Return what as many words are of, the first always the same."""
    others = [subject for name, subject in suite.NAMED.items() if name != "toadstool"]
    return [suite.NAMED["toadstool"], *others][:count]


def timed(arm: str, more: tuple[str, ...], base: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Carry out one run and return pictures a second between its first and last word, and what the process took."""
    folder = args.work / f"run-{arm}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rounds = -(-args.steps // args.warm)
    steps = args.warm * (1 + rounds)
    given = [*flags(base, folder, steps, args), *more]
    own = arm.startswith("pseudoword")
    several = own and args.words > 1
    if several:
        command = [str(Path(sys.executable).with_name("pseudoword")), "train", "--recipe", recipe(given, args)]
        command += ["--engine", "jax"] if arm.endswith("-jax") else []
    elif own:
        command = [sys.executable, str(ours(args.geometry, arm)), *given]
    else:
        command = [sys.executable, str(WITHOUT_TORCHVISION), str(args.script), *given]
    took = carried_out(command, args.work / f"{arm}.log", {"HF_HUB_OFFLINE": "1"})
    place = next((folder / "words").iterdir()) if several else folder
    first, last = ((place / f"learned_embeds-steps-{step}.safetensors").stat().st_mtime for step in (args.warm, steps))
    pictures = args.batch[0] * args.batch[1] * (args.words if several else 1)
    shutil.rmtree(folder)
    return {
        "pictures_per_second": round(pictures * args.warm * rounds / (last - first), 3),
        "start_up_seconds": round(first - took.pop("began"), 2),
        "steps": steps,
        **took,
    }


def ours(geometry: str, arm: str) -> Path:
    """Return our script for a kind of base and an arm."""
    if arm.endswith("-jax"):
        return OURS.with_name("textual_inversion_flax.py")
    return OURS.with_name("textual_inversion_sdxl.py") if geometry.startswith("sdxl") else OURS


def flags(base: Path, folder: Path, steps: int, args: argparse.Namespace) -> list[str]:
    """Return the guide's flags for a run of one word."""
    return [
        f"--pretrained_model_name_or_path={base}",
        f"--train_data_dir={args.work / 'pictures' / 'toadstool'}",
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


def recipe(given: list[str], args: argparse.Namespace) -> str:
    """Write the recipe that the guide's flags stand for, with as many words, and return where."""
    spec = importlib.util.spec_from_file_location("textual_inversion", OURS)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    plain = script.recipe_of(script.parse_args(given))
    [wanted] = plain.concepts
    concepts = tuple(
        dataclasses.replace(wanted, token=f"<{subject.name}>", pictures=str(args.work / "pictures" / subject.name))
        for subject in subjects(args.words)
    )
    engine = dataclasses.replace(plain.engine, compile="on" if args.compile else plain.engine.compile)
    path = args.work / "recipe.toml"
    disk.write(path, tomli_w.dumps(dataclasses.replace(plain, concepts=concepts, engine=engine).to_dict()))
    return str(path)


def summary(runs: dict[str, list[dict[str, Any]]], words: int = 1) -> dict[str, Any]:
    """Return medians by arm, and ours over each other arm's, pair by pair; whole processes for all of the words."""
    found: dict[str, Any] = {
        arm: {
            "pictures_per_second": round(statistics.median(one["pictures_per_second"] for one in own), 3),
            "start_up_seconds": statistics.median(one["start_up_seconds"] for one in own),
            "peak_mib": max(one["peak_mib"] for one in own),
        }
        for arm, own in runs.items()
    }
    own = [arm for arm in runs if arm.startswith("pseudoword")]
    for mine in own:
        for arm in (other for other in runs if other not in own or (mine, other) == ("pseudoword-jax", "pseudoword")):
            both = list(zip(runs[mine], runs[arm], strict=True))
            ratios = [ours["pictures_per_second"] / theirs["pictures_per_second"] for ours, theirs in both]
            times = 1 if arm in own else words
            whole = [times * theirs["seconds"] / ours["seconds"] for ours, theirs in both]
            found[f"{mine}_times_as_fast_as_{arm}"] = {
                "median": round(statistics.median(ratios), 2),
                "pairs": [round(ratio, 2) for ratio in ratios],
                "whole_process_of_these_steps": round(statistics.median(whole), 2),
            }
    return {**found, "runs": runs}


if __name__ == "__main__":
    main()
