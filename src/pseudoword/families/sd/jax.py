"""Stable Diffusion 1.x and 2.x on JAX."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from pseudoword.families.latent_diffusion_jax import Arrays, LatentDiffusion, Latents
from pseudoword.families.sd import facts
from pseudoword.flax_models import CLIPTextModel


class StableDiffusion(LatentDiffusion):
    """One text encoder, whose output is the condition."""

    name = "sd"
    kind = facts.KIND
    texts: ClassVar = {facts.TEXT_ENCODER: CLIPTextModel}

    def condition(
        self,
        ids: Arrays,
        rows: Arrays | None,
        placement: jax.Array | None = None,
        prompt: jax.Array | None = None,
    ) -> Float[jax.Array, "batch tokens width"]:
        """Return the text encoder's output, with learned rows at the ids above its table."""
        del placement  # these bases are not told of sizes
        [encoder] = self.vocabularies
        text = self._module(facts.TEXT_ENCODER)
        output = text(jnp.asarray(ids[encoder]), rows[encoder] if rows else None)
        skip = self.base.clip_skip
        hidden = text.final_layer_norm(output.hidden_states[-(skip + 1)]) if skip else output.last_hidden_state
        return hidden if prompt is None else hidden[prompt]

    def denoise(self, noised: Latents, timestep: jax.Array, condition: jax.Array) -> Latents:
        """Return the UNet's prediction in fp32."""
        unet = self._module("unet")
        return unet(noised.astype(unet.dtype), timestep, condition).astype(jnp.float32)


FAMILY = StableDiffusion
