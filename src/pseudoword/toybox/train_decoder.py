"""Sharpen the autoencoder's decoder alone, for `pseudoword toybox train-decoder`; latents stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pseudoword.progress import Progress
from pseudoword.toybox.cache import training_pictures
from pseudoword.toybox.train_vae import latents, reconstruction_loss, report, to_tensor
from pseudoword.toybox.trainer import Rate, Trainer, device, draws, made_before

NOISE = 0.05
"""Noise on a decoder's latents, of their standard deviation: a sampler's are never quite an encoder's."""


@dataclass(frozen=True)
class DecoderOptions:
    """How the decoder is sharpened."""

    folder: Path = Path(".training")
    """Where pictures, the autoencoder (`vae/`) and checkpoints are kept; the autoencoder is written back there."""
    pictures: int = 60_000
    """Pictures of the base's training, drawn ahead, whose latents are known."""
    seed: int = 0
    """What batches depend on."""
    steps: int = 2500
    """Length of the run."""
    batch_size: int = 16
    """Pictures per step."""
    learning_rate: float = 2e-3
    """Peak of the rate; it falls to zero over the last three quarters."""


def train_decoder(options: DecoderOptions) -> Iterator[Progress]:
    """Train the decoder on latents that the encoder gave, and write the autoencoder back to `vae/` in the folder."""
    where = device()
    loaded: Any = AutoencoderKL.from_pretrained(made_before(options.folder / "vae", "train-vae"))
    vae = loaded.to(where, memory_format=torch.channels_last)
    pictures, known = (
        training_pictures(options.folder, options.pictures),
        latents(options.folder, options.pictures, vae),
    )
    rate = Rate(options.learning_rate, 100, options.steps, options.steps * 3 // 4)
    trainer = Trainer({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}, rate, weight_decay=1e-4)
    checkpoint = options.folder / "decoder.checkpoint"
    trainer.resume(checkpoint)
    while trainer.step < options.steps:
        rng = draws(options.seed, trainer.step, 4)
        chosen = np.sort(rng.integers(options.pictures, size=options.batch_size))
        noise = NOISE * rng.standard_normal(known[chosen].shape, dtype=np.float32)
        heard: Tensor = torch.from_numpy(known[chosen].astype(np.float32) + noise).to(where)
        made = vae.decode(heard / vae.config.scaling_factor).sample
        loss = reconstruction_loss(made, to_tensor(pictures[chosen], where))
        trainer.update(loss)
        yield trainer.progress(loss, trainer.save_sometimes(checkpoint))
    with trainer.averaged():
        report(vae, where)
        vae.save_pretrained(options.folder / "vae")
