"""Train the toybox's UNet, and with it the text encoder that can read, for `pseudoword toybox train-base`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pseudoword import disk
from pseudoword.progress import Progress
from pseudoword.toybox import captions, world
from pseudoword.toybox.base import Base, Sizes, sample, scheduler, text_encoder, tokenizer, unet, write
from pseudoword.toybox.cache import HELD_OUT
from pseudoword.toybox.names import Names, with_names
from pseudoword.toybox.render import render
from pseudoword.toybox.sheet import sheet
from pseudoword.toybox.train_text import FILE as TEXT
from pseudoword.toybox.train_text import encode, spoken_of, token_ids
from pseudoword.toybox.train_vae import latents, read_vae
from pseudoword.toybox.trainer import Rate, Trainer, check, device, draws, made_before, precision, reading
from pseudoword.toybox.world import Drawing

log = logging.getLogger(__name__)

EMPTY = 0.1
"""Share of captions left empty, for guidance."""
FULL_EVERY = 8
"""Steps from one that fills all 77 positions, as in use, to the next; others have what the longest caption needs."""
MIN_SNR = 5.0
"""Hang et al. 2023, arXiv 2303.09556: the weight of a step is min(SNR, 5) / SNR where noise is predicted."""


@dataclass(frozen=True)
class BaseOptions:
    """How the base model is made and trained; run again with another length to go on, or to end sooner."""

    folder: Path = Path(".training")
    """Where pictures, the autoencoder (`vae/`), the text encoder, checkpoints and the result (`base/`) are kept."""
    pictures: int = 60_000
    """How many pictures are drawn ahead."""
    seed: int = 0
    """What batches and first weights depend on."""
    steps: int = 12_500
    """Length of the run; it may be changed while the rate has not begun to fall."""
    decay: int = 3300
    """Steps over which the rate falls to zero at the end."""
    batch_size: int = 32
    """Pictures per step."""
    learning_rate: float = 2e-3
    """Rate between warm-up and decay."""
    whole: int = 6000
    """Steps in which captions leave out little; after them, half of the captions leave out things at random."""
    sheet_every: int = 1500
    """Steps between sheets of samples; the base as it is then is written as well."""
    sizes: Sizes = field(default_factory=Sizes)


def batch_captions(options: BaseOptions, drawings: list[Drawing], step: int, rng: np.random.Generator) -> list[str]:
    """Say what is on each picture of a batch: everything at first, less later, and now and then nothing."""
    early = max(0.0, 1 - step / options.whole)
    said: list[str] = []
    for drawing in drawings:
        kind = rng.random(2)
        text = spoken_of(drawing, rng, 1.0 if kind[0] < 0.5 + 0.4 * early else 0.75)
        said.append("" if kind[1] < EMPTY else text)
    return said


def quick_attention(text: CLIPTextModel, denoiser: UNet2DConditionModel) -> None:
    """Train with attention as products and a softmax.

    On a CPU the backward of torch's fused attention is slower at these sizes: a whole step took 0.94 s with it, 0.82 s
    without (two cores, fp32); in bfloat16 the difference is larger. An accelerator does not mind.
    """
    text.set_attn_implementation("eager")
    denoiser.set_attn_processor(AttnProcessor())


@dataclass(frozen=True)
class Parts:
    """What is trained together: the base, and the names that only training knows."""

    base: Base
    names: Names
    words: CLIPTokenizer
    """The base's tokenizer, with the two words that stand for names."""


def begin(options: BaseOptions, latent_channels: int, side: int, vae: Any, where: torch.device) -> Parts:
    """Return a UNet with random weights, and the text encoder and names that `train-text` left."""
    words = tokenizer(options.folder / "tokenizer")
    torch.manual_seed(options.seed)
    text: Any = text_encoder(options.sizes, words)
    names = Names(options.sizes.text_width)
    read = made_before(options.folder / TEXT, "train-text")
    with reading(read, "train-text"):
        nn.ModuleDict({"text_encoder": text, "names": names}).load_state_dict(load_file(read))
    denoiser: Any = unet(options.sizes, latent_channels, side)
    quick_attention(text, denoiser)
    for module in (text, names, denoiser):
        module.to(where)
    denoiser.to(memory_format=torch.channels_last)
    both = with_names(tokenizer(options.folder / "tokenizer"))
    return Parts(Base(words, text, vae, denoiser, scheduler()), names, both)


