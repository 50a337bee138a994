"""A step of a base at its real size on the JAX engine: what loading, compiling and computing take, and how much memory.

    python benchmarks/jax_real_size.py --geometry sd15

Weights are random, which time and memory do not depend on. Results: benchmarks/results/jax-GEOMETRY.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from geometries import RESOLUTIONS, written

from pseudoword import disk, families, methods, schedules
from pseudoword.batch import Batch, Draw
from pseudoword.engines.jax_engine import JaxEngine
from pseudoword.evaluate.machine import machine
from pseudoword.families.locate import locate
from pseudoword.methods.classic import ClassicOptions
from pseudoword.recipe import BaseModel, EngineRecipe

TOKEN = "<word>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--geometry", choices=RESOLUTIONS, default="sd15")
    parser.add_argument("--pictures", type=int, default=1, help="at once")
    parser.add_argument("--steps", type=int, default=2, help="that are timed once the first has been")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--work", type=Path, default=Path("jax-real-size"), help="folder for the base")
    parser.add_argument("--output", type=Path, help="where to keep results")
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())  # nothing that was compiled before
    with multiprocessing.get_context("spawn").Pool(1) as other:  # whose memory is not counted
        folder = other.apply(written, (args.geometry, args.work / args.geometry))
    base = locate(BaseModel(str(folder)), {})
    results = {"command": command(args), **machine(), **measured(base, args)}
    print(json.dumps(results, indent=1))
    if args.output:
        disk.write(args.output, json.dumps(results, indent=1) + "\n")


def command(args: argparse.Namespace) -> str:
    """Return how to measure the same again."""
    return (
        f"python benchmarks/jax_real_size.py --geometry {args.geometry} --pictures {args.pictures} "
        f"--steps {args.steps} --mixed-precision {args.mixed_precision}"
    )


def measured(base: BaseModel, args: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of each part, and the most memory that the process has held by its end."""
    told: dict[str, Any] = {}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        made = action()
        told[f"{name}_seconds"] = round(time.perf_counter() - began, 2)
        told[f"{name}_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return made

    engine = JaxEngine(EngineRecipe(engine="jax", mixed_precision=args.mixed_precision))
    family = timed("load", lambda: families.part(base.family, "jax").FAMILY.load(base))
    engine.prepare(family)
    side = RESOLUTIONS[args.geometry]
    pixels = np.zeros((1, 3, side, side), np.float32)
    timed("first_picture_encoded", lambda: family.encode_images(pixels))
    timed("picture_encoded", lambda: family.encode_images(pixels))
    family.leave_vae()
    rows = {}
    for encoder, words in family.vocabularies.items():
        words.lend(TOKEN, 1)
        rows[encoder] = words.table[:1].astype(np.float32)
    engine.start(family, methods.build(ClassicOptions()), {TOKEN: rows})
    told["devices"] = engine.devices
    shape = (family.latent_channels, side // family.latent_factor, side // family.latent_factor)
    told["kept_for_gradient_counted_mib"] = engine.kept_for_gradient(base, shape, args.pictures) // 2**20
    told["loss"] = []
    for step in range(1 + args.steps):
        given = pair(family, shape, step, args)
        name = "step" if step else "first_step"
        told["loss"].append(timed(name, lambda given=given: engine.step([given], 1e-3))[TOKEN])
    return told


def pair(family: Any, shape: schedules.Shape, step: int, args: argparse.Namespace) -> tuple[Batch, Draw]:
    """Return made-up pictures with the word in their prompts, and a step's draws."""
    count, side = args.pictures, RESOLUTIONS[args.geometry]
    draw = schedules.draw(
        0,
        TOKEN,
        step,
        range(count),
        count,
        num_pictures=1,
        flip_p=0.0,
        num_timesteps=family.num_timesteps,
        latent_shape=shape,
    )
    ids = {e: np.stack([words.encode(f"a photo of {TOKEN}").ids] * count) for e, words in family.vocabularies.items()}
    latents = np.random.default_rng(step).standard_normal((count, *shape), np.float32)
    placement = np.asarray([(side, side, 0, 0, side, side)] * count)
    return Batch(ids, latents, np.full_like(latents, 0.1), np.zeros(count, np.int64), placement), draw


if __name__ == "__main__":
    main()
