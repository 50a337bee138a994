"""Train the toybox's oracle on pictures drawn as it goes, for `pseudoword toybox train-oracle`."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import UInt8
from torch import Tensor

from pseudoword.progress import Progress
from pseudoword.toybox import world
from pseudoword.toybox.cache import HELD_OUT
from pseudoword.toybox.oracle import ATTRIBUTES, Judge, Oracle, agreement, save, truth
from pseudoword.toybox.render import render
from pseudoword.toybox.train_vae import round_trip, to_tensor
from pseudoword.toybox.trainer import Rate, Trainer, device, draws
from pseudoword.toybox.world import Drawing

log = logging.getLogger(__name__)

SEEDS = 1 << 41
"""Seeds of the oracle's own pictures start here: it has seen none that the base was trained on."""
TEMPERATURE = 0.1
"""Of the similarities between two pictures of one object, against all other pictures of a batch."""


@dataclass(frozen=True)
class OracleOptions:
    """How the oracle is trained."""

    folder: Path = Path(".training")
    """Where the autoencoder (`vae/`), checkpoints and the result (`oracle.safetensors`) are kept."""
    seed: int = 0
    """What batches and first weights depend on."""
    steps: int = 6000
    """Length of the run."""
    batch_size: int = 32
    """Objects per step; each is drawn twice, in other surroundings."""
    learning_rate: float = 3e-3
    """Peak of the rate; it falls to zero over the second half."""


def oracle_drawing(rng: np.random.Generator) -> Drawing:
    """Return any drawing at all: the oracle is to know also what the base is never shown, or has no word for."""
    drawing = world.any_drawing(rng)
    if drawing.relation or rng.random() < 0.5:
        return drawing
    thing = replace(drawing.things[0], shape=world.pick(rng, ATTRIBUTES["shape"]))
    style = world.pick(rng, ATTRIBUTES["style"])
    if rng.random() < 0.15:
        thing = replace(thing, pattern=world.pick(rng, world.NAMELESS_PATTERNS))
    return replace(drawing, things=(thing,), style=style, light=drawing.light if style == "photo" else "even")


def twin(drawing: Drawing, rng: np.random.Generator) -> Drawing:
    """Return the same objects in other surroundings: another background, style, light and size."""
    other = oracle_drawing(rng)
    taken = {c for t in drawing.things for c in (t.colour, t.second)}
    background = other.background if other.background not in taken else drawing.background
    size = other.things[0].size
    things = tuple(replace(t, size=size) for t in drawing.things)
    return replace(drawing, things=things, background=background, style=other.style, light=other.light)


