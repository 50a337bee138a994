"""What a family, a method and an engine promise; the seams of the house, NumPy at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from PIL import Image

    from pseudoword.batch import Batch, Draw
    from pseudoword.concept import Concept
    from pseudoword.contents import Contents, Word
    from pseudoword.objectives import PredictionType
    from pseudoword.recipe import BaseModel, Sampler
    from pseudoword.vocabulary import Vocabulary

T = TypeVar("T")
Arrays = Mapping[str, Any]
"""Named arrays of the engine's library: a concept's parameters, their gradients, or an optimizer's state."""


class NonFiniteLoss(ArithmeticError):
    """Losses, gradients or updates that are NaN or infinite; all parameters are still those of the step before."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        named = [f"of {token} {reason}" if len(reasons) > 1 else reason for token, reason in reasons.items()]
        super().__init__("; ".join(named))
        self.reasons = reasons
        """What is not finite, by the token of each concept that this befell."""


class Method(Protocol):
    """How a word's rows follow from its parameters, and how these are updated. Array code over a namespace."""

    def params(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the parameters from which `rows` gives these starting rows, one block per text encoder."""
        ...

    def state(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the optimizer state before the first step."""
        ...

    def state_of_adam(self, encoder: str, means: np.ndarray, squares: np.ndarray, steps: int) -> dict[str, np.ndarray]:
        """Return the state after another trainer's AdamW has done some steps on a text encoder's rows."""
        ...

    def rows(self, xp: ModuleType, params: Arrays) -> dict[str, Any]:
        """Return the rows `[vectors, width]` per text encoder; differentiable."""
        ...

    def update(
        self, xp: ModuleType, params: Arrays, grads: Arrays, state: Arrays, lr: float, step: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return parameters and state after step `step` (from 0) of one concept, given its gradients."""
        ...


class Format(Protocol):
    """A module that reads and writes one kind of embedding file, as named values."""

    @property
    def SUFFIXES(self) -> tuple[str, ...]:  # noqa: N802
        """How files of this format that are written may end."""
        ...

    def owns(self, contents: Contents) -> bool:
        """Whether a file's content is of this format."""
        ...

    def read(self, contents: Contents, stem: str) -> list[Word]:
        """Return the file's words, called as its content says, or as the file's stem."""
        ...

    def refuses(self, concept: Concept) -> str | None:
        """Say why a word cannot be written so ("holds …"); None if it can."""
        ...

    def write(self, concept: Concept, name: str) -> dict[str, Any]:
        """Return the file's values; `name` is what the word is called where the format has a place for that."""
        ...


class Sizes(Protocol):
    """The sizes of a base's pictures, in pixels."""

    @property
    def resolution(self) -> int:
        """The model's own side of a picture."""
        ...

    @property
    def latent_factor(self) -> int:
        """Pixels to a side of a latent; pictures' sides must be multiples of it."""
        ...

    @property
    def bucket_multiple(self) -> int:
        """What sides must be multiples of for the denoiser to halve latents evenly at each of its levels."""
        ...


class Family(Protocol):
    """A loaded base model of some kind, frozen. Arrays are the engine's own unless said otherwise.

    A family's folder holds a module for each engine that it runs on (`torch`, `jax`), its class as `FAMILY`; `facts`
    (KIND, WORDS, PIPELINE, TAGS, CONFIG, `owns(index)`: whether a model_index.json is such a base's); `words`, whose
    `vocabularies(base)` reads nothing but tokenizers and tables; `sizes`, whose `sizes(base)` reads nothing but
    configurations; `costs`, which counts what a step needs in memory on layers without weights (`weights(base)`,
    `kept_for_gradient(base, size, count)`); `single_file`, whose `usual_config(base)` names a base on the Hub that
    configures a checkpoint in one file, whose `owns(names)` knows such files by their tensors, whose `state_dict(path)`
    reads them, and whose `noise_options(path)` says what they tell of a scheduler; and `miniature`,
    whose `write(folder)` makes a base of random weights in the real classes.
    """

    vocabularies: Mapping[str, Vocabulary]
    """Per text encoder."""
    num_timesteps: int
    prediction_type: PredictionType
    """What the denoiser predicts."""
    resolution: int
    """The model's own side of a picture, in pixels."""
    latent_factor: int
    """Pixels to a side of a latent; pictures' sides must be multiples of it."""
    bucket_multiple: int
    """Pixels that sides must be multiples of for the denoiser to halve latents evenly at each of its levels."""

    @property
    def modules(self) -> Mapping[str, Any]:
        """The frozen modules by their names in the pipeline."""
        ...

    @classmethod
    def load(cls, base: BaseModel) -> Self:
        """Load a base on the host; RecipeError says what is missing."""
        ...

    # The parts of the loss

    def encode_images(self, pixels: Float[np.ndarray, "batch 3 height width"]) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the pictures' latents, NumPy arrays `[batch, channels, h, w]`."""
        ...

    def latents(self, mean: Any, std: Any, posterior: Any) -> Any:
        """Return scaled latents sampled from their moments with standard normal numbers, all of one shape."""
        ...

    def noise_levels(self, timestep: Any) -> tuple[Any, Any]:
        """Return alpha and sigma of timesteps `[batch]`, shaped `[batch, 1, 1, 1]` to multiply latents."""
        ...

    def condition(self, ids: Arrays, rows: Arrays | None, placement: Any, prompt: Any = None) -> Any:
        """Return what the denoiser is conditioned on, for ids `[prompts, tokens]` and rows `[rows, width]` per encoder.

        Ids from a table's size on are looked up in the rows. `placement` is that of the batch (see `Batch`), `prompt`
        which of the prompts each of its pictures has; by default they are one for each.
        """
        ...

    def denoise(self, noised: Any, timestep: Any, condition: Any) -> Any:
        """Return the denoiser's prediction in fp32, shaped as the latents."""
        ...

    def target(self, latents: Any, noise: Any, alpha: Any, sigma: Any) -> Any:
        """Return what the prediction should be, shaped as the latents."""
        ...

    # Where and how it is held, as the torch engine asks for it; a JAX engine's families have `weights` and `bound`

    def to(self, device: Any, dtype: Any, *, vae_dtype: Any = None) -> None:
        """Move the base to a device, the denoiser to `dtype`, the VAE to `vae_dtype` or fp32, the rest in fp32."""
        ...

    def bring_vae(self, device: Any) -> None:
        """Move the VAE to a device, in fp32, to encode pictures."""
        ...

    def bring(self, device: Any, dtype: Any, *, eight_bits: bool = False, channels_last: bool = False) -> None:
        """Move all but the VAE to a device, the denoiser in `dtype`, the rest in fp32.

        With `eight_bits` the denoiser's linear maps are held in as many, and the text encoders' in `dtype`.
        """
        ...

    def compile(self, mode: str | None, *, dynamic: bool | None = None) -> None:
        """Compile the denoiser for training steps, in a mode of torch.compile; None goes back."""
        ...

    @property
    def layers(self) -> int:
        """How many convolutions and linear maps the denoiser has."""
        ...

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        ...

    def use_xformers(self) -> None:
        """Compute attention with xformers."""
        ...

    def leave_vae(self) -> None:
        """Take the VAE off the accelerator."""
        ...

    # Pictures

    def to_sample(self) -> None:
        """Put the base on the best device there is, in the precision that pictures are sampled in there."""
        ...

    def sample(
        self,
        ids: Arrays,
        negative_ids: Arrays,
        rows: Arrays | None,
        *,
        seeds: Sequence[int],
        sampler: Sampler,
        steps: int,
        guidance_scale: float,
        side: int,
        start: tuple[np.ndarray, float] | None = None,
    ) -> Any:
        """Return scaled latents of prompts and negative prompts, given as NumPy ids and rows per encoder.

        `start` has the mean of latents to start from (see `encode_images`), and how much of them is drawn anew.
        Raises ValueError, AssertionError, IndexError or FloatingPointError for steps that a sampler cannot take.
        """
        ...

    def decode(self, latents: Any) -> list[Image.Image]:
        """Return the pictures of scaled latents `[batch, channels, height, width]`, wherever the VAE has gone."""
        ...

    def is_full(self, error: Exception) -> bool:
        """Whether an error says that memory is full; if so, the device gets back what was held for nothing."""
        ...

    # With diffusers, on PyTorch alone

    def pipeline(self, sampler: Sampler = "dpm++", *, redraws: bool = False) -> Any:
        """Return a diffusers pipeline of these very modules with one of the samplers, for `prompt_inputs` alone.

        One that `redraws` starts from latents, its argument `image`, instead of noise alone.
        """
        ...

    def prompt_inputs(self, ids: Arrays, negative_ids: Arrays, rows: Arrays | None) -> dict[str, Any]:
        """Return the pipeline's arguments for prompts and negative prompts, given as NumPy ids and rows per encoder."""
        ...

    def with_words(self, concepts: Sequence[Concept]) -> Any:
        """Return a pipeline with the words inside, for others to load; the base itself stays as it is."""
        ...


class Engine(Protocol):
    """Who differentiates and updates, on which devices and processes."""

    is_main: bool
    """Whether this process writes the run's files."""
    processes: int
    step_number: int
    """Optimizer steps done."""

    def on_main(self, action: Callable[[], T]) -> T:
        """Let the main process act and return its result on every process; its error is raised on all of them."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; the same answer on all."""
        ...

    def prepare(self, family: Family) -> None:
        """Put what encodes pictures on the device; the rest of the base follows when training starts."""
        ...

    def compile(self, first: Callable[[], Sequence[tuple[Batch, Draw]]], steps: int, known: bool | None) -> bool:
        """Compile what is worth it over so many steps, as the recipe says, and return whether it is compiled.

        `first` makes the first step's pictures; `known` is what an earlier part of the run decided.
        """
        ...

    def start(
        self,
        family: Family,
        method: Method,
        rows: Mapping[str, Mapping[str, np.ndarray]],
        state: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ) -> None:
        """Take up concepts with their starting rows `[vectors, width]` by token and text encoder.

        Puts the frozen base on the device in this engine's precision. `state` has those arrays of the optimizer's
        state, by token, that do not start as the method starts them.
        """
        ...

    def share(self, batch_size: int, gradient_accumulation_steps: int) -> list[int]:
        """Return this process' pictures of a step: indices into each concept's own global batch."""
        ...

    @property
    def devices(self) -> int:
        """How many this process divides pictures over that are taken at once."""
        ...

    def free_memory(self) -> int:
        """Return the bytes that are free on the devices."""
        ...

    def kept_for_gradient(self, base: BaseModel, shape: tuple[int, int, int], pictures: int) -> int:
        """Return the bytes that a forward pass over so many pictures, with latents of a shape, keeps for the gradient.

        Counted on the layers, once the engine has started; nothing is computed.
        """
        ...

    def step(self, micro_batches: Sequence[tuple[Batch, Draw]], lr: float) -> dict[str, float]:
        """Carry out one optimizer step and return the loss of each concept's global batch, or raise NonFiniteLoss.

        Every concept is updated by its own pictures, as it would be alone; one that has none stays as it is.
        """
        ...

    def fixed_loss(self, batches: Sequence[tuple[Batch, Draw]]) -> dict[str, float]:
        """Return each concept's mean loss over given draws without training: comparable between steps and runs."""
        ...

    def rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the learned rows by token and text encoder."""
        ...

    def snapshot(self, tokens: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return everything a later step of these concepts, or of all, depends on, as named arrays."""
        ...

    def restore(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Go back to a snapshot taken after `step` steps."""
        ...

    def arithmetic(self) -> dict[str, str]:
        """Return what the last bits of the result depend on besides the recipe."""
        ...