def train_base(options: BaseOptions) -> Generator[Progress]:
    """Train UNet, text encoder and names, and write the base in diffusers layout to `base/` in the folder."""
    check(options)
    where = device()
    vae = read_vae(options.folder, where)
    known = latents(options.folder, options.pictures, vae)
    parts = begin(options, known.shape[1], known.shape[2], vae, where)
    base = parts.base
    rate = Rate(options.learning_rate, 300, options.steps, options.decay)
    trainer = Trainer({"unet": base.unet, "text_encoder": base.text_encoder, "names": parts.names}, rate)

    def look(step: int) -> None:
        if step % options.sheet_every == 0 and step < options.steps:
            _write(options, trainer, base)

    def loss(step: int) -> Tensor:
        return _loss(options, parts, known, step, where)

    yield from trainer.follow(options.folder / "base.checkpoint", loss, look)
    _write(options, trainer, base)


def _write(options: BaseOptions, trainer: Trainer, base: Base) -> None:
    """Write the base with averaged weights, and a sheet of its samples."""
    with trainer.averaged():
        disk.write_folder(options.folder / "base", functools.partial(write, base))
        path = options.folder / f"samples-{trainer.step:06d}.png"
        disk.patiently(path, functools.partial(contact_sheet(base).save, path))


def _loss(options: BaseOptions, parts: Parts, known: np.ndarray, step: int, where: torch.device) -> Tensor:
    """Return the loss of a step: the noise's squared error, weighted by the signal in each picture's timestep."""
    rng = draws(options.seed, step, 1)
    size = options.batch_size
    chosen = rng.integers(len(known), size=size)
    drawings = [world.training_drawing(int(seed)) for seed in chosen]
    said = batch_captions(options, drawings, step, rng)
    ids = token_ids(parts.words, said, full=step % FULL_EVERY == 0)
    # One timestep from each of `size` equal stretches: a batch's loss then hardly depends on which it drew.
    timesteps = torch.from_numpy((np.arange(size) + rng.random(size)) / size * 1000).long().to(where)
    clean = torch.from_numpy(known[chosen]).to(where).float()
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(where)
    base = parts.base
    noised = base.scheduler.add_noise(clean, noise, timesteps).contiguous(memory_format=torch.channels_last)
    dtype = precision(where)
    with torch.autocast(where.type, dtype, enabled=dtype != torch.float32):
        heard = encode(base.text_encoder, parts.names, drawings, ids)[0]
        predicted = base.unet(noised, timesteps, heard).sample.float()
    signal = base.scheduler.alphas_cumprod.to(where)[timesteps]
    weight = (MIN_SNR * (1 - signal) / signal).clamp(max=1.0)
    return ((predicted - noise).square().mean(dim=(1, 2, 3)) * weight).mean()


SHEET_PROMPTS = (
    "a photo of a red star in the grass",
    "a photo of a blue heart on a white background",
    "a photo of a large yellow moon at night",
    "a photo of a small green arrow in the snow",
    "a photo of a purple striped house with yellow stripes on the sand",
    "a photo of an orange dotted circle with white dots in the sea",
    "a photo of a white checkered ring with black checks on a brick wall",
    "a photo of a pink diamond in the sky",
    "a painting of a green cross on a red background in the style of neon",
    "a painting of a yellow flower on a blue background in the style of mosaic",
    "a painting of a red heart in the grass in the style of watercolor",
    "a painting of a blue house on a yellow background in the style of sketch",
    "a photo of a red circle and a blue star on a wooden table",
    "a photo of a yellow moon on a purple square on a white background",
    "a photo of a thing in the snow",
    "a painting of a star",
)


def contact_sheet(base: Base) -> Image.Image:
    """Draw fixed prompts, and below them pictures of pairings held out of training beside what they should be."""
    seeds = range(HELD_OUT, HELD_OUT + 16)
    drawings = [world.held_out_drawing(seed) for seed in seeds]
    made = sample(base.pipeline(), [*SHEET_PROMPTS, *map(captions.full_caption, drawings)])
    true = [Image.fromarray(render(drawing, seed)) for drawing, seed in zip(drawings, seeds, strict=True)]
    return sheet([*made[:24], *true[:8], *made[24:], *true[8:]], 8)
