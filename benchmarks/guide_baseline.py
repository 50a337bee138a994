"""The guide's own script and our command of the same name, on the toybox: are they the same, and how good is the word?

    python benchmarks/guide_baseline.py --script diffusers/examples/textual_inversion/textual_inversion.py

Both train the same words on the same pictures with the same flags, each in a process of its own. The words that
they leave on the way are then scored alike, by the toybox's answer key, on pictures from the same noises. A run that
is done is not trained again, so the command goes on where it was stopped. Clone diffusers beside the project; its
script is run as it is. Where torchvision is not installed it finds the one transform that it imports in a stand-in.

The words themselves are kept beside the results (guide-baseline.safetensors, 90 kB). A run in that file is not trained
if its base, its flags and, for the guide's, the script are the present ones: scores can be measured again in minutes.
Our words are of the version told there; with --anew pseudoword a later version is held to the guide's script.

The guide's settings are scaled to this base in one number: 5e-3 is to its rows (0.19 an element) what 5e-4 is to
those of Stable Diffusion 1.5 (0.014), to a quarter. The results are in benchmarks/results/guide-baseline.json and .png.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept_words import Kept
from processes import carried_out
from tqdm import tqdm

from pseudoword import __version__, disk, generate, toybox
from pseudoword.concept import Concept
from pseudoword.evaluate import plane, statistics
from pseudoword.evaluate.answer_key import AnswerKey
from pseudoword.evaluate.examine import Examiner, plain
from pseudoword.evaluate.machine import machine
from pseudoword.recipe import BaseModel
from pseudoword.toybox import oracle, suite
from pseudoword.toybox.suite import Subject

OURS = Path(__file__).parent.parent / "examples" / "textual_inversion" / "textual_inversion.py"
WITHOUT_TORCHVISION = Path(__file__).with_name("without_torchvision.py")
ARMS = ("guide", "pseudoword")
TOKEN = "<word>"
ENCODER = "clip_l"
MEASURES = ("fidelity", "editability")
CONCEPTS = ("candy-heart", "cottage", "toadstool", "mosaic")
"""Two that the world has words for, one that it has none for, and a style; all of the half that results are told of."""
SAVED_EVERY = 250
EVALUATED = (250, 500, 1000, 2000, 3000)
NOISES = 8
"""Pictures for each prompt."""


@dataclass(frozen=True)
class Trained:
    """A run of one of the two, in a folder."""

    arm: str
    subject: Subject
    seed: int
    folder: Path

    @property
    def outcome(self) -> Path:
        """Where it says that it is done, and how long it took."""
        return self.folder / "outcome.json"

    @property
    def key(self) -> str:
        """What it is called among the words that are kept."""
        return f"{self.arm}/{self.subject.name}/{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--script", type=Path, required=True, help="the guide's textual_inversion.py")
    parser.add_argument("--work", type=Path, default=Path("guide-baseline"), help="folder for the runs, to go on from")
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS, choices=tuple(suite.NAMED))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=EVALUATED[-1])
    parser.add_argument("--evaluated", type=int, nargs="+", default=EVALUATED, help="steps whose words are scored")
    parser.add_argument("--save-steps", type=int, default=SAVED_EVERY)
    parser.add_argument("--noises", type=int, default=NOISES, help="pictures for each prompt")
    parser.add_argument("--batch", type=int, nargs=2, default=(1, 4), help="pictures at once, and how often for a step")
    parser.add_argument("--anew", nargs="+", default=(), choices=ARMS, help="take none of these from the kept words")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side, a core each")
    parser.add_argument("--output", type=Path, help="where to keep results: this with .json, .png …")
    args = parser.parse_args()
    if not args.script.is_file():
        parser.error(f"there is no script {str(args.script)!r}")
    if any(step % args.save_steps or step > args.steps for step in args.evaluated):
        parser.error(f"words are left at multiples of {args.save_steps} up to {args.steps}; --evaluated has others")
    runs = [
        Trained(arm, suite.NAMED[concept], seed, args.work / f"{arm}-{concept}-{seed}")
        for seed in args.seeds
        for concept in args.concepts
        for arm in ARMS
    ]
    kept = Kept((args.output or args.work / "words").with_suffix(".safetensors"))
    train(runs, args, kept)
    report(args, runs, kept, scored(runs, args, kept))


# Training


def train(runs: Sequence[Trained], args: argparse.Namespace, kept: Kept) -> None:
    """Train what is not yet trained, several side by side."""
    base = written_base(args.work / "base")
    for run in runs:
        suite.write(run.subject, args.work / "pictures" / run.subject.name)
    left = [run for run in runs if run.arm in args.anew or not kept.has(run.key, args.evaluated, means(run, args))]
    one = partial(train_one, args=args, base=base, kept=kept)
    with ThreadPoolExecutor(args.jobs) as pool:
        for _ in tqdm(pool.map(one, left), total=len(left), desc="runs"):
            pass


def train_one(run: Trained, args: argparse.Namespace, base: Path, kept: Kept) -> None:
    """Train one run from the beginning, unless its folder is whole, and keep its words; an error names its log."""
    outcome = json.loads(run.outcome.read_text()) if run.outcome.exists() else {}
    wanted, told = means(run, args), outcome.get("made_by", {})
    if any(told.get(name) != value for name, value in wanted.items()):
        outcome = {**carry_out(run, args, base), "made_by": {**wanted, **circumstances(args)}}
        disk.write(run.outcome, json.dumps(outcome, indent=1))
    kept.add(run.key, {step: word_file(run, step) for step in args.evaluated}, outcome)


def means(run: Trained, args: argparse.Namespace) -> dict[str, Any]:
    """Return what a run's words depend on besides its concept and seed."""
    script = hashlib.sha256(args.script.read_bytes()).hexdigest() if run.arm == "guide" else "ours"
    parts = sorted(toybox.BASES["toybox"].rglob("*.safetensors"))  # as shipped; a copy's files differ each time
    weights = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    return {"script": script, "flags": settings(run, args), "base": weights[:16]}


