"""Train the toybox's autoencoder: pictures of 64×64 to latents and back, for `pseudoword toybox train-vae`."""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, Float16, UInt8
from torch import Tensor

from pseudoword import disk
from pseudoword.families.weights import digest
from pseudoword.progress import Progress
from pseudoword.toybox.cache import held_out_pictures, keep, load, training_pictures
from pseudoword.toybox.trainer import Rate, Trainer, check, device, draws, made_before, reading

log = logging.getLogger(__name__)

SPREAD = 4000
"""Pictures over which the spread of the latents is measured."""


@dataclass(frozen=True)
class VaeOptions:
    """How the autoencoder is made and trained."""

    folder: Path = Path(".training")
    """Where pictures, checkpoints and the result are kept."""
    pictures: int = 100_000
    """How many pictures are drawn ahead."""
    seed: int = 0
    """What batches and first weights depend on."""
    steps: int = 2200
    """Length of the run."""
    batch_size: int = 16
    """Pictures per step."""
    learning_rate: float = 4e-3
    """Peak of the rate; it falls to zero over the last three quarters."""
    channels: tuple[int, ...] = (16, 32, 64, 96)
    """Width at each resolution; every one but the first halves the picture's sides."""
    latent_channels: int = 16
    """Numbers kept for each square of the picture."""


def model(options: VaeOptions) -> Any:
    """Return the autoencoder with random weights; `Any` since its class's own annotations mislead type checkers."""
    torch.manual_seed(options.seed)
    levels = len(options.channels)
    kind: Any = AutoencoderKL
    return kind(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=options.channels,
        layers_per_block=1,
        latent_channels=options.latent_channels,
        mid_block_add_attention=False,
        norm_num_groups=8,
        sample_size=64,
    )


def read_vae(folder: Path, where: torch.device) -> Any:
    """Return the autoencoder that `train-vae` left in a folder; RecipeError says what to run if it cannot be had."""
    path = made_before(folder / "vae", "train-vae")
    kind: Any = AutoencoderKL
    with reading(path, "train-vae"):
        return kind.from_pretrained(path, low_cpu_mem_usage=False).to(where)


def to_tensor(
    pictures: UInt8[np.ndarray, "batch side side 3"], where: torch.device
) -> Float[Tensor, "batch 3 side side"]:
    """Turn 8-bit pictures into what the autoencoder takes: channels first, from -1 to 1."""
    values = torch.from_numpy(np.array(pictures)).to(where).permute(0, 3, 1, 2).float() / 127.5 - 1
    return values.contiguous(memory_format=torch.channels_last)


def to_pixels(pictures: Float[Tensor, "batch 3 side side"]) -> UInt8[np.ndarray, "batch side side 3"]:
    """Turn what the autoencoder gives into 8-bit pictures."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def reconstruction_loss(made: Tensor, pictures: Tensor) -> Tensor:
    """Mean absolute error of colours and of differences between neighbours, and squared error for large misses."""
    error = made - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * edges + error.square().mean()


def psnr(made: Tensor, pictures: Tensor) -> float:
    """Return the mean over pictures of the peak signal-to-noise ratio in dB, of pictures from -1 to 1."""
    squared = (made.clamp(-1, 1) - pictures).square().mean(dim=(1, 2, 3)) / 4
    return float((-10 * squared.clamp_min(1e-10).log10()).mean())


def round_trip(vae: Any, pictures: Tensor, batch: int = 64) -> Tensor:
    """Encode pictures to the mean of their latents, and decode them."""
    return torch.cat([vae.decode(vae.encode(p).latent_dist.mean).sample for p in pictures.split(batch)])


def latent_std(vae: Any, pictures: UInt8[np.ndarray, "count side side 3"], where: torch.device) -> float:
    """Return the standard deviation of the latents, whose inverse is the scaling factor."""
    parts = [to_tensor(pictures[i : i + 100], where) for i in range(0, len(pictures), 100)]
    return float(torch.cat([vae.encode(part).latent_dist.mean for part in parts]).std())


def encoder_digest(vae: Any) -> str:
    """Return a name for all that a latent depends on."""
    return digest({"encoder": vae.encoder, "quant_conv": vae.quant_conv})


@torch.no_grad()
def latents(folder: Path, count: int, vae: Any) -> Float16[np.ndarray, "count channels side side"]:
    """Return the scaled latents of the pictures, encoded once and kept beside them."""
    path = folder / f"latents-{count}-{encoder_digest(vae)}.npy"
    if not path.exists():
        pictures, scale = training_pictures(folder, count), vae.config.scaling_factor
        parts = (to_tensor(pictures[i : i + 200], vae.device) for i in range(0, count, 200))
        keep(path, np.concatenate([(vae.encode(p).latent_dist.mean * scale).half().cpu().numpy() for p in parts]))
    return load(path, count)


def train_vae(options: VaeOptions) -> Generator[Progress]:
    """Train the autoencoder, and write it in diffusers layout to `vae/` in the folder."""
    check(options)
    pictures = training_pictures(options.folder, options.pictures)
    where = device()
    vae = model(options).to(where, memory_format=torch.channels_last)
    rate = Rate(options.learning_rate, 100, options.steps, options.steps * 3 // 4)
    trainer = Trainer({"vae": vae}, rate, weight_decay=1e-4)

    def loss(step: int) -> Tensor:
        rng = draws(options.seed, step, 0)
        batch = to_tensor(pictures[np.sort(rng.integers(len(pictures), size=options.batch_size))], where)
        posterior = vae.encode(batch).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32)).to(where)
        made = vae.decode(posterior.mean + posterior.std * noise).sample
        if (step + 1) % 200 == 0:
            log.info("step %d: %.2f dB on its own batch", step + 1, psnr(made.detach(), batch))
        return reconstruction_loss(made, batch) + 1e-6 * posterior.kl().mean()

    yield from trainer.follow(options.folder / "vae.checkpoint", loss)
    if (options.folder / "vae").exists() and trainer.step == trainer.began_at:
        log.info("Nothing left to train: the autoencoder in %s stays as it is", options.folder / "vae")
        return
    _finish(options, trainer, vae, pictures[:SPREAD], where)


def report(vae: Any, where: torch.device) -> None:
    """Measure the autoencoder on held-out pictures, and say what came of it."""
    unseen = to_tensor(held_out_pictures(500), where)
    log.info("Round trip of 500 held-out pictures: %.2f dB", psnr(round_trip(vae, unseen), unseen))


def _finish(options: VaeOptions, trainer: Trainer, vae: Any, pictures: np.ndarray, where: torch.device) -> None:
    """Measure the averaged weights on held-out pictures, and write them with the latents' scale."""
    with trainer.averaged():
        report(vae, where)
        vae.register_to_config(scaling_factor=1 / latent_std(vae, pictures, where))
        disk.write_folder(options.folder / "vae", vae.save_pretrained)
