"""Stable Diffusion 1.x and 2.x on PyTorch: diffusers' and transformers' own modules, frozen."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import SingleFileComponentError, create_diffusers_clip_model_from_ldm
from jaxtyping import Float, Int
from PIL import Image
from torch import nn
from transformers import CLIPTextModel

from pseudoword import objectives
from pseudoword.concept import Concept, encoder_of_width
from pseudoword.errors import RecipeError, first_line
from pseudoword.families import samplers
from pseudoword.families.lookup import lent
from pseudoword.families.sd.single_file import state_dict
from pseudoword.families.sd.sizes import sizes_of
from pseudoword.families.sd.words import load_tokenizer
from pseudoword.families.single_file import is_single_file
from pseudoword.recipe import BaseModel, Sampler
from pseudoword.vocabulary import Vocabulary

log = logging.getLogger(__name__)

LOADING = threading.Lock()
"""transformers and diffusers switch the whole process to empty weights while they load, so one at a time."""

MISSING = "tensors are missing"
NOTHING_TO_CHECK: dict[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}

Latents = Float[torch.Tensor, "batch channels height width"]


class StableDiffusion:
    """A loaded base: modules on a device, the UNet in `dtype`, everything else in fp32, nothing trainable."""

    def __init__(
        self,
        base: BaseModel,
        tokenizer: Any,
        text_encoder: CLIPTextModel,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: DDPMScheduler,
    ) -> None:
        self.base = base
        # Any: these classes' own annotations of `to`, `train` and `__call__` mislead type checkers.
        self.text_encoder: Any = text_encoder
        self.vae: Any = vae
        self.unet: Any = unet
        self.scheduler = scheduler
        for module in self.modules.values():
            module.requires_grad_(False).eval()
        table = self.text_encoder.get_input_embeddings().weight.detach().float().cpu().numpy()
        self.encoder = encoder_of_width(table.shape[1])
        self.vocabularies = {self.encoder: Vocabulary(tokenizer, table)}
        self.prediction_type: objectives.PredictionType = _prediction_type(base, scheduler)
        self.num_timesteps: int = int(scheduler.config["num_train_timesteps"])
        self.alphas_cumprod = scheduler.alphas_cumprod
        sizes = sizes_of(unet.config, vae.config)
        self.latent_factor, self.bucket_multiple = sizes.latent_factor, sizes.bucket_multiple
        self.resolution: int = sizes.resolution
        _check_clip_skip(base, text_encoder)
        _check_channels(unet, vae)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The frozen modules by their names in the pipeline."""
        return {"text_encoder": self.text_encoder, "vae": self.vae, "unet": self.unet}

    @classmethod
    def load(cls, base: BaseModel) -> StableDiffusion:
        """Load a diffusers-layout base on the CPU in fp32, or raise RecipeError saying what is missing."""
        with LOADING:
            return cls._load(base)

    @classmethod
    def _load(cls, base: BaseModel) -> StableDiffusion:
        if is_single_file(base.model):
            return cls(base, *_parts_of_file(base))
        where: dict[str, Any] = {"revision": base.revision}
        try:
            tokenizer = load_tokenizer(base)
            text_encoder = _load_text_encoder(base)
            half = {"variant": base.variant, "torch_dtype": torch.float32, **where}
            vae = AutoencoderKL.from_pretrained(base.model, subfolder="vae", **half)
            unet = UNet2DConditionModel.from_pretrained(base.model, subfolder="unet", **half)
            scheduler = DDPMScheduler.from_pretrained(base.model, subfolder="scheduler", **where)
        except (OSError, ValueError, RecipeError) as error:
            raise RecipeError(
                f"Cannot load {base.model!r} as Stable Diffusion 1.x or 2.x in diffusers layout: {first_line(error)} "
                "Give a folder or Hub id that has tokenizer, text_encoder, vae, unet and scheduler."
            ) from error
        return cls(
            base,
            tokenizer,
            text_encoder,
            cast(AutoencoderKL, vae),
            cast(UNet2DConditionModel, unet),
            cast(DDPMScheduler, scheduler),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype, *, vae_dtype: torch.dtype | None = None) -> None:
        """Move the base to a device, the UNet to `dtype`, the VAE to `vae_dtype` or fp32; the text encoder is fp32."""
        for module, wanted in ((self.unet, dtype), (self.vae, vae_dtype or torch.float32)):
            module.to(device=device)
            if module.dtype != wanted:  # diffusers warns at any cast, even one that changes nothing
                module.to(dtype=wanted)
        self.text_encoder.to(device=device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass. The modules have no dropout, so training mode changes nothing."""
        self.unet.enable_gradient_checkpointing()
        text = self.text_encoder  # a later transformers 5 renamed the method and deprecated the old name
        enable = getattr(text, "activation_checkpointing_enable", text.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
        self.unet.train()
        self.text_encoder.train()

    def use_xformers(self) -> None:
        """Compute the UNet's attention with xformers."""
        self.unet.enable_xformers_memory_efficient_attention()

    def leave_vae(self) -> None:
        """Take the VAE off the accelerator once every latent is cached."""
        self.vae.to(device="cpu")

    # The parts of the loss

    @torch.no_grad()
    def encode_images(self, pixels: Float[np.ndarray, "batch 3 high wide"]) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the latents, in fp32 (the VAE's own posterior)."""
        values = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.vae.device, torch.float32)
        posterior = self.vae.encode(values).latent_dist
        return posterior.mean.cpu().numpy(), posterior.std.cpu().numpy()

    def latents(self, mean: Latents, std: Latents, posterior: Latents) -> Latents:
        """Return latents sampled from their moments, scaled for the UNet."""
        return (mean + std * posterior) * self.vae.config["scaling_factor"]

    def noise_levels(self, timestep: Int[torch.Tensor, " batch"]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return alpha_t and sigma_t as [batch, 1, 1, 1]."""
        signal = self.alphas_cumprod[timestep][:, None, None, None]
        return signal.sqrt(), (1 - signal).sqrt()

    def condition(
        self, ids: Mapping[str, torch.Tensor], rows: Mapping[str, torch.Tensor] | None
    ) -> Float[torch.Tensor, "batch tokens width"]:
        """Return the text encoder's output, with learned rows at the ids above its table."""
        with lent(self.text_encoder, rows[self.encoder] if rows else None):
            if not self.base.clip_skip:
                return self.text_encoder(ids[self.encoder]).last_hidden_state
            output = self.text_encoder(ids[self.encoder], output_hidden_states=True)
        text = getattr(self.text_encoder, "text_model", self.text_encoder)
        return text.final_layer_norm(output.hidden_states[-(self.base.clip_skip + 1)])

    def denoise(self, noised: Latents, timestep: torch.Tensor, condition: torch.Tensor) -> Latents:
        """Return the UNet's prediction in fp32."""
        dtype = self.unet.dtype
        return self.unet(noised.to(dtype), timestep, condition.to(dtype)).sample.float()

    def target(self, latents: Latents, noise: Latents, alpha: torch.Tensor, sigma: torch.Tensor) -> Latents:
        """Return what the UNet should predict."""
        return objectives.target(self.prediction_type, latents, noise, alpha, sigma)

    # Beyond training

    @torch.no_grad()
    def prompt_inputs(
        self,
        ids: Mapping[str, np.ndarray],
        negative_ids: Mapping[str, np.ndarray],
        rows: Mapping[str, np.ndarray] | None,
    ) -> dict[str, torch.Tensor]:
        """Return the pipeline's embeddings of prompts and negative prompts, `[prompts, tokens, width]` each."""

        def embed(ids: Mapping[str, np.ndarray]) -> torch.Tensor:
            own = {encoder: torch.from_numpy(block).to(self.text_encoder.device) for encoder, block in ids.items()}
            return self.condition(own, learned).to(self.unet.dtype)

        learned = {encoder: torch.tensor(block) for encoder, block in rows.items()} if rows else None
        return {"prompt_embeds": embed(ids), "negative_prompt_embeds": embed(negative_ids)}

    def with_words(self, concepts: Sequence[Concept]) -> StableDiffusionPipeline:
        """Return a pipeline with the words inside: rows in a copy of the table, tokens in a copy of the tokenizer."""
        tokenizer = copy.deepcopy(self.vocabularies[self.encoder].tokenizer)
        text_encoder = copy.deepcopy(self.text_encoder).to(device="cpu")
        for concept in concepts:
            tokenizer.add_tokens(concept.tokens)
        size = max(len(tokenizer), text_encoder.get_input_embeddings().num_embeddings)
        table = text_encoder.resize_token_embeddings(size, mean_resizing=False).weight.data
        for concept in concepts:
            table[tokenizer.convert_tokens_to_ids(concept.tokens)] = torch.tensor(concept.rows[self.encoder])
        # Everything else as the base has it: its scheduler, and unless it is one file, which has neither, its safety
        # checker and its feature extractor.
        pipeline: Any = StableDiffusionPipeline.from_pretrained(
            self.base.config or self.base.model,
            revision=self.base.revision,
            variant=self.base.variant,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=self.vae,
            unet=self.unet,
            **(NOTHING_TO_CHECK if self.base.config else {}),
        )
        pipeline.scheduler.register_to_config(prediction_type=self.prediction_type)
        return pipeline

    def pipeline(self, sampler: Sampler = "dpm++") -> StableDiffusionPipeline:
        """Return a diffusers pipeline of these very modules with one of the samplers, for `prompt_inputs` alone.

        It has no text encoder: diffusers would cast prompts to that one's precision, and the UNet's may be another.
        """
        return StableDiffusionPipeline(
            tokenizer=cast(Any, None),
            text_encoder=cast(Any, None),
            vae=self.vae,
            unet=self.unet,
            scheduler=samplers.scheduler(sampler, self.scheduler, self.prediction_type),
            **NOTHING_TO_CHECK,
        )

    @torch.no_grad()
    def decode(self, latents: Latents) -> list[Image.Image]:
        """Return the pictures of latents, one after the other; the VAE comes to them, and goes back where it was."""
        home, dtype = self.vae.device, self.vae.dtype
        self.vae.to(device=latents.device)
        try:
            unscaled = latents.to(dtype) / self.vae.config["scaling_factor"]
            values = torch.cat([self.vae.decode(one).sample.float().cpu() for one in unscaled.split(1)])
        finally:
            self.vae.to(device=home)
        eight = ((values / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return [Image.fromarray(one) for one in eight.numpy()]


def _load_text_encoder(base: BaseModel) -> CLIPTextModel:
    """Load the text encoder in fp32; bases may have its weights only without the variant's suffix."""
    options: dict[str, Any] = {"subfolder": "text_encoder", "revision": base.revision, "dtype": torch.float32}
    if base.variant:
        try:
            return CLIPTextModel.from_pretrained(base.model, variant=base.variant, **options)
        except OSError:
            log.info("No text encoder of variant %r; loading the plain one.", base.variant)
    return CLIPTextModel.from_pretrained(base.model, **options)


def _parts_of_file(
    base: BaseModel,
) -> tuple[Any, CLIPTextModel, AutoencoderKL, UNet2DConditionModel, DDPMScheduler]:
    """Load what a checkpoint in one file holds and what its configuration adds, or raise RecipeError."""
    tokenizer, tensors = load_tokenizer(base), state_dict(Path(base.model))

    def part(name: str, load: Callable[..., Any], *first: Any) -> Any:
        try:
            module = load(*first, tensors, config=base.config, subfolder=name, local_files_only=True)
            if any(parameter.is_meta for parameter in module.parameters()):
                raise ValueError(MISSING)
        except (OSError, ValueError, RuntimeError, KeyError, SingleFileComponentError) as error:
            # diffusers moves the UNet and the VAE, so to it a tensor that nothing was loaded into is an error.
            reason = MISSING if "meta tensor" in str(error) else first_line(error).partition(". If you want")[0]
            raise RecipeError(
                f"The {name} in {base.model!r} does not fit the configuration {base.config!r}: {reason}. "
                "Download the file again, or give --config a folder of the same kind of model."
            ) from error
        return module

    return (
        tokenizer,
        part("text_encoder", create_diffusers_clip_model_from_ldm, CLIPTextModel),
        part("vae", AutoencoderKL.from_single_file),
        part("unet", UNet2DConditionModel.from_single_file),
        cast(DDPMScheduler, DDPMScheduler.from_pretrained(base.config, subfolder="scheduler")),
    )


def _prediction_type(base: BaseModel, scheduler: DDPMScheduler) -> objectives.PredictionType:
    kind = base.prediction_type or scheduler.config["prediction_type"]
    if kind not in objectives.PREDICTION_TYPES:
        raise RecipeError(
            f"The base predicts {kind!r}; this family trains {' and '.join(objectives.PREDICTION_TYPES)}. "
            "Set prediction_type if the model's scheduler configuration is wrong."
        )
    return cast(objectives.PredictionType, kind)


def _check_clip_skip(base: BaseModel, text_encoder: CLIPTextModel) -> None:
    layers = text_encoder.config.num_hidden_layers
    if base.clip_skip and base.clip_skip >= layers:
        raise RecipeError(f"clip_skip is {base.clip_skip}, but the text encoder has only {layers} layers.")


def _check_channels(unet: UNet2DConditionModel, vae: AutoencoderKL) -> None:
    takes, made = unet.config["in_channels"], vae.config["latent_channels"]
    if takes != made:
        raise RecipeError(
            f"The UNet takes {takes} channels, but the VAE makes {made}: a model for inpainting or editing, "
            "from which no word can be learned here; take the text-to-image model."
        )


FAMILY = StableDiffusion