def circumstances(args: argparse.Namespace) -> dict[str, Any]:
    """Return what else is told of a run: where, when and with what it was trained."""
    told = machine()
    return {"pseudoword": __version__, **told, "date": str(told["date"])[:10], "side_by_side": args.jobs}


def settings(run: Trained, args: argparse.Namespace) -> list[str]:
    """Return the flags that are the same for all runs."""
    own = ("--pretrained", "--train_data", "--learnable", "--initializer", "--seed", "--output")
    return [flag for flag in flags(run, args, Path("BASE")) if not flag.startswith(own)]


def carry_out(run: Trained, args: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Start a run's script in a process of its own, and return how long it took."""
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    script = [str(WITHOUT_TORCHVISION), str(args.script)] if run.arm == "guide" else [str(OURS)]
    command = [sys.executable, *script, *flags(run, args, base)]
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    environment = {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    took = carried_out(command, run.folder / "training.log", environment)
    saved = {
        step: word_file(run, step).stat().st_mtime for step in range(args.save_steps, args.steps + 1, args.save_steps)
    }
    return {
        "seconds": {step: round(at - took["began"], 2) for step, at in saved.items()},
        "cpu_seconds": took["cpu_seconds"],
        "peak_mib": took["peak_mib"],
    }


def flags(run: Trained, args: argparse.Namespace, base: Path) -> list[str]:
    """Return the guide's command line of a run, for either script."""
    return [
        f"--pretrained_model_name_or_path={base}",
        f"--train_data_dir={args.work / 'pictures' / run.subject.name}",
        f"--learnable_property={'style' if run.subject.kind == 'style' else 'object'}",
        f"--placeholder_token={TOKEN}",
        f"--initializer_token={run.subject.initializer}",
        "--resolution=64",
        f"--train_batch_size={args.batch[0]}",
        f"--gradient_accumulation_steps={args.batch[1]}",
        f"--max_train_steps={args.steps}",
        "--learning_rate=5.0e-03",
        "--scale_lr",
        "--lr_scheduler=constant",
        "--lr_warmup_steps=0",
        f"--save_steps={args.save_steps}",
        f"--checkpointing_steps={args.steps}",
        f"--seed={run.seed}",
        f"--output_dir={run.folder}",
    ]


def word_file(run: Trained, step: int) -> Path:
    """Return where a run has left its word after a step."""
    return run.folder / f"learned_embeds-steps-{step}.safetensors"


def written_base(folder: Path) -> Path:
    """Write the toybox's base in fp32, because the guide's script trains in the precision of the files."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    if (folder / "model_index.json").exists():
        return folder
    work = folder.with_name("base.partial")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(toybox.BASES["toybox"], work)
    for part, kind in (("text_encoder", CLIPTextModel), ("vae", AutoencoderKL), ("unet", UNet2DConditionModel)):
        shutil.rmtree(work / part)
        kind.from_pretrained(toybox.BASES["toybox"] / part).to(torch.float32).save_pretrained(work / part)
    work.rename(folder)
    return folder


# Scoring


def scored(runs: Sequence[Trained], args: argparse.Namespace, kept: Kept) -> list[dict[str, Any]]:
    """Score every word: a line for each run and step, and for what training started from (step 0)."""
    family = generate.load(BaseModel("toybox"))
    sampling = generate.Sampling(seed=1000, steps=25, guidance_scale=4.0)
    examiner = Examiner(family, sampling, args.noises, args.work / "examined")
    judge = oracle.load()
    keys = {run.subject.name: AnswerKey(run.subject, judge) for run in runs}
    found: list[dict[str, Any]] = []
    for name, key in keys.items():
        rows = {e: v.initial_rows(key.subject.initializer, 1)[0] for e, v in family.vocabularies.items()}
        found.append({"arm": "untrained", "concept": name, "seed": None, "step": 0})
        found[-1] |= score(examiner, key, Concept(TOKEN, rows))
    places = [(run, step) for run in runs for step in args.evaluated]
    for run, step in tqdm(places, desc="words"):
        found.append({"arm": run.arm, "concept": run.subject.name, "seed": run.seed, "step": step})
        found[-1] |= score(examiner, keys[run.subject.name], kept.word(run.key, step, TOKEN, ENCODER))
    return found


def score(examiner: Examiner, key: AnswerKey, word: Concept) -> dict[str, Any]:
    """Return a word's scores, a mean over prompts for each noise."""
    done = examiner.examine(word, key, key.questions)
    return {measure: plain(statistics.by_noise(done.scores[measure]).round(4)) for measure in MEASURES}


# Comparing


def report(args: argparse.Namespace, runs: Sequence[Trained], kept: Kept, found: Sequence[dict[str, Any]]) -> None:
    """Print what came of it, and keep it if asked to."""
    compared = [
        comparison(found, measure, step, concepts)
        for measure in MEASURES
        for step in args.evaluated
        for concepts in ([*args.concepts], *([concept] for concept in args.concepts))
    ]

    def outcomes(arm: str) -> list[dict[str, Any]]:
        return [kept.outcomes[run.key] for run in runs if run.arm == arm]

    given = [arg for arg in sys.argv[1:] if arg != str(args.script)]
    results = {
        "what": "the guide's script and ours, same base, pictures, flags and evaluation",
        "command": shlex.join(["python", "benchmarks/guide_baseline.py", *given]),
        "scored": machine(),
        "trained": distinct([one["made_by"] for arm in ARMS for one in outcomes(arm)]),
        "pictures_for_each_prompt": args.noises,
        "seconds_per_step": {arm: rounded(seconds_per_step(outcomes(arm)), 4) for arm in ARMS},
        "peak_mib": {arm: max(one["peak_mib"] for one in outcomes(arm)) for arm in ARMS},
        "compared": compared,
        "within": f"{sum(c['within'] for c in compared)} of {len(compared)}",
        "runs": [
            {"arm": r.arm, "concept": r.subject.name, "seed": r.seed}
            | {name: value for name, value in kept.outcomes[r.key].items() if name != "made_by"}
            for r in runs
        ],
        "scores": found,
    }
    for one in compared:
        concepts = one["concepts"] if len(one["concepts"]) == 1 else "all"
        print(f"{one['measure']:11} {one['step']:5} {concepts}: {said(one)}")
    print(f"within the interval: {results['within']}; seconds a step: {results['seconds_per_step']}")
    if args.output:
        disk.write(args.output.with_suffix(".json"), compact(results))
        disk.write(args.output.with_suffix(".png"), plane.png(drawn(found, args)))


def distinct(values: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each value once, in the order of first appearance."""
    return [value for i, value in enumerate(values) if value not in values[:i]]


def seconds_per_step(outcomes: Sequence[dict[str, Any]]) -> float:
    """Return the median over runs, start-up left out."""
    each = []
    for one in outcomes:
        at = {int(step): seconds for step, seconds in one["seconds"].items()}
        first, last = min(at), max(at)
        each.append((at[last] - at[first]) / (last - first) if last > first else at[last] / last)
    return float(np.median(each))


def comparison(found: Sequence[dict[str, Any]], measure: str, step: int, concepts: Sequence[str]) -> dict[str, Any]:
    """Compare both arms' means over seeds and concepts, with a 95% interval that training seeds leave the difference.

    Variances over seeds are pooled over concepts and arms, whose means are taken out; at one seed there is no interval.
    """
    groups = {
        arm: [[np.mean(one[measure]) for one in found if key(one) == (arm, concept, step)] for concept in concepts]
        for arm in ARMS
    }
    means = {arm: float(np.mean([np.mean(group) for group in own])) for arm, own in groups.items()}
    every = [group for own in groups.values() for group in own]
    freedom = sum(len(group) - 1 for group in every)
    half = float("nan")
    if freedom:
        variance = sum(float(np.var(group)) * len(group) for group in every) / freedom
        error = math.sqrt(variance * sum(1 / len(group) for group in every)) / len(concepts)
        half = statistics.student_t(freedom) * error
    difference = means["pseudoword"] - means["guide"]
    return {
        "measure": measure,
        "step": step,
        "concepts": list(concepts),
        **{arm: rounded(value, 4) for arm, value in means.items()},
        "difference": rounded(difference, 4),
        "interval_half": rounded(half, 4),
        "within": bool(abs(difference) <= half + 1e-12),
    }


def key(one: dict[str, Any]) -> tuple[str, str, int]:
    """Return what a line of scores is of, but for the seed."""
    return one["arm"], one["concept"], one["step"]


def said(one: dict[str, Any]) -> str:
    """Return a comparison for people."""
    inside = "within" if one["within"] else "OUTSIDE"
    half = one["interval_half"]
    return f"guide {one['guide']:.3f}, ours {one['pseudoword']:.3f}, difference {one['difference']:+.3f}" + (
        f" ({inside} ± {half:.3f})" if half is not None else ""
    )


def rounded(value: float, digits: int) -> float | None:
    """Return a number for JSON."""
    return None if math.isnan(value) else round(value, digits)


def drawn(found: Sequence[dict[str, Any]], args: argparse.Namespace) -> Any:
    """Draw both arms' way over the plane, means over concepts with 95% intervals over seeds."""
    places = [place(found, "untrained", 0, args.concepts)]
    for arm in ARMS:
        places += [place(found, arm, step, args.concepts) for step in args.evaluated]
    return plane.draw(places, *MEASURES, steps=True)


def place(found: Sequence[dict[str, Any]], arm: str, step: int, concepts: Sequence[str]) -> plane.Place:
    """Return an arm's point at a step: for each seed the mean over concepts, then mean and interval over seeds."""
    lines = [one for one in found if one["arm"] == arm and one["step"] == step and one["concept"] in concepts]
    spreads = []
    for measure in MEASURES:
        seeds = [
            np.mean([one[measure] for one in lines if one["seed"] == seed], axis=0)
            for seed in dict.fromkeys(one["seed"] for one in lines)
        ]
        spreads.append(statistics.spread([values[None, :] for values in seeds]))
    return plane.Place(str(step), arm, *(s.mean for s in spreads), *(s.half for s in spreads))


def compact(results: dict[str, Any]) -> str:
    """Return JSON with a line for each entry of a list, which a person can read and a diff can show."""
    parts = []
    for name, value in results.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines = ",\n  ".join(json.dumps(one) for one in value)
            parts.append(f" {json.dumps(name)}: [\n  {lines}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
