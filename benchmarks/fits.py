"""What a step needs in memory at real sizes, counted on layers without weights: which base fits which device.

    python benchmarks/fits.py

One picture at a time, the options of `--memory`; the device's working space and libraries come on top. Results:
benchmarks/results/fits.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from geometries import RESOLUTIONS, configured

from pseudoword import disk, families
from pseudoword.evaluate.machine import machine
from pseudoword.recipe import BaseModel, EngineRecipe

BASES = {"sd15": "sd", "sdxl": "sdxl"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--geometries", nargs="+", choices=(*BASES, "sd15-small", "sdxl-small"), default=list(BASES))
    parser.add_argument("--work", type=Path, default=Path("fits"), help="folder for configurations")
    parser.add_argument("--output", type=Path, help="where to keep results")
    args = parser.parse_args()
    results: dict[str, Any] = {"command": "python benchmarks/fits.py", **machine()}
    for geometry in args.geometries:
        base = BaseModel(str(configured(geometry, args.work / geometry)))
        for mode in ("auto", "low", "lowest"):
            results[f"{geometry} {mode}"] = told = needed(geometry, base, mode)
            print(f"{geometry} {mode}: " + ", ".join(f"{name} {mib} MiB" for name, mib in told.items()))
    if args.output:
        disk.write(args.output, json.dumps(results, indent=1) + "\n")


def needed(geometry: str, base: BaseModel, mode: Any) -> dict[str, int]:
    """Return weights and what a step keeps, in MiB."""
    costs = families.part(geometry.partition("-")[0].replace("sd15", "sd"), "costs")
    options, side = EngineRecipe(memory=mode), RESOLUTIONS[geometry]
    half = options.precision != "no"
    weights = costs.weights(base, half=half, eight_bits=mode == "lowest")
    held = sum(size for name, size in weights.items() if name != "vae")
    kept = costs.kept_for_gradient(base, (side, side), 1, half=half, recomputed=options.recomputes)
    return {name: size // 2**20 for name, size in (("weights", held), ("step", kept), ("together", held + kept))}


if __name__ == "__main__":
    main()
