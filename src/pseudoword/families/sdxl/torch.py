"""Stable Diffusion XL on PyTorch (Podell et al. 2023, arXiv 2307.01952)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from jaxtyping import Float, Int
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from pseudoword.families.latent_diffusion import LatentDiffusion, Latents, Rows
from pseudoword.families.lookup import lent
from pseudoword.families.sdxl import facts, negatives
from pseudoword.recipe import BaseModel


@dataclass(frozen=True)
class Condition:
    """What the UNet is conditioned on."""

    hidden: Float[torch.Tensor, "batch tokens width"]
    """Both text encoders' last layer but one, side by side."""
    pooled: Float[torch.Tensor, "batch projection"]
    """The second text encoder's output at the prompt's end, projected."""
    placement: Int[torch.Tensor, "batch 6"] | None
    """See `Batch.placement`."""


class StableDiffusionXL(LatentDiffusion):
    """Two text encoders side by side, the second one's pooled output, and the sizes of pictures and crops."""

    name = "sdxl"
    kind = facts.KIND
    texts: ClassVar = {
        "text_encoder": ("tokenizer", CLIPTextModel),
        "text_encoder_2": ("tokenizer_2", CLIPTextModelWithProjection),
    }
    pipeline_class = StableDiffusionXLPipeline
    redraw_class = StableDiffusionXLImg2ImgPipeline
    vae_overflows = True

    @staticmethod
    def names_of(widths: Sequence[int]) -> list[str]:
        """Return what files call the text encoders, whatever their widths."""
        del widths
        return list(facts.ENCODERS)

    @classmethod
    def load(cls, base: BaseModel) -> StableDiffusionXL:
        """Load a base on the CPU in fp32, or raise RecipeError saying what is missing."""
        facts.refuse_tokenizer(base.tokenizer)
        return super().load(base)

    def nothing_to_check(self) -> dict[str, Any]:
        """Return the pipeline's arguments that leave out watermarks."""
        return {"add_watermarker": False}

    def condition(
        self,
        ids: Mapping[str, torch.Tensor],
        rows: Rows | None,
        placement: torch.Tensor | None = None,
        prompt: torch.Tensor | None = None,
    ) -> Condition:
        """Return what both text encoders make of prompts, with learned rows at the ids above their tables.

        The pooled output is taken at the first end token of the tokenizer. What transformers pools is not used: where
        a configuration says `eos_token_id` 2 it is that of the largest id, which is the learned word's.
        """
        outputs = {}
        with self.text_precision(), ExitStack() as lending:
            for encoder, folder in facts.ENCODERS.items():
                text = self.text_encoders[folder]
                lending.enter_context(lent(text, rows[encoder] if rows else None))
                outputs[encoder] = text(ids[encoder], output_hidden_states=True)
            pooled = self._pooled(ids["clip_g"], outputs["clip_g"].last_hidden_state)
        layer = -(2 + (self.base.clip_skip or 0))
        hidden = torch.cat([output.hidden_states[layer] for output in outputs.values()], dim=-1)
        return (
            Condition(hidden, pooled, placement)
            if prompt is None
            else Condition(hidden[prompt], pooled[prompt], placement)
        )

    def _pooled(
        self, ids: Int[torch.Tensor, "batch tokens"], last: Float[torch.Tensor, "batch tokens width"]
    ) -> Float[torch.Tensor, "batch projection"]:
        end = (ids == self.vocabularies["clip_g"].tokenizer.eos_token_id).int().argmax(dim=-1)
        return self.text_encoders["text_encoder_2"].text_projection(
            last[torch.arange(len(last), device=last.device), end]
        )

    def denoise(self, noised: Latents, timestep: torch.Tensor, condition: Condition) -> Latents:
        """Return the UNet's prediction in fp32."""
        dtype = self.unet.dtype
        assert condition.placement is not None, "this UNet is told where each picture was cut"
        told = {"text_embeds": condition.pooled.to(dtype), "time_ids": condition.placement.float()}
        return self.denoiser(
            noised.to(dtype), timestep, condition.hidden.to(dtype), added_cond_kwargs=told
        ).sample.float()

    @torch.no_grad()
    def prompt_inputs(
        self,
        ids: Mapping[str, np.ndarray],
        negative_ids: Mapping[str, np.ndarray],
        rows: Mapping[str, np.ndarray] | None,
    ) -> dict[str, torch.Tensor]:
        """Return the pipeline's embeddings of prompts and negative prompts, and their pooled outputs.

        An empty negative prompt is zeros where the base says so (`force_zeros_for_empty_prompt`), as diffusers has it.
        """
        positive, negative = (self.condition(*self.ids_and_rows(own, rows)) for own in (ids, negative_ids))
        given = torch.from_numpy(negatives.given(self.base, self.vocabularies, negative_ids)).to(negative.pooled)
        dtype = self.unet.dtype
        return {
            "prompt_embeds": positive.hidden.to(dtype),
            "pooled_prompt_embeds": positive.pooled.to(dtype),
            "negative_prompt_embeds": (negative.hidden * given[:, None, None]).to(dtype),
            "negative_pooled_prompt_embeds": (negative.pooled * given[:, None]).to(dtype),
        }


FAMILY = StableDiffusionXL