def worn(pictures: Tensor, vae: Any, rng: np.random.Generator) -> Tensor:
    """Blur, speckle and tint pictures, and send an eighth through the autoencoder, some with noise on the latents."""
    count = max(len(pictures) // 8, 1)
    chosen = torch.from_numpy(rng.permutation(len(pictures))[:count])
    with torch.no_grad():
        latents = vae.encode(pictures[chosen]).latent_dist.mean
        spread = torch.from_numpy(rng.random((count, 1, 1, 1), dtype=np.float32) ** 2 * 0.35) * latents.std()
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
        decoded = vae.decode(latents + spread.to(latents.device) * noise.to(latents.device)).sample
    changed = pictures.clone()
    changed[chosen] = decoded
    if rng.random() < 0.3:
        small = int(rng.integers(28, 56))
        changed = F.interpolate(F.interpolate(changed, size=small, mode="area"), size=64, mode="bilinear")
    gain = torch.from_numpy(rng.uniform(0.92, 1.08, (len(pictures), 3, 1, 1)).astype(np.float32)).to(changed.device)
    speckle = torch.from_numpy(rng.standard_normal(changed.shape, dtype=np.float32)).to(changed.device)
    return (changed * gain + speckle * float(rng.random() ** 2 * 0.15)).clamp(-1, 1)


def attribute_loss(logits: dict[str, Tensor], drawings: list[Drawing]) -> Tensor:
    """Return the mean cross entropy of the attributes, each over the pictures that have it."""
    known = [truth(drawing) for drawing in drawings]
    losses: list[Tensor] = []
    for name, values in ATTRIBUTES.items():
        having = [i for i, attributes in enumerate(known) if name in attributes]
        if having:
            wanted = torch.tensor([values.index(known[i][name]) for i in having], device=logits[name].device)
            losses.append(F.cross_entropy(logits[name][having], wanted, label_smoothing=0.02))
    return torch.stack(losses).mean()


def similarity_loss(embeddings: Tensor) -> Tensor:
    """Return the loss of telling each picture's twin from all others (InfoNCE); twins are half a batch apart."""
    size = len(embeddings) // 2
    similar = embeddings @ embeddings.T / TEMPERATURE - 1e4 * torch.eye(2 * size, device=embeddings.device)
    twins = torch.arange(2 * size, device=embeddings.device).roll(size)
    return F.cross_entropy(similar, twins)


def train_oracle(options: OracleOptions) -> Iterator[Progress]:
    """Train the oracle and write it to `oracle.safetensors` in the folder."""
    where = device()
    loaded: Any = AutoencoderKL.from_pretrained(options.folder / "vae")
    vae = loaded.to(where).eval()
    torch.manual_seed(options.seed)
    oracle = Oracle().to(where)
    rate = Rate(options.learning_rate, 100, options.steps, options.steps // 2)
    trainer = Trainer({"oracle": oracle}, rate)
    checkpoint = options.folder / "oracle.checkpoint"
    trainer.resume(checkpoint)
    # The next batch is drawn by another process while this one is learned from.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as drawer:
        coming = drawer.submit(_drawn, options, trainer.step)
        while trainer.step < options.steps:
            drawings, pictures = coming.result()
            coming = drawer.submit(_drawn, options, trainer.step + 1)
            rng = draws(options.seed, trainer.step, 3)
            logits, embeddings = oracle(worn(to_tensor(pictures, where), vae, rng))
            loss = attribute_loss(logits, drawings) + 0.1 * similarity_loss(embeddings)
            trainer.update(loss)
            yield trainer.progress(loss, trainer.save_sometimes(checkpoint))
    with trainer.averaged():
        save(oracle, options.folder / "oracle.safetensors")
        for name, shares in examine(oracle, vae, where).items():
            log.info("%s: %s", name, ", ".join(f"{attribute} {share:.1%}" for attribute, share in shares.items()))


def _drawn(options: OracleOptions, step: int) -> tuple[list[Drawing], UInt8[np.ndarray, "batch 64 64 3"]]:
    """Return the drawings of a step, each with its twin half a batch on, and their pictures."""
    rng = draws(options.seed, step, 2)
    first = [oracle_drawing(rng) for _ in range(options.batch_size)]
    drawings = [*first, *(twin(drawing, rng) for drawing in first)]
    start = SEEDS + step * len(drawings)
    return drawings, np.stack([render(drawing, start + i) for i, drawing in enumerate(drawings)])


def examine(oracle: Oracle, vae: Any, where: torch.device, count: int = 1000) -> dict[str, dict[str, float]]:
    """Return the share of attributes read right, on held-out renders and on their round trips."""
    seeds = range(HELD_OUT, HELD_OUT + count)
    drawings = [world.held_out_drawing(seed) for seed in seeds]
    pictures = np.stack([render(drawing, seed) for drawing, seed in zip(drawings, seeds, strict=True)])
    with torch.no_grad():
        decoded = round_trip(vae, to_tensor(pictures, where)).clamp(-1, 1)
    again = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    judge = Judge(oracle.cpu())
    return {
        "renders": agreement(judge.read(pictures), drawings),
        "round trips": agreement(judge.read(again), drawings),
    }
