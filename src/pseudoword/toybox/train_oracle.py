"""Train the toybox's oracle on pictures drawn ahead, for `pseudoword toybox train-oracle`."""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from pseudoword.families.weights import digest
from pseudoword.progress import Progress
from pseudoword.toybox import world
from pseudoword.toybox.cache import HELD_OUT, drawn_ahead, held_out_pictures, keep, training_pictures
from pseudoword.toybox.cache import load as load_array
from pseudoword.toybox.oracle import ATTRIBUTES, Judge, Oracle, agreement, save, truth
from pseudoword.toybox.render import SIDE, render
from pseudoword.toybox.train_vae import read_vae, round_trip, to_pixels, to_tensor
from pseudoword.toybox.trainer import Rate, Trainer, check, device, draws
from pseudoword.toybox.world import Drawing

log = logging.getLogger(__name__)

SEEDS = 1 << 41
"""Seeds of the oracle's own pictures, the pairs, start here; it learns from those of the base's training besides."""
TEMPERATURE = 0.1
"""Of the similarities between two pictures of one object, against all other pictures of a batch."""


@dataclass(frozen=True)
class OracleOptions:
    """How the oracle is trained."""

    folder: Path = Path(".training")
    """Where pictures, the autoencoder (`vae/`), checkpoints and the result (`oracle.safetensors`) are kept."""
    pictures: int = 60_000
    """Pictures of the base's training, drawn ahead."""
    pairs: int = 16_000
    """Pairs of pictures of one object in two surroundings, drawn ahead; every other goes through the autoencoder."""
    seed: int = 0
    """What batches and first weights depend on."""
    steps: int = 7000
    """Length of the run."""
    batch_size: int = 16
    """Pictures of the base's training per step, and half as many pairs again."""
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


def pair(index: int) -> tuple[Drawing, Drawing]:
    """Return a drawing and its twin, as they stand for an index."""
    rng = world.generator(SEEDS + index, 0)
    first = oracle_drawing(rng)
    return first, twin(first, rng)


def paired_picture(index: int) -> UInt8[np.ndarray, "64 64 3"]:
    """Draw one of a pair: of even indices the first, of odd ones its twin."""
    return render(pair(index // 2)[index % 2], SEEDS + index)


def paired_pictures(options: OracleOptions, vae: Any, where: torch.device) -> UInt8[np.ndarray, "pictures 64 64 3"]:
    """Return the pictures of all pairs; every other pair has been through the autoencoder."""
    path = options.folder / f"pairs-worn-{options.pairs}-{options.seed}-{digest({'vae': vae})}.npy"
    if not path.exists():
        drawn = drawn_ahead(options.folder / f"pairs-{options.pairs}.npy", 2 * options.pairs, paired_picture)
        through = np.array([i for i in range(2 * options.pairs) if i // 2 % 2 == 0])
        made = np.array(drawn)
        for part in np.array_split(through, -(-len(through) // 64)):
            rng = draws(options.seed, int(part[0]), 3)
            made[part] = to_pixels(worn(to_tensor(drawn[part], where), vae, rng))
        keep(path, made)
    return load_array(path, 2 * options.pairs)


@torch.no_grad()
def worn(pictures: Tensor, vae: Any, rng: np.random.Generator) -> Tensor:
    """Send pictures through the autoencoder, with more or less noise on the latents."""
    latents = vae.encode(pictures).latent_dist.mean
    spread = torch.from_numpy(rng.random((len(pictures), 1, 1, 1), dtype=np.float32) ** 2 * 0.35) * latents.std().cpu()
    noise = spread * torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    return vae.decode(latents + noise.to(latents.device)).sample


def roughened(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, speckle and tint pictures."""
    if rng.random() < 0.3:
        small = int(rng.integers(28, 56))
        pictures = F.interpolate(F.interpolate(pictures, size=small, mode="area"), size=SIDE, mode="bilinear")
    gain = torch.from_numpy(rng.uniform(0.92, 1.08, (len(pictures), 3, 1, 1)).astype(np.float32))
    speckle = torch.from_numpy(rng.standard_normal(pictures.shape, dtype=np.float32)) * float(rng.random() ** 2 * 0.15)
    return (pictures * gain.to(pictures.device) + speckle.to(pictures.device)).clamp(-1, 1)


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


def train_oracle(options: OracleOptions) -> Generator[Progress]:
    """Train the oracle and write it to `oracle.safetensors` in the folder."""
    check(options)
    where = device()
    vae = read_vae(options.folder, where).eval()
    torch.manual_seed(options.seed)
    oracle = Oracle().to(where)
    plain, paired = training_pictures(options.folder, options.pictures), paired_pictures(options, vae, where)
    rate = Rate(options.learning_rate, 100, options.steps, options.steps // 2)
    trainer = Trainer({"oracle": oracle}, rate)

    def loss(step: int) -> Tensor:
        rng = draws(options.seed, step, 2)
        seeds = rng.integers(options.pictures, size=options.batch_size)
        pairs = rng.integers(options.pairs, size=3 * options.batch_size // 2)
        drawings = [world.training_drawing(int(seed)) for seed in seeds]
        drawings += [drawing for half in zip(*map(pair, pairs.tolist()), strict=True) for drawing in half]
        pictures = np.concatenate([plain[seeds], paired[2 * pairs], paired[2 * pairs + 1]])
        logits, embeddings = oracle(roughened(to_tensor(pictures, where), rng))
        return attribute_loss(logits, drawings) + 0.1 * similarity_loss(embeddings[len(seeds) :])

    yield from trainer.follow(options.folder / "oracle.checkpoint", loss)
    with trainer.averaged():
        save(oracle, options.folder / "oracle.safetensors")
        for name, shares in examine(oracle, vae, where).items():
            log.info("%s: %s", name, ", ".join(f"{attribute} {share:.1%}" for attribute, share in shares.items()))


def examine(oracle: Oracle, vae: Any, where: torch.device, count: int = 1000) -> dict[str, dict[str, float]]:
    """Return the share of attributes read right, on held-out renders and on their round trips."""
    drawings = [world.held_out_drawing(seed) for seed in range(HELD_OUT, HELD_OUT + count)]
    pictures = held_out_pictures(count)
    with torch.no_grad():
        again = to_pixels(round_trip(vae, to_tensor(pictures, where)))
    judge = Judge(oracle.cpu())
    return {
        "renders": agreement(judge.read(pictures), drawings),
        "round trips": agreement(judge.read(again), drawings),
    }
