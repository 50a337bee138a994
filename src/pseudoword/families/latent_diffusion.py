"""What bases of a VAE, a UNet and CLIP text encoders have in common on PyTorch: diffusers' own modules, frozen."""

from __future__ import annotations

import copy
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError, create_diffusers_clip_model_from_ldm
from jaxtyping import Float, Int
from PIL import Image
from torch import nn

from pseudoword import families, objectives
from pseudoword.concept import Concept
from pseudoword.errors import RecipeError, first_line
from pseudoword.families import checks, memory, parts, samplers
from pseudoword.families.clip_words import load_tokenizer
from pseudoword.families.configurations import sizes_of
from pseudoword.families.single_file import is_single_file
from pseudoword.recipe import BaseModel, Sampler
from pseudoword.vocabulary import Vocabulary

log = logging.getLogger(__name__)

LOADING = threading.Lock()
"""transformers and diffusers switch the whole process to empty weights while they load, so one at a time."""

MISSING = "tensors are missing"

Latents = Float[torch.Tensor, "batch channels height width"]
Rows = Mapping[str, torch.Tensor]
Blocks = Mapping[str, np.ndarray]
Loaded = TypeVar("Loaded", bound="LatentDiffusion")


class LatentDiffusion(ABC):
    """A loaded base: modules on a device, the UNet in `dtype`, everything else in fp32, nothing trainable.

    Families add which text encoders there are, and what they make of a prompt.
    """

    name: ClassVar[str]
    """The family's name in the table."""
    kind: ClassVar[str]
    """What people call such bases."""
    texts: ClassVar[Mapping[str, tuple[str, Any]]]
    """The pipeline's folder of each text encoder, with that of its tokenizer and its class."""
    pipeline_class: ClassVar[Any]
    vae_overflows: ClassVar[bool] = False
    """Whether VAEs of this family overflow in fp16 unless their configuration says that they do not."""
    redraw_class: ClassVar[Any]
    """The pipeline that starts from a picture."""

    def __init__(
        self,
        base: BaseModel,
        tokenizers: Sequence[Any],
        text_encoders: Sequence[Any],
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: DDPMScheduler,
    ) -> None:
        """Take tokenizers and text encoders in the order of `texts`."""
        self.base = base
        # Any: these classes' own annotations of `to`, `train` and `__call__` mislead type checkers.
        self.text_encoders: dict[str, Any] = dict(zip(self.texts, text_encoders, strict=True))
        self.vae: Any = vae
        self.unet: Any = unet
        self.scheduler = scheduler
        for module in self.modules.values():
            module.requires_grad_(False).eval()
        tables = [e.get_input_embeddings().weight.detach().float().cpu().numpy() for e in text_encoders]
        self.encoders = self.names_of([table.shape[1] for table in tables])
        self.vocabularies = {
            name: Vocabulary(tokenizer, table)
            for name, tokenizer, table in zip(self.encoders, tokenizers, tables, strict=True)
        }
        self.prediction_type: objectives.PredictionType = checks.prediction_type(base, scheduler.config)
        self.num_timesteps: int = int(scheduler.config["num_train_timesteps"])
        self.alphas_cumprod = scheduler.alphas_cumprod
        sizes = sizes_of(unet.config, vae.config)
        self.latent_factor, self.bucket_multiple = sizes.latent_factor, sizes.bucket_multiple
        self.resolution: int = sizes.resolution
        for text_encoder in text_encoders:
            checks.check_clip_skip(base, text_encoder.config.num_hidden_layers)
        checks.check_latents(unet.config, vae.config)
        self._compiled: Any = None

    @staticmethod
    @abstractmethod
    def names_of(widths: Sequence[int]) -> list[str]:
        """Return what files call the text encoders of these embedding widths."""

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The frozen modules by their names in the pipeline."""
        return {**self.text_encoders, "vae": self.vae, "unet": self.unet}

    # Loading

    @classmethod
    def load(cls: type[Loaded], base: BaseModel) -> Loaded:
        """Load a base on the CPU in fp32, or raise RecipeError saying what is missing."""
        with LOADING:
            return cls(base, *(cls._parts_of_file(base) if is_single_file(base.model) else cls._parts(base)))

    @classmethod
    def _parts(cls, base: BaseModel) -> tuple[Any, ...]:
        """Load what the constructor takes from a folder in diffusers layout, or from the Hub."""
        where: dict[str, Any] = {"revision": base.revision}
        half = {"variant": base.variant, "torch_dtype": torch.float32, **where}
        vae = parts.other_vae(base)
        try:
            return (
                [load_tokenizer(base, folder) for folder, _ in cls.texts.values()],
                [parts.load_text_encoder(base, folder, kind) for folder, (_, kind) in cls.texts.items()],
                vae or AutoencoderKL.from_pretrained(base.model, subfolder="vae", **half),
                UNet2DConditionModel.from_pretrained(base.model, subfolder="unet", **half),
                DDPMScheduler.from_pretrained(base.model, subfolder="scheduler", **where),
            )
        except (OSError, ValueError, RecipeError) as error:
            needed = ", ".join([*(name for text, (words, _) in cls.texts.items() for name in (words, text)), "vae"])
            raise RecipeError(
                f"Cannot load {base.model!r} as {cls.kind} in diffusers layout: {first_line(error)} "
                f"Give a folder or Hub id that has {needed}, unet and scheduler."
            ) from error

    @classmethod
    def _parts_of_file(cls, base: BaseModel) -> tuple[Any, ...]:
        """Load what a checkpoint in one file holds and what its configuration adds, or raise RecipeError."""
        tokenizers = [load_tokenizer(base, folder) for folder, _ in cls.texts.values()]
        file = families.part(cls.name, "single_file")
        tensors, told = file.state_dict(Path(base.model)), file.noise_options(Path(base.model))

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
            tokenizers,
            [part(name, create_diffusers_clip_model_from_ldm, kind) for name, (_, kind) in cls.texts.items()],
            parts.other_vae(base) or part("vae", AutoencoderKL.from_single_file),
            part("unet", UNet2DConditionModel.from_single_file),
            DDPMScheduler.from_pretrained(base.config, subfolder="scheduler", **told),
        )

    # Where and how it is held

    def to(self, device: torch.device | str, dtype: torch.dtype, *, vae_dtype: torch.dtype | None = None) -> None:
        """Move the base to a device, the UNet to `dtype`, the VAE to `vae_dtype` or fp32; text encoders are fp32.

        A VAE that would overflow in fp16, as SDXL's own does, stays in fp32.
        """
        if vae_dtype == torch.float16 and self.vae_overflows and self.vae.config.get("force_upcast", False):
            vae_dtype = torch.float32
        for module, wanted in ((self.unet, dtype), (self.vae, vae_dtype or torch.float32)):
            memory.move(module, device, wanted)
        for text_encoder in self.text_encoders.values():
            text_encoder.to(device=device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)

    def to_sample(self) -> None:
        """Move the base to the best device there is, in half precision on a GPU."""
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        dtype = torch.float16 if device == "cuda" else torch.float32
        self.to(device, dtype, vae_dtype=dtype)

    def bring_vae(self, device: torch.device | str) -> None:
        """Move the VAE to a device, in fp32, to encode pictures."""
        memory.move(self.vae, device, torch.float32)

    def bring(
        self,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        eight_bits: bool = False,
        channels_last: bool = False,
    ) -> None:
        """Move all but the VAE to a device; see `contracts.Family`."""
        memory.move(self.unet, "cpu" if eight_bits else device, dtype)
        if eight_bits:
            memory.lighten(self.unet, self.text_encoders.values(), dtype)
            self.unet.to(device=device)
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        for text_encoder in self.text_encoders.values():
            text_encoder.to(device=device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)

    def compile(self, mode: str | None, *, dynamic: bool | None = None) -> None:
        """Compile the UNet for training steps; sampling and measuring take the plain one. None goes back to it."""
        self._compiled = None if mode is None else torch.compile(self.unet, mode=mode, dynamic=dynamic)

    @property
    def layers(self) -> int:
        """How many convolutions and linear maps the UNet has."""
        return sum(isinstance(module, nn.Conv2d | nn.Linear) for module in self.unet.modules())

    @property
    def denoiser(self) -> Any:
        """The UNet, or where a gradient is wanted what it was compiled to."""
        if self._compiled is None or not torch.is_grad_enabled():
            return self.unet
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass. The modules have no dropout, so training mode changes nothing."""
        self.unet.enable_gradient_checkpointing()
        self.unet.train()
        for text in self.text_encoders.values():
            # A later transformers 5 renamed the method and deprecated the old name.
            old = "gradient_checkpointing_enable"
            enable = getattr(text, "activation_checkpointing_enable", None) or getattr(text, old)
            enable({"use_reentrant": False})
            text.train()

    def use_xformers(self) -> None:
        """Compute the UNet's attention with xformers."""
        self.unet.enable_xformers_memory_efficient_attention()

    def leave_vae(self) -> None:
        """Take the VAE off the accelerator once every latent is cached."""
        self.vae.to(device="cpu")
        memory.empty_cache()  # what it worked in would count as taken

    # The parts of the loss

    @torch.no_grad()
    def encode_images(self, pixels: Float[np.ndarray, "batch 3 high wide"]) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the latents (the VAE's own posterior), computed in its precision."""
        values = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.vae.device, self.vae.dtype)
        posterior = self.vae.encode(values).latent_dist
        return posterior.mean.float().cpu().numpy(), posterior.std.float().cpu().numpy()

    def latents(self, mean: Latents, std: Latents, posterior: Latents) -> Latents:
        """Return latents sampled from their moments, scaled for the UNet."""
        return (mean + std * posterior) * self.vae.config["scaling_factor"]

    def noise_levels(self, timestep: Int[torch.Tensor, " batch"]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return alpha_t and sigma_t as [batch, 1, 1, 1]."""
        signal = self.alphas_cumprod[timestep][:, None, None, None]
        return signal.sqrt(), (1 - signal).sqrt()

    def text_precision(self) -> AbstractContextManager[Any]:
        """Run text encoders in the precision that their weights are held in; under an engine's autocast, in that."""
        text = next(iter(self.text_encoders.values()))
        held = text.get_input_embeddings().weight
        return nullcontext() if held.dtype == torch.float32 else torch.autocast(held.device.type, held.dtype)

    @abstractmethod
    def condition(
        self,
        ids: Mapping[str, torch.Tensor],
        rows: Rows | None,
        placement: torch.Tensor | None = None,
        prompt: torch.Tensor | None = None,
    ) -> Any:
        """See `contracts.Family`."""

    @abstractmethod
    def denoise(self, noised: Latents, timestep: torch.Tensor, condition: Any) -> Latents:
        """See `contracts.Family`."""

    def target(self, latents: Latents, noise: Latents, alpha: torch.Tensor, sigma: torch.Tensor) -> Latents:
        """Return what the UNet should predict."""
        return objectives.target(self.prediction_type, latents, noise, alpha, sigma)

    # Beyond training

    @abstractmethod
    def prompt_inputs(self, ids: Blocks, negative_ids: Blocks, rows: Blocks | None) -> dict[str, torch.Tensor]:
        """See `contracts.Family`."""

    def is_full(self, error: Exception) -> bool:
        """Whether an error says that memory is full; if so, the device gets back what was held for nothing."""
        if full := memory.is_full(error):
            memory.empty_cache()
        return full

    def ids_and_rows(
        self, ids: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray] | None
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
        """Return NumPy ids and rows as tensors, the ids where the text encoders are."""
        device = next(iter(self.text_encoders.values())).device
        own = {encoder: torch.from_numpy(block).to(device) for encoder, block in ids.items()}
        return own, {encoder: torch.tensor(block) for encoder, block in rows.items()} if rows else None

    def with_words(self, concepts: Sequence[Concept]) -> Any:
        """Return a pipeline with the words inside: rows in copies of the tables, tokens in copies of the tokenizers."""
        own: dict[str, Any] = {}
        for encoder, (folder, (words, _)) in zip(self.encoders, self.texts.items(), strict=True):
            tokenizer = copy.deepcopy(self.vocabularies[encoder].tokenizer)
            text_encoder = copy.deepcopy(self.text_encoders[folder]).to(device="cpu")
            for concept in concepts:
                tokenizer.add_tokens(concept.tokens)
            size = max(len(tokenizer), text_encoder.get_input_embeddings().num_embeddings)
            table = text_encoder.resize_token_embeddings(size, mean_resizing=False).weight.data
            for concept in concepts:
                table[tokenizer.convert_tokens_to_ids(concept.tokens)] = torch.tensor(concept.rows[encoder])
            parts.pool_at_end(text_encoder, tokenizer)
            own |= {words: tokenizer, folder: text_encoder}
        # Everything else as the base has it: its scheduler, and unless it is one file, which has neither, its safety
        # checker and its feature extractor.
        pipeline: Any = self.pipeline_class.from_pretrained(
            self.base.config or self.base.model,
            revision=self.base.revision,
            variant=self.base.variant,
            vae=self.vae,
            unet=self.unet,
            **own,
            **(self.nothing_to_check() if self.base.config else {}),
        )
        pipeline.scheduler.register_to_config(prediction_type=self.prediction_type)
        if self.scheduler.config.get("rescale_betas_zero_snr", False):
            pipeline.scheduler.register_to_config(rescale_betas_zero_snr=True, timestep_spacing="trailing")
        return pipeline

    def nothing_to_check(self) -> dict[str, Any]:
        """Return the pipeline's arguments that leave out safety checkers and watermarks."""
        return {}

    def pipeline(self, sampler: Sampler = "dpm++", *, redraws: bool = False) -> Any:
        """Return a diffusers pipeline of these very modules with one of the samplers, for `prompt_inputs` alone.

        One that `redraws` starts from latents, its argument `image`, instead of noise alone. It has no text encoder:
        diffusers would cast prompts to that one's precision, and the UNet's may be another.
        """
        nothing = dict.fromkeys([name for text, (words, _) in self.texts.items() for name in (words, text)])
        made = (samplers.from_latents(self.redraw_class) if redraws else self.pipeline_class)(
            **nothing,
            vae=self.vae,
            unet=self.unet,
            scheduler=samplers.scheduler(sampler, self.scheduler, self.prediction_type),
            **self.nothing_to_check(),
        )
        made.image_processor.register_to_config(vae_latent_channels=self.vae.config["latent_channels"])
        return made

    def sample(
        self,
        ids: Blocks,
        negative_ids: Blocks,
        rows: Blocks | None,
        *,
        seeds: Sequence[int],
        sampler: Sampler,
        steps: int,
        guidance_scale: float,
        side: int,
        start: tuple[np.ndarray, float] | None = None,
    ) -> Latents:
        """See `contracts.Family`."""
        pipeline = self.pipeline(sampler, redraws=start is not None)
        pipeline.set_progress_bar_config(disable=True)
        begun: dict[str, Any] = {"height": side, "width": side}
        if start is not None:
            begun = {"image": torch.from_numpy(start[0]) * self.vae.config["scaling_factor"], "strength": start[1]}
        return pipeline(
            **self.prompt_inputs(ids, negative_ids, rows),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            **begun,
            output_type="latent",
        ).images

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
