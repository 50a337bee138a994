"""Stable Diffusion XL on JAX (Podell et al. 2023, arXiv 2307.01952)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from pseudoword.families.latent_diffusion_jax import Arrays, LatentDiffusion, Latents
from pseudoword.families.sdxl import facts, negatives
from pseudoword.flax_models import CLIPTextModel, CLIPTextModelWithProjection
from pseudoword.recipe import BaseModel

FIRST, SECOND = facts.ENCODERS.values()


class Condition(NamedTuple):
    """What the UNet is conditioned on."""

    hidden: Float[jax.Array, "batch tokens width"]
    """Both text encoders' last layer but one, side by side."""
    pooled: Float[jax.Array, "batch projection"]
    """The second text encoder's output at the prompt's end, projected."""
    placement: Int[jax.Array, "batch 6"] | None
    """See `Batch.placement`."""


class StableDiffusionXL(LatentDiffusion):
    """Two text encoders side by side, the second one's pooled output, and the sizes of pictures and crops."""

    name = "sdxl"
    kind = facts.KIND
    texts: ClassVar = {FIRST: CLIPTextModel, SECOND: CLIPTextModelWithProjection}

    @classmethod
    def load(cls, base: BaseModel) -> StableDiffusionXL:
        """Load a base on the host in fp32, or raise RecipeError saying what is missing."""
        facts.refuse_tokenizer(base.tokenizer)
        return super().load(base)

    def condition(
        self,
        ids: Arrays,
        rows: Arrays | None,
        placement: jax.Array | None = None,
        prompt: jax.Array | None = None,
    ) -> Condition:
        """Return what both text encoders make of prompts, with learned rows at the ids above their tables."""
        outputs = [
            self._module(folder)(jnp.asarray(ids[encoder]), rows[encoder] if rows else None)
            for encoder, folder in facts.ENCODERS.items()
        ]
        layer = -(2 + (self.base.clip_skip or 0))
        hidden = jnp.concatenate([output.hidden_states[layer] for output in outputs], axis=-1)
        pooled = self._pooled(jnp.asarray(ids["clip_g"]), outputs[1].last_hidden_state)
        if prompt is None:
            return Condition(hidden, pooled, placement)
        return Condition(hidden[prompt], pooled[prompt], placement)

    def _pooled(
        self, ids: Int[jax.Array, "batch tokens"], last: Float[jax.Array, "batch tokens width"]
    ) -> Float[jax.Array, "batch projection"]:
        """Return the output at the first end token, projected."""
        end = (ids == self.vocabularies["clip_g"].tokenizer.eos_token_id).argmax(axis=-1)
        return self._module(SECOND).text_projection(last[jnp.arange(len(last)), end])

    def denoise(self, noised: Latents, timestep: jax.Array, condition: Condition) -> Latents:
        """Return the UNet's prediction in fp32."""
        unet = self._module("unet")
        assert condition.placement is not None, "this UNet is told where each picture was cut"
        return unet(noised.astype(unet.dtype), timestep, *condition).astype(jnp.float32)

    def negative(
        self, ids: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray] | None
    ) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray] | None, np.ndarray]:
        """Return what makes the condition of negative prompts; an empty one is zeros where the base says so."""
        return ids, rows, negatives.given(self.base, self.vocabularies, ids)

    def without(self, condition: Condition, given: jax.Array) -> Condition:
        """Return negative prompts' condition, zeros where nothing is `given`."""
        hidden, pooled = condition.hidden * given[:, None, None], condition.pooled * given[:, None]
        return Condition(hidden, pooled, condition.placement)


FAMILY = StableDiffusionXL
