"""Sharpen the autoencoder's decoder alone, for `pseudoword toybox train-decoder`; latents stay as they are."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pseudoword import disk
from pseudoword.progress import Progress
from pseudoword.toybox.cache import training_pictures
from pseudoword.toybox.train_vae import encoder_digest, latents, read_vae, reconstruction_loss, report, to_tensor
from pseudoword.toybox.trainer import Rate, Trainer, check, device, draws

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


def train_decoder(options: DecoderOptions) -> Generator[Progress]:
    """Train the decoder on latents that the encoder gave, and write the autoencoder back to `vae/` in the folder."""
    check(options)
    where = device()
    vae = read_vae(options.folder, where)
    vae.to(memory_format=torch.channels_last)
    pictures = training_pictures(options.folder, options.pictures)
    known = latents(options.folder, options.pictures, vae)
    rate = Rate(options.learning_rate, 100, options.steps, options.steps * 3 // 4)
    trainer = Trainer({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}, rate, weight_decay=1e-4)

    def loss(step: int) -> Tensor:
        rng = draws(options.seed, step, 4)
        chosen = np.sort(rng.integers(options.pictures, size=options.batch_size))
        noise = NOISE * rng.standard_normal(known[chosen].shape, dtype=np.float32)
        heard = torch.from_numpy(known[chosen].astype(np.float32) + noise).to(where)
        made = vae.decode(heard / vae.config.scaling_factor).sample
        return reconstruction_loss(made, to_tensor(pictures[chosen], where))

    yield from trainer.follow(options.folder / f"decoder-{encoder_digest(vae)}.checkpoint", loss)
    with trainer.averaged():
        report(vae, where)
        disk.write_folder(options.folder / "vae", vae.save_pretrained)
