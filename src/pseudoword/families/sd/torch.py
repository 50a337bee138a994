"""Stable Diffusion 1.x and 2.x on PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from jaxtyping import Float
from transformers import CLIPTextModel

from pseudoword.encoders import encoder_of_width
from pseudoword.families.latent_diffusion import LatentDiffusion, Latents, Rows
from pseudoword.families.lookup import lent
from pseudoword.families.sd import facts


class StableDiffusion(LatentDiffusion):
    """One text encoder, whose output is the condition."""

    name = "sd"
    kind = facts.KIND
    texts: ClassVar = {"text_encoder": ("tokenizer", CLIPTextModel)}
    pipeline_class = StableDiffusionPipeline
    redraw_class = StableDiffusionImg2ImgPipeline

    @staticmethod
    def names_of(widths: Sequence[int]) -> list[str]:
        """Return what files call the text encoder of an embedding width."""
        return [encoder_of_width(width) for width in widths]

    @property
    def text_encoder(self) -> Any:
        """The one text encoder."""
        return self.text_encoders["text_encoder"]

    def nothing_to_check(self) -> dict[str, Any]:
        """Return the pipeline's arguments that leave out the safety checker."""
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def condition(
        self,
        ids: Mapping[str, torch.Tensor],
        rows: Rows | None,
        placement: torch.Tensor | None = None,
        prompt: torch.Tensor | None = None,
    ) -> Float[torch.Tensor, "batch tokens width"]:
        """Return the text encoder's output, with learned rows at the ids above its table."""
        del placement  # these bases are not told of sizes
        hidden = self._hidden(ids, rows)
        return hidden if prompt is None else hidden[prompt]

    def _hidden(
        self, ids: Mapping[str, torch.Tensor], rows: Rows | None
    ) -> Float[torch.Tensor, "prompts tokens width"]:
        [encoder] = self.encoders
        with self.text_precision(), lent(self.text_encoder, rows[encoder] if rows else None):
            if not self.base.clip_skip:
                return self.text_encoder(ids[encoder]).last_hidden_state
            output = self.text_encoder(ids[encoder], output_hidden_states=True)
        text = getattr(self.text_encoder, "text_model", self.text_encoder)
        return text.final_layer_norm(output.hidden_states[-(self.base.clip_skip + 1)])

    def denoise(self, noised: Latents, timestep: torch.Tensor, condition: torch.Tensor) -> Latents:
        """Return the UNet's prediction in fp32."""
        dtype = self.unet.dtype
        return self.denoiser(noised.to(dtype), timestep, condition.to(dtype)).sample.float()

    @torch.no_grad()
    def prompt_inputs(
        self,
        ids: Mapping[str, np.ndarray],
        negative_ids: Mapping[str, np.ndarray],
        rows: Mapping[str, np.ndarray] | None,
    ) -> dict[str, torch.Tensor]:
        """Return the pipeline's embeddings of prompts and negative prompts, `[prompts, tokens, width]` each."""
        positive, negative = (
            self.condition(*self.ids_and_rows(own, rows)).to(self.unet.dtype) for own in (ids, negative_ids)
        )
        return {"prompt_embeds": positive, "negative_prompt_embeds": negative}


FAMILY = StableDiffusion
