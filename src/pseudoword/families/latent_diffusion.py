"""What bases of a VAE, a UNet and CLIP text encoders have in common on PyTorch: diffusers' own modules, frozen."""

from __future__ import annotations

import copy
import functools
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError, create_diffusers_clip_model_from_ldm
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from PIL import Image
from torch import nn

from pseudoword import families, objectives
from pseudoword.concept import Concept
from pseudoword.errors import RecipeError, first_line
from pseudoword.families import samplers
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
        self.prediction_type: objectives.PredictionType = _prediction_type(base, scheduler)
        self.num_timesteps: int = int(scheduler.config["num_train_timesteps"])
        self.alphas_cumprod = scheduler.alphas_cumprod
        sizes = sizes_of(unet.config, vae.config)
        self.latent_factor, self.bucket_multiple = sizes.latent_factor, sizes.bucket_multiple
        self.resolution: int = sizes.resolution
        for text_encoder in text_encoders:
            _check_clip_skip(base, text_encoder)
        _check_latents(unet, vae)

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
        vae = _other_vae(base)
        try:
            return (
                [load_tokenizer(base, folder) for folder, _ in cls.texts.values()],
                [_load_text_encoder(base, folder, kind) for folder, (_, kind) in cls.texts.items()],
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
            _other_vae(base) or part("vae", AutoencoderKL.from_single_file),
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
            module.to(device=device)
            if module.dtype != wanted:  # diffusers warns at any cast, even one that changes nothing
                module.to(dtype=wanted)
        for text_encoder in self.text_encoders.values():
            text_encoder.to(device=device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)

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

    @abstractmethod
    def condition(self, ids: Mapping[str, torch.Tensor], rows: Rows | None, placement: torch.Tensor | None) -> Any:
        """See `contracts.Family`."""

    @abstractmethod
    def denoise(self, noised: Latents, timestep: torch.Tensor, condition: Any) -> Latents:
        """See `contracts.Family`."""

    def target(self, latents: Latents, noise: Latents, alpha: torch.Tensor, sigma: torch.Tensor) -> Latents:
        """Return what the UNet should predict."""
        return objectives.target(self.prediction_type, latents, noise, alpha, sigma)

    # Beyond training

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
            _pool_at_end(text_encoder, tokenizer)
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
        made = (_from_latents(self.redraw_class) if redraws else self.pipeline_class)(
            **nothing,
            vae=self.vae,
            unet=self.unet,
            scheduler=samplers.scheduler(sampler, self.scheduler, self.prediction_type),
            **self.nothing_to_check(),
        )
        made.image_processor.register_to_config(vae_latent_channels=self.vae.config["latent_channels"])
        return made

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


@functools.cache
def _from_latents(kind: Any) -> Any:
    """Return a pipeline's class that takes latents of any number of channels for what it starts from."""

    def prepare_latents(
        self: Any,
        image: torch.Tensor,
        timestep: torch.Tensor,
        batch: int,
        count: int,
        dtype: Any,
        device: Any,
        generator: Any = None,
        add_noise: bool = True,
    ) -> torch.Tensor:
        start = image.to(device=device, dtype=dtype).expand(batch * count, -1, -1, -1)
        noise = randn_tensor(start.shape, generator=generator, device=device, dtype=dtype)
        return self.scheduler.add_noise(start, noise, timestep) if add_noise else start

    return type(kind.__name__, (kind,), {"prepare_latents": prepare_latents})


def _load_text_encoder(base: BaseModel, folder: str, kind: Any) -> Any:
    """Load a text encoder in fp32; bases may have its weights only without the variant's suffix."""
    options: dict[str, Any] = {"subfolder": folder, "revision": base.revision, "dtype": torch.float32}
    if base.variant:
        try:
            return kind.from_pretrained(base.model, variant=base.variant, **options)
        except OSError:
            log.info("No text encoder of variant %r; loading the plain one.", base.variant)
    return kind.from_pretrained(base.model, **options)


def _other_vae(base: BaseModel) -> AutoencoderKL | None:
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


def _pool_at_end(text_encoder: Any, tokenizer: Any) -> None:
    """Let a text encoder that will be saved with added tokens pool at the end of a prompt, if it is one that pools.

    Where its configuration says `eos_token_id` 2, as those on the Hub do, transformers would take the largest id
    instead, which is an added token (transformers issue 24650).
    """
    if hasattr(text_encoder, "text_projection") and text_encoder.config.eos_token_id == 2:
        text_encoder.config.eos_token_id = tokenizer.eos_token_id


def _prediction_type(base: BaseModel, scheduler: DDPMScheduler) -> objectives.PredictionType:
    kind = base.prediction_type or scheduler.config["prediction_type"]
    if kind not in objectives.PREDICTION_TYPES:
        raise RecipeError(
            f"The base predicts {kind!r}; this family trains {' and '.join(objectives.PREDICTION_TYPES)}. "
            "Set prediction_type if the model's scheduler configuration is wrong."
        )
    return cast(objectives.PredictionType, kind)


def _check_clip_skip(base: BaseModel, text_encoder: Any) -> None:
    layers = text_encoder.config.num_hidden_layers
    if base.clip_skip and base.clip_skip >= layers:
        raise RecipeError(f"clip_skip is {base.clip_skip}, but the text encoder has only {layers} layers.")


def _check_latents(unet: UNet2DConditionModel, vae: AutoencoderKL) -> None:
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
