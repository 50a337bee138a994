"""What is refused of a base, by its configurations; the same on every engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pseudoword import objectives
from pseudoword.errors import RecipeError
from pseudoword.recipe import BaseModel


def prediction_type(base: BaseModel, scheduler: Mapping[str, Any]) -> objectives.PredictionType:
    """Return what the denoiser predicts, as the recipe or the scheduler says; RecipeError if nothing here trains it."""
    kind = base.prediction_type or scheduler.get("prediction_type", "epsilon")
    if kind not in objectives.PREDICTION_TYPES:
        raise RecipeError(
            f"The base predicts {kind!r}; this family trains {' and '.join(objectives.PREDICTION_TYPES)}. "
            "Set prediction_type if the model's scheduler configuration is wrong."
        )
    return cast(objectives.PredictionType, kind)


def check_clip_skip(base: BaseModel, layers: int) -> None:
    """Refuse to skip more layers than there are."""
    if base.clip_skip and base.clip_skip >= layers:
        raise RecipeError(f"clip_skip is {base.clip_skip}, but the text encoder has only {layers} layers.")


def check_latents(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Refuse a UNet that does not take the VAE's latents as they are."""
    takes, made = unet["in_channels"], vae["latent_channels"]
    if takes != made:
        raise RecipeError(
            f"The UNet takes {takes} channels, but the VAE makes {made}: a model for inpainting or editing, "
            "from which no word can be learned here; take the text-to-image model."
        )
    scale = vae.get("scaling_factor", 0.18215)
    if not (isinstance(scale, int | float) and scale > 0):
        raise RecipeError(f"The VAE's configuration has the scaling_factor {scale!r}; expected a number above 0.")
    if vae.get("latents_mean") is not None:
        raise RecipeError(
            "The VAE's configuration normalises each channel of its latents, as Playground v2.5's does; "
            "no word can be learned for such a base here."
        )
