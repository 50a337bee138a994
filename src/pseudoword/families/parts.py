"""Parts of a base on PyTorch that are loaded with a choice."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import SingleFileComponentError

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
