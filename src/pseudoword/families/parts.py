"""Parts of a base: those that are loaded with a choice, and what is refused of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError

from pseudoword import objectives
from pseudoword.errors import RecipeError, first_line
from pseudoword.families.single_file import is_single_file
from pseudoword.recipe import BaseModel

log = logging.getLogger(__name__)


def load_text_encoder(base: BaseModel, folder: str, kind: Any) -> Any:
    """Load a text encoder in fp32; bases may have its weights only without the variant's suffix."""
    options: dict[str, Any] = {"subfolder": folder, "revision": base.revision, "dtype": torch.float32}
    if base.variant:
        try:
            return kind.from_pretrained(base.model, variant=base.variant, **options)
        except OSError:
            log.info("No text encoder of variant %r; loading the plain one.", base.variant)
    return kind.from_pretrained(base.model, **options)


def other_vae(base: BaseModel) -> AutoencoderKL | None:
    """Load the VAE that a recipe names instead of the base's own, or raise RecipeError; None if it names none."""
    if base.vae is None:
        return None
    path = Path(base.vae).expanduser()
    try:
        if is_single_file(base.vae):
            own = {"config": base.config or base.model, "subfolder": "vae", "torch_dtype": torch.float32}
            return cast(AutoencoderKL, AutoencoderKL.from_single_file(str(path), **own))
        inside = {"subfolder": "vae"} if (path / "vae" / "config.json").is_file() else {}
        where = str(path) if path.is_dir() else base.vae
        return cast(AutoencoderKL, AutoencoderKL.from_pretrained(where, torch_dtype=torch.float32, **inside))
    except (OSError, ValueError, RuntimeError, KeyError, SingleFileComponentError) as error:
        raise RecipeError(
            f"Cannot load the VAE {base.vae!r} ({first_line(error)}); "
            "give a folder, file or Hub id of an AutoencoderKL."
        ) from error


def pool_at_end(text_encoder: Any, tokenizer: Any) -> None:
    """Let a text encoder that will be saved with added tokens pool at the end of a prompt, if it is one that pools.

    Where its configuration says `eos_token_id` 2, as those on the Hub do, transformers would take the largest id
    instead, which is an added token (transformers issue 24650).
    """
    if hasattr(text_encoder, "text_projection") and text_encoder.config.eos_token_id == 2:
        text_encoder.config.eos_token_id = tokenizer.eos_token_id


def prediction_type(base: BaseModel, scheduler: DDPMScheduler) -> objectives.PredictionType:
    """Return what the denoiser predicts, as the recipe or the scheduler says; RecipeError if nothing here trains it."""
    kind = base.prediction_type or scheduler.config["prediction_type"]
    if kind not in objectives.PREDICTION_TYPES:
        raise RecipeError(
            f"The base predicts {kind!r}; this family trains {' and '.join(objectives.PREDICTION_TYPES)}. "
            "Set prediction_type if the model's scheduler configuration is wrong."
        )
    return cast(objectives.PredictionType, kind)


def check_clip_skip(base: BaseModel, text_encoder: Any) -> None:
    """Refuse to skip more layers than there are."""
    layers = text_encoder.config.num_hidden_layers
    if base.clip_skip and base.clip_skip >= layers:
        raise RecipeError(f"clip_skip is {base.clip_skip}, but the text encoder has only {layers} layers.")


def check_latents(unet: UNet2DConditionModel, vae: AutoencoderKL) -> None:
    """Refuse a UNet that does not take the VAE's latents as they are."""
    takes, made = unet.config["in_channels"], vae.config["latent_channels"]
    if takes != made:
        raise RecipeError(
            f"The UNet takes {takes} channels, but the VAE makes {made}: a model for inpainting or editing, "
            "from which no word can be learned here; take the text-to-image model."
        )
    if vae.config.get("latents_mean") is not None:
        raise RecipeError(
            "The VAE's configuration normalises each channel of its latents, as Playground v2.5's does; "
            "no word can be learned for such a base here."
        )
