"""Rows only, beside a loop that optimises the whole embedding table, at Stable Diffusion 1.5's sizes.

    python benchmarks/whole_table.py --resolution 256 --steps 5 --rounds 2

Both arms train the same placeholder on the same random latents with the same modules (random weights: text encoder
of 49,408 x 768, the 860-million UNet), each in a process of its own, in turns. The other loop is what the guide's
script does after its forward pass: AdamW over the whole table, then every other row put back. `--output` keeps the
results; those in benchmarks/results/whole_table.json are of the command above.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from pseudoword import methods, objectives, schedules
from pseudoword.batch import Batch, Draw
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.evaluate.machine import processor
from pseudoword.families.clip_miniature import clip_tokenizer
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.methods.classic import ClassicOptions
from pseudoword.recipe import BaseModel, EngineRecipe
from pseudoword.run import Run

TOKEN = "<cat-toy>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a process, after one that is not timed")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each arm, in turns")
    parser.add_argument("--output", type=Path, help="file for the results (JSON)")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(measured(args.arm, args.resolution, args.steps)))
        return
    rounds: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for _ in range(args.rounds):
        for arm in ARMS:
            own = ["--arm", arm, "--resolution", str(args.resolution), "--steps", str(args.steps)]
            done = subprocess.run([sys.executable, __file__, *own], check=True, stdout=subprocess.PIPE, text=True)
            rounds[arm].append(json.loads(done.stdout.splitlines()[-1]))
            print(arm, rounds[arm][-1], flush=True)
    report(args, rounds)


def report(args: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]]) -> None:
    """Print what was measured and where, and keep it if asked to."""
    seconds = {arm: float(np.median([s for one in own for s in one["seconds"]])) for arm, own in rounds.items()}
    peak = {arm: max(one["peak_mib"] for one in own) for arm, own in rounds.items()}
    results = {
        "what": "a step at SD 1.5's sizes: rows only, beside AdamW over the whole table",
        "command": f"python benchmarks/whole_table.py --resolution {args.resolution} --steps {args.steps} "
        f"--rounds {args.rounds}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")},
        "seconds_per_step": {arm: round(value, 3) for arm, value in seconds.items()},
        "table_over_rows_seconds": round(seconds["table"] / seconds["rows"], 3),
        "update_seconds": {arm: round(min(one["update"] for one in own), 5) for arm, own in rounds.items()},
        "peak_mib": peak,
        "peak_mib_saved": peak["table"] - peak["rows"],
        "checkpoint_bytes": {arm: own[0]["checkpoint_bytes"] for arm, own in rounds.items()},
    }
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def machine() -> str:
    """Return processor, cores and memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    return f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"


def measured(arm: str, resolution: int, steps: int) -> dict[str, Any]:
    """Train in this process and return seconds of each step, of the update alone, peak memory and checkpoint size."""
    torch.manual_seed(0)
    return ARMS[arm](base_model(), resolution // 8, steps)


def base_model() -> StableDiffusion:
    """Return random weights in SD 1.5's shapes (the VAE small: no step uses it)."""
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
    )
    with torch.device("meta"):
        text_encoder: Any = CLIPTextModel(config)
        unet: Any = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),  # pyright: ignore[reportArgumentType]
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    for module in (text_encoder, unet):
        module.to_empty(device="cpu")
        for parameter in module.parameters():
            parameter.data.uniform_(-0.02, 0.02)
        for name, buffer in module.named_buffers():
            assert name.endswith("position_ids"), name
            buffer.copy_(torch.arange(buffer.shape[-1])[None])
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    vae = AutoencoderKL(block_out_channels=(4, 4, 4, 4), norm_num_groups=1)  # pyright: ignore[reportArgumentType]
    return StableDiffusion(BaseModel("random"), [tokenizer], [text_encoder], vae, unet, scheduler)


def batch_of(family: StableDiffusion, step: int, side: int) -> tuple[Batch, Draw]:
    """Return one random picture with the word in its caption."""
    shape = (4, side, side)
    draw = schedules.draw(
        0, TOKEN, step, [0], 1, num_pictures=1, flip_p=0.0, num_timesteps=family.num_timesteps, latent_shape=shape
    )
    ids = family.vocabularies["clip_l"].encode(f"a photo of a {TOKEN}").ids[None]
    return Batch(
        {"clip_l": ids}, draw.noise, np.ones_like(draw.noise), np.zeros(1, dtype=np.int64), np.zeros((1, 6))
    ), draw


def rows_only(family: StableDiffusion, side: int, steps: int) -> dict[str, Any]:
    """Our own engine."""
    family.vocabularies["clip_l"].lend(TOKEN, 1)
    engine = TorchEngine(EngineRecipe())
    engine.prepare(family)
    row = family.vocabularies["clip_l"].table[:1]
    engine.start(family, methods.build(ClassicOptions()), {TOKEN: {"clip_l": row}})
    gradients, updates = engine._gradients, []

    def timed(micro_batches: Any) -> Any:
        found = gradients(micro_batches)
        updates.append(time.perf_counter())
        return found

    engine._gradients = timed  # the rest of a step is the update
    seconds = []
    for step in range(steps + 1):
        began = time.perf_counter()
        engine.step([batch_of(family, step, side)], 5e-4)
        updates[-1] = time.perf_counter() - updates[-1]
        seconds.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        kept = Run(folder).keep(steps, engine.snapshot(), {"recipe": {}, "pictures": [], "batch": 1})
        size = sum(file.stat().st_size for file in kept.iterdir())
    return figures(seconds, updates, size)


def whole_table(family: StableDiffusion, side: int, steps: int) -> dict[str, Any]:
    """AdamW over the table, every other row put back after each step."""
    family.vocabularies["clip_l"].lend(TOKEN, 1)  # its id is the new row's
    encoder = family.text_encoder
    encoder.resize_token_embeddings(49409, mean_resizing=False)
    table = encoder.get_input_embeddings().weight.requires_grad_(True)
    optimizer = torch.optim.AdamW([table], lr=5e-4, weight_decay=1e-2)
    original = table.detach().clone()
    others = torch.arange(49409) != 49408
    seconds, updates = [], []
    for step in range(steps + 1):
        began = time.perf_counter()
        batch, draw = batch_of(family, step, side)
        noise, timestep = torch.from_numpy(draw.noise), torch.from_numpy(draw.timestep)
        posterior = torch.from_numpy(draw.posterior)
        latents = family.latents(torch.from_numpy(batch.mean), torch.from_numpy(batch.std), posterior)
        alpha, sigma = family.noise_levels(timestep)
        condition = encoder(torch.from_numpy(batch.ids["clip_l"])).last_hidden_state
        prediction = family.denoise(objectives.noised(latents, noise, alpha, sigma), timestep, condition)
        (prediction - noise).square().mean().backward()
        before = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            table[others] = original[others]
        updates.append(time.perf_counter() - before)
        seconds.append(time.perf_counter() - began)
    state = [*encoder.state_dict().values(), *(v for v in optimizer.state[table].values() if v.dim())]
    return figures(seconds, updates, sum(value.numel() * value.element_size() for value in state))


def figures(seconds: list[float], updates: list[float], size: int) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "seconds": [round(value, 4) for value in seconds[1:]],
        "update": float(np.median(updates[1:])),
        "peak_mib": peak,
        "checkpoint_bytes": size,
    }


ARMS = {"rows": rows_only, "table": whole_table}

if __name__ == "__main__":
    main()
