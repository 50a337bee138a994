"""What bases of a VAE, a UNet and CLIP text encoders have in common on JAX: pure functions over explicit weights."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Float, Int
from PIL import Image

from pseudoword import families, flax_models, objectives
from pseudoword.errors import RecipeError
from pseudoword.families import checks, solvers
from pseudoword.families.configurations import configuration, sizes
from pseudoword.families.hub_folder import local, scheduler_of
from pseudoword.families.jax_cache import keep_compiled
from pseudoword.families.single_file import is_single_file
from pseudoword.flax_models import Layers
from pseudoword.recipe import BaseModel, Sampler

Latents = Float[jax.Array, "batch channels height width"]
Arrays = Mapping[str, jax.Array]
Weights = Mapping[str, list[jax.Array]]
"""The arrays of each module, by its name in the pipeline."""
Own = TypeVar("Own", bound="LatentDiffusion")


class LatentDiffusion(ABC):
    """A loaded base, frozen: modules whose weights are arguments to whoever compiles (`weights`, `bound`).

    Families add which text encoders there are, and what they make of a prompt.
    """

    name: ClassVar[str]
    """The family's name in the table."""
    kind: ClassVar[str]
    """What people call such bases."""
    texts: ClassVar[Mapping[str, Any]]
    """The pipeline's folder of each text encoder, with its class."""

    def __init__(self, base: BaseModel, modules: Mapping[str, nnx.Module], scheduler: Mapping[str, Any]) -> None:
        """Take a base in a folder, its modules by their names in the pipeline, and its scheduler's configuration."""
        self.base, self.modules, self.scheduler = base, dict(modules), scheduler
        self.vocabularies = families.part(self.name, "words").vocabularies(base)
        self.prediction_type: objectives.PredictionType = checks.prediction_type(base, scheduler)
        self.alphas_cumprod = flax_models.alphas_cumprod(scheduler)
        self.num_timesteps = len(self.alphas_cumprod)
        vae = dataclasses.asdict(self._module("vae").configuration)  # of the one that is used
        own = sizes(base, vae)
        self.resolution, self.latent_factor = own.resolution, own.latent_factor
        self.bucket_multiple = own.bucket_multiple
        self.scaling_factor: float = vae["scaling_factor"]
        self.latent_channels: int = vae["latent_channels"]
        checks.check_latents({"in_channels": self._module("unet").configuration.in_channels}, vae)
        for folder in self.texts:
            checks.check_clip_skip(base, self._module(folder).configuration.num_hidden_layers)
        self._compile()

    def _module(self, name: str) -> Any:
        return self.modules[name]

    # Loading

    @classmethod
    def load(cls: type[Own], base: BaseModel) -> Own:
        """Load a base in diffusers layout on the host in fp32, or raise RecipeError saying what is missing."""
        keep_compiled()
        for model in filter(None, (base.model, base.vae)):
            if is_single_file(model):
                raise RecipeError(
                    f"{model!r} is one file, which the JAX engine does not read; use the torch engine, or save it as a "
                    "folder in diffusers layout."
                )
        base = local(base, (*cls.texts, "unet", "vae"))
        kinds = {**cls.texts, "vae": flax_models.AutoencoderKL, "unet": flax_models.UNet2DConditionModel}
        folders = {name: Path(base.model) / name for name in kinds}
        if base.vae is not None:
            other = dataclasses.replace(base, model=base.vae, revision=None, variant=None)  # those are the base's own
            vae = Path(local(other, ("vae", "")).model)
            folders["vae"] = vae / "vae" if (vae / "vae" / "config.json").is_file() else vae
        variants = dict.fromkeys(kinds, base.variant) | ({"vae": None} if base.vae else {})
        read = partial(flax_models.from_folder, sharding=_host())
        modules = {name: read(kind, folders[name], variant=variants[name]) for name, kind in kinds.items()}
        return cls(base, modules, scheduler_of(base))

    # Where and how it is held

    def bring_vae(self, device: Sharding) -> None:
        """Move the VAE to where pictures are encoded, in fp32."""
        _move(self.modules["vae"], device)

    def leave_vae(self) -> None:
        """Take the VAE off the accelerator once every latent is cached."""
        _move(self.modules["vae"], _host())

    def bring(self, device: Sharding, dtype: Any, *, recomputes: bool = False) -> None:
        """Move all but the VAE to a device, to compute in `dtype`: the UNet's weights are held in it, others in fp32.

        A base that `recomputes` keeps no activations for the gradient: they are computed again.
        """
        checkpoint = jax.checkpoint if recomputes else None
        for name in (*self.texts, "unet"):
            held = dtype if name == "unet" else jnp.float32
            layers = Layers(dtype=dtype, param_dtype=held, checkpoint=checkpoint)
            old = self.modules[name]
            made = type(old)(configuration(self.base, name), layers)  # pyright: ignore[reportCallIssue]
            for new, value in zip(_parameters(made), _parameters(old), strict=True):
                new.set_value(value.get_value())
            self.modules[name] = _move(made, device, held)
        self._compile()

    def to_sample(self) -> None:
        """Put the base where pictures are sampled: on the first device, in bf16 unless that is a CPU."""
        device = SingleDeviceSharding(jax.local_devices()[0])
        self.bring_vae(device)
        self.bring(device, jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)

    def weights(self, *names: str) -> dict[str, list[jax.Array]]:
        """Return the arrays of some modules; by default of those that a loss is computed with."""
        return {name: jax.tree.leaves(nnx.state(self.modules[name])) for name in names or (*self.texts, "unet")}

    def bound(self: Own, weights: Weights) -> Own:
        """Return this family with modules that compute with these weights, which may be those of a trace."""
        own = copy.copy(self)
        own.modules = {**self.modules, **{name: _with(self.modules[name], w) for name, w in weights.items()}}
        return own

    def _compile(self) -> None:
        """Have what is computed outside of the engine's steps compiled when it is first used, and for each shape."""
        self._encoding = jax.jit(lambda weights, pixels: self.bound(weights)._exact_vae("encode", pixels))
        self._decoding = jax.jit(lambda weights, latents: self.bound(weights)._exact_vae("decode", latents))
        self._sampling = jax.jit(lambda weights, *given: self.bound(weights)._sampled(*given))

    def _exact_vae(self, name: str, values: jax.Array) -> Any:
        """Return what the VAE encodes or decodes, with products in fp32, which GPUs and TPUs round if not told so."""
        with jax.default_matmul_precision("highest"):
            return getattr(self._module("vae"), name)(values)

    # The parts of the loss

    def encode_images(self, pixels: Float[np.ndarray, "batch 3 high wide"]) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the latents (the VAE's own posterior)."""
        mean, std = self._encoding(self.weights("vae"), np.asarray(pixels, np.float32))
        return np.asarray(mean), np.asarray(std)

    def latents(self, mean: Latents, std: Latents, posterior: Latents) -> Latents:
        """Return latents sampled from their moments, scaled for the UNet."""
        return (mean + std * posterior) * self.scaling_factor

    def noise_levels(self, timestep: Int[jax.Array, " batch"]) -> tuple[jax.Array, jax.Array]:
        """Return alpha_t and sigma_t as [batch, 1, 1, 1]."""
        signal = jnp.asarray(self.alphas_cumprod)[timestep][:, None, None, None]
        return jnp.sqrt(signal), jnp.sqrt(1 - signal)

    @abstractmethod
    def condition(
        self,
        ids: Arrays,
        rows: Arrays | None,
        placement: jax.Array | None = None,
        prompt: jax.Array | None = None,
    ) -> Any:
        """See `contracts.Family`."""

    @abstractmethod
    def denoise(self, noised: Latents, timestep: jax.Array, condition: Any) -> Latents:
        """See `contracts.Family`."""

    def target(self, latents: Latents, noise: Latents, alpha: jax.Array, sigma: jax.Array) -> Latents:
        """Return what the UNet should predict."""
        return objectives.target(self.prediction_type, latents, noise, alpha, sigma)

    # Pictures

    def sample(
        self,
        ids: Mapping[str, np.ndarray],
        negative_ids: Mapping[str, np.ndarray],
        rows: Mapping[str, np.ndarray] | None,
        *,
        seeds: Sequence[int],
        sampler: Sampler,
        steps: int,
        guidance_scale: float,
        side: int,
        start: tuple[np.ndarray, float] | None = None,
    ) -> Latents:
        """Return scaled latents of prompts; see `contracts.Family`. Noise is NumPy's, one stream for each seed."""
        shape = (self.latent_channels, side // self.latent_factor, side // self.latent_factor)
        drawn = [np.random.Generator(np.random.Philox(seed)).standard_normal(shape, np.float32) for seed in seeds]
        mean, anew = start or (None, 1.0)
        told = {**self.scheduler, "prediction_type": self.prediction_type}
        plan = solvers.plan(sampler, told, steps, first=steps - int(steps * anew))
        begun = np.stack(drawn)
        if mean is not None:  # Meng et al. 2022, SDEdit
            begun = (plan.alpha[0] * self.scaling_factor * mean + plan.sigma[0] * begun).astype(np.float32)
        numbers: dict[str, Any] = {f.name: np.float32(getattr(plan, f.name)) for f in dataclasses.fields(plan)}
        numbers["timestep"] = plan.timestep
        limit = numbers.pop("limit")
        # A scale of 1 or less is none, as in diffusers: without it there is no second prompt to compute.
        negative = self.negative(negative_ids, rows) if guidance_scale > 1 else None
        placement = np.tile([side, side, 0, 0, side, side], (len(seeds), 1))
        weights = jax.tree.map(lambda array: array.addressable_data(0), self.weights())  # of the first device
        return self._sampling(weights, begun, ids, rows, negative, placement, numbers, limit, guidance_scale)

    def negative(
        self, ids: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray] | None
    ) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray] | None, np.ndarray]:
        """Return what makes the condition of negative prompts: ids, rows, and 0 for each that is nothing at all."""
        return ids, rows, np.ones(len(next(iter(ids.values()))), np.float32)

    def _sampled(
        self,
        begun: Latents,
        ids: Arrays,
        rows: Arrays | None,
        negative: tuple[Arrays, Arrays | None, jax.Array] | None,
        placement: jax.Array,
        numbers: Arrays,
        limit: jax.Array,
        guidance_scale: jax.Array,
    ) -> Latents:
        condition = self.condition(ids, rows, placement)
        if negative is not None:
            others, their_rows, given = negative
            without = self.without(self.condition(others, their_rows, placement), given)
            condition = jax.tree.map(lambda *both: jnp.concatenate(both), without, condition)

        def predicted(latents: Latents, timestep: jax.Array) -> Latents:
            several = latents if negative is None else jnp.concatenate([latents, latents])
            prediction = self.denoise(several, jnp.broadcast_to(timestep, len(several)), condition)
            if negative is None:
                return prediction
            unguided, guided = jnp.split(prediction, 2)
            return unguided + guidance_scale * (guided - unguided)  # Ho & Salimans 2022, eq. 6

        def step(carried: tuple[Latents, Latents], at: Arrays) -> tuple[tuple[Latents, Latents], None]:
            latents, before = carried
            prediction = predicted(latents, at["timestep"])
            clean, noise = objectives.found(self.prediction_type, latents, prediction, at["alpha"], at["sigma"])
            clean = jnp.clip(clean, -limit, limit)
            made = at["kept"] * latents + at["clean"] * clean + at["before"] * before + at["noise"] * noise
            return (made, clean), None

        (latents, _), _ = jax.lax.scan(step, (begun, jnp.zeros_like(begun)), numbers)
        return latents

    def without(self, condition: Any, given: jax.Array) -> Any:
        """Return negative prompts' condition, nothing where nothing is `given`, if the base has it so."""
        del given
        return condition

    def decode(self, latents: Latents) -> list[Image.Image]:
        """Return the pictures of latents, one after the other."""
        weights = jax.device_put(self.weights("vae"), latents.sharding)  # the VAE may have left for the host
        unscaled = [one[None] / self.scaling_factor for one in latents]
        values = np.concatenate([np.asarray(self._decoding(weights, one)) for one in unscaled])
        eight = (np.clip(values / 2 + 0.5, 0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        return [Image.fromarray(one) for one in eight]

    def is_full(self, error: Exception) -> bool:
        """Whether an error says that a device's memory is full, so that fewer pictures at once may help."""
        return "RESOURCE_EXHAUSTED" in str(error)


def _host() -> Sharding | None:
    """Return the host's memory, as a place for arrays; None where JAX was told to use the accelerator alone."""
    try:
        return SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return None


def _move(module: nnx.Module, device: Sharding | None, dtype: Any = None) -> nnx.Module:
    """Put a module's arrays on a device, one after the other, and return it."""
    for parameter in _parameters(module):
        value = parameter.get_value()
        if dtype is not None and value.dtype != dtype:
            value = np.asarray(value).astype(dtype)
        parameter.set_value(jax.device_put(value, device))
    return module


def _parameters(module: nnx.Module) -> list[nnx.Param[Any]]:
    return [value for _, value in nnx.iter_graph(module) if isinstance(value, nnx.Param)]


def _with(module: nnx.Module, arrays: Sequence[jax.Array]) -> nnx.Module:
    graph, state = nnx.split(module)
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), arrays))
