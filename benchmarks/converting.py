"""How fast a folder of words is converted, beside writing the same bytes to the same disk, in turns.

    python benchmarks/converting.py

Words for Stable Diffusion 1.5 and XL of 1 to 8 vectors, as tools write them. The other arm reads every source and
writes what the conversion wrote, each file under a temporary name, synced and renamed: what the disk takes alone.
Results: benchmarks/results/converting.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pseudoword import Concept, disk, formats
from pseudoword.converting import convert, sources
from pseudoword.evaluate.machine import machine

KINDS = [
    ("diffusers", ".safetensors", {"clip_l": 768}),
    ("webui", ".pt", {"clip_l": 768}),
    ("kohya", ".safetensors", {"clip_l": 768, "clip_g": 1280}),
    ("onetrainer", ".safetensors", {"clip_l": 768}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--to", default="comfyui")
    parser.add_argument("--work", type=Path, help="a folder on the disk to measure; a temporary one if not said")
    parser.add_argument("--output", type=Path, help="where to keep results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        results = {**machine(), **measured(Path(work), args.files, args.rounds, args.to)}
    print(json.dumps(results, indent=1))
    if args.output:
        disk.write(args.output, json.dumps(results, indent=1) + "\n")


def measured(work: Path, count: int, rounds: int, target: str) -> dict[str, object]:
    """Return files a second of both arms, and pair by pair the share of the disk's pace."""
    write_words(work / "words", count)
    files = sources([work / "words"])

    def converted(folder: Path) -> None:
        failed = [one.error for one in convert(files, [target], folder) if one.error]
        assert failed == []

    converted(work / "first")
    contents = {path.name: path.read_bytes() for path in (work / "first" / target).iterdir()}

    def copied(folder: Path) -> None:
        folder.mkdir()
        for file, (name, content) in zip(files, contents.items(), strict=True):
            file.read_bytes()
            disk.write(folder / name, content)

    seconds = {"convert": [], "disk": []}
    for turn in range(rounds):
        for name, arm in (("convert", converted), ("disk", copied))[:: 1 if turn % 2 else -1]:
            seconds[name].append(timed(arm, work / f"{name}-{turn}"))
    pairs = sorted(d / c for c, d in zip(seconds["convert"], seconds["disk"], strict=True))
    return {
        "files": count,
        "target": target,
        "rounds": rounds,
        **{f"{name}_files_per_second": round(count / statistics.median(own), 1) for name, own in seconds.items()},
        "share_of_the_disks_pace": {"median": round(statistics.median(pairs), 3), "all": [round(p, 3) for p in pairs]},
    }


def timed(arm: Callable[[Path], None], folder: Path) -> float:
    start = time.perf_counter()
    arm(folder)
    return time.perf_counter() - start


def write_words(folder: Path, count: int) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(count):
        format_, suffix, widths = KINDS[i % len(KINDS)]
        rows = {encoder: draw.standard_normal((1 + i % 8, width)) for encoder, width in widths.items()}
        concept = Concept(f"<word-{i}>", rows, base="somebody/model", steps=500)
        (folder / f"{i:05}{suffix}").write_bytes(formats.to_bytes(concept, f"word{suffix}", format_))


if __name__ == "__main__":
    main()
