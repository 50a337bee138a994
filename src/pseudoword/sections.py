"""The sections of a recipe: what is learned, from what, on which base, how, and what it leaves."""

from __future__ import annotations

import re
import typing
from dataclasses import dataclass
from typing import Literal, Optional

from pseudoword import augmentations, weightings
from pseudoword.errors import RecipeError
from pseudoword.placeholder import check_new_token
from pseudoword.settings import at_least, check_seed, settle_types

# Options are written Optional[X], not X | None: tyro checks the latter's defaults with typeguard, whose import
# alone would cost --help 0.1 s.


LrScheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "piecewise_constant",
]
Precision = Literal["no", "fp16", "bf16"]
Sampler = Literal["dpm++", "dpm++-karras", "unipc", "euler", "euler-a", "heun", "ddim", "ddpm", "pndm"]
IN_JAX: tuple[Sampler, ...] = ("ddim", "dpm++")
"""Samplers that the JAX engine has."""
Tracker = Literal[
    "none",
    "all",
    "tensorboard",
    "wandb",
    "trackio",
    "comet_ml",
    "aim",
    "mlflow",
    "clearml",
    "dvclive",
    "swanlab",
]
"""Accelerate's names of experiment trackers, all of those installed, or none."""
Fit = Literal["crop", "squash", "bucket"]
MOST_VECTORS = 510
"""Beyond any text encoder's length."""


@dataclass(frozen=True)
class ConceptRecipe:
    """The word to learn, and what it is learned from."""

    token: str
    """The placeholder token: the new word, as you will write it in prompts. Usually '<something>'."""
    pictures: str
    """Folder with the pictures of the concept, or a dataset's Hub id. Three to six good ones are enough."""
    initializer: str
    """Where the rows start: a word or phrase close to the concept ('toy'), or an embedding file to go on from."""
    property: Literal["object", "style"] = "object"
    """What the word stands for; chooses the caption templates ('a photo of a …' or 'a painting in the style of …')."""
    num_vectors: int = 1
    """Rows the word has. More hold more detail, cost prompt length, and are harder to put into new scenes."""
    templates: str | None = None
    """A text file of caption templates of your own, one a line, {} or [name] where the word goes."""

    def __post_init__(self) -> None:
        settle_types(self)
        check_new_token(self.token)
        at_least(1, num_vectors=self.num_vectors)
        if self.num_vectors > MOST_VECTORS:
            raise RecipeError(f"num_vectors must be at most {MOST_VECTORS}, but is {self.num_vectors}.")
        if not self.pictures:
            raise RecipeError(f"The pictures of {self.token!r} need a folder, but it is empty; '.' is this one.")
        if not self.initializer.strip():
            raise RecipeError(f"The initializer of {self.token!r} is empty; give a word close to it, such as 'toy'.")


@dataclass(frozen=True)
class BaseModel:
    """The frozen text-to-image model that the word is learned for."""

    model: str
    """Folder in diffusers layout, Hub id, .safetensors or .ckpt file, or 'toybox', the small model inside."""
    family: str | None = None
    """The kind of base model: 'sd' (Stable Diffusion 1.x and 2.x) or 'sdxl'; by default what the model itself says."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    config: str | None = None
    """With one file: folder in diffusers layout (weights or not) or Hub id to configure it; by default SD 1.5/2.1."""
    variant: str | None = None
    """Variant of the weight files, such as 'fp16'."""
    tokenizer: str | None = None
    """Folder or Hub id of another tokenizer than the model's own."""
    vae: str | None = None
    """Folder, file or Hub id of another VAE than the model's own."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the denoiser predicts; by default what the model's scheduler configuration says."""
    clip_skip: int | None = None
    """Leave out this many last layers of the text encoder. Some SD 1.x models want 1, A1111's "Clip skip 2"."""

    def __post_init__(self) -> None:
        settle_types(self)
        if self.clip_skip is not None:
            at_least(0, clip_skip=self.clip_skip)


@dataclass(frozen=True)
class Data:
    """How pictures become training examples."""

    resolution: int | None = None
    """Side of the square training pictures in pixels; by default the model's own."""
    fit: Fit = "crop"
    """'crop' keeps the aspect ratio and cuts squares; 'bucket' keeps it and trains each picture at the size nearest to
    its shape, of as many pixels at most; 'squash' resizes to a square, as the guide's script."""
    crops: int = 1
    """Squares that 'crop' cuts, evenly spaced along the longer side, of which a step sees one. 1 is the centre."""
    alpha_colour: str = "white"
    """What transparent pixels become: a colour's name or '#rrggbb'."""
    captions: Literal["templates", "files"] = "templates"
    """'files': each picture's own, from NAME.txt beside it or metadata.jsonl, with {} or the word itself in it."""
    shuffle_tags: bool = False
    """Shuffle the comma-separated tags of captions from files at every step."""
    keep_tags: int = 1
    """Tags at the front that stay where they are when the others are shuffled."""
    caption_dropout: float = 0.0
    """Share of captions replaced by the bare word. Not by nothing: a caption without the word teaches it nothing."""
    masks: Literal["files", "alpha", "none"] = "files"
    """What weights the loss: NAME-mask.png beside NAME, white where it counts; each picture's opacity; or nothing."""
    mask_outside: float = 0.1
    """Weight of the loss where a mask is black; inside it is 1."""
    flip_p: float = 0.5
    """Share of pictures mirrored left to right. 0 for text, logos and faces that are not symmetric."""
    augment: Optional[tuple[str, ...]] = None
    """How pictures are changed at random: 'colour-jitter' (brightness, contrast, saturation), 'crop-jitter' (a part of
    the usual frame), each with a strength: 'colour-jitter=0.2'. None by default."""
    augment_variants: Optional[int] = None
    """Augmented variants of each picture, and of its mirror image, that are encoded once and drawn from; by default 8.
    0 augments anew at every step: endless variety, but every step encodes and the VAE stays in memory."""
    recursive: bool = False
    """Also take the pictures in folders inside the folder."""
    split: str = "train"
    """Which split of a dataset from the Hub, or part of one: 'train[:5]'."""
    repeats: int = 100
    """How often an epoch goes through each picture; matters only where a length is given in epochs."""
    workers: int = 0
    """Processes that load a dataset whose pictures cannot be cached. 0 loads in the main process."""

    def __post_init__(self) -> None:
        settle_types(self)
        at_least(1, repeats=self.repeats, crops=self.crops)
        at_least(0, workers=self.workers, keep_tags=self.keep_tags)
        if self.resolution is not None:
            at_least(8, resolution=self.resolution)
        for name in ("flip_p", "caption_dropout", "mask_outside"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} is a share between 0 and 1, not {getattr(self, name)}.")
        if self.crops > 1 and self.fit != "crop":
            raise RecipeError(f"crops is {self.crops}, but fit {self.fit!r} cuts no squares; use fit 'crop' or 1.")
        if self.shuffle_tags and self.captions == "templates":
            raise RecipeError("shuffle_tags is for captions from files, but captions is 'templates'; make it 'files'.")
        augmentations.check(self.augment, self.augment_variants)
        _check_colour(self.alpha_colour)


@dataclass(frozen=True)
class Training:
    """The optimizer step's own numbers."""

    seed: int | None = None
    """Every random choice follows from it. Drawn and written to the run's recipe if not given."""
    batch_size: int = 4
    """Pictures per micro-batch and process, of each concept."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step. Saves memory, costs time; the result is that of one large batch."""
    gradient_clip: float | None = None
    """Largest norm of the gradient of a word's rows; longer ones are shortened to it. Off by default."""
    loss_weighting: Optional[str] = None
    """How much a picture's error counts by its noise: 'min-snr' (gamma 5; 'min-snr=GAMMA' for another) or 'debiased'.
    All alike by default. The fixed-draw loss is never weighted."""

    def __post_init__(self) -> None:
        settle_types(self)
        at_least(1, batch_size=self.batch_size, gradient_accumulation_steps=self.gradient_accumulation_steps)
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise RecipeError(f"gradient_clip must be above 0, not {self.gradient_clip}; leave it out for no clipping.")
        if self.seed is not None:
            check_seed(seed=self.seed)
        weightings.read(self.loss_weighting)


@dataclass(frozen=True)
class Schedule:
    """How long to train, and the learning rate on the way."""

    steps: str = "500"
    """Length of the run: optimizer steps ('500') or epochs ('3 epochs', times `repeats` pictures)."""
    learning_rate: float = 5e-3
    """Peak learning rate. 5e-4 to 5e-3 with AdamW on real models; higher moves further from the initializer."""
    scale_lr: bool = False
    """Multiply the learning rate by processes × accumulation steps × batch size, as the guide's command does."""
    lr_scheduler: LrScheduler = "cosine"
    """How the learning rate changes over the run."""
    lr_warmup_steps: int = 0
    """Steps over which it rises from 0 (not for 'constant' and 'piecewise_constant')."""
    lr_num_cycles: int = 1
    """Cycles of 'cosine_with_restarts'; 1 has no restart."""
    lr_power: float = 1.0
    """Exponent of 'polynomial'."""
    lr_step_rules: str | None = None
    """Rules of 'piecewise_constant': '1:100,0.1:200,0.01' is factor 1 to step 100, 0.1 to step 200, then 0.01."""

    def __post_init__(self) -> None:
        settle_types(self)
        parse_steps(self.steps)
        at_least(0, lr_warmup_steps=self.lr_warmup_steps, learning_rate=self.learning_rate, lr_power=self.lr_power)
        at_least(1, lr_num_cycles=self.lr_num_cycles)
        if (self.lr_scheduler == "piecewise_constant") != (self.lr_step_rules is not None):
            raise RecipeError(
                f"lr_scheduler 'piecewise_constant' and lr_step_rules go together, "
                f"but they are {self.lr_scheduler!r} and {self.lr_step_rules!r}."
            )
        if self.lr_step_rules is not None and not re.fullmatch(_STEP_RULES, self.lr_step_rules):
            raise RecipeError(f"lr_step_rules must look like '1:100,0.1:200,0.01', not {self.lr_step_rules!r}.")
        if self.lr_scheduler == "polynomial" and self.learning_rate <= 1e-7:
            raise RecipeError(
                f"'polynomial' decays to 1e-7, so learning_rate must be above 1e-7, but is {self.learning_rate}."
            )


@dataclass(frozen=True)
class EngineRecipe:
    """Who computes, and how precisely. May change when a run is resumed."""

    engine: str = "torch"
    """The engine: 'torch' (PyTorch and Accelerate) or 'jax' (JAX, which needs no PyTorch, and TPUs need)."""
    mixed_precision: Precision = "no"
    """Precision of the frozen model; the rows are always fp32. bf16 halves the UNet's weights in memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    xformers: bool = False
    """Use xformers' attention instead of PyTorch's own (SDPA), which is as fast and the default."""
    pictures_at_once: int = 0
    """Pictures that go through the model at once, of all that a step sees: micro-batches and concepts are taken
    together as far as memory allows, which is faster and the same step. 0 counts what fits, or is 1 where memory is
    'low'."""
    allow_tf32: bool = False
    """Allow TF32 matrix products on NVIDIA Ampere GPUs and later: faster fp32, slightly less exact. On TPUs (JAX)
    they are rounded to bf16."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the denoiser with torch.compile: 'auto' on an NVIDIA GPU where it saves more than it takes over the run;
    'on' takes a minute or two before the first step."""
    memory: Literal["auto", "low", "lowest"] = "auto"
    """'low' is for small GPUs: gradient checkpointing, one picture at a time, and the denoiser in bf16 unless
    mixed_precision says fp16. 'lowest' also holds it in 8 bits, and the text encoders in half the bytes."""
    deterministic: bool = False
    """Have the same numbers in every run on a GPU too, which is slower. On a CPU they are the same anyway."""

    def __post_init__(self) -> None:
        settle_types(self)
        at_least(0, pictures_at_once=self.pictures_at_once)

    @property
    def precision(self) -> Precision:
        """What the denoiser computes in."""
        return "bf16" if self.memory != "auto" and self.mixed_precision == "no" else self.mixed_precision

    @property
    def recomputes(self) -> bool:
        """Whether activations are computed again in the backward pass instead of kept."""
        return self.gradient_checkpointing or self.memory != "auto"


@dataclass(frozen=True)
class Validation:
    """What is looked at along the way; learns nothing. May change when a run is resumed."""

    validation_prompts: tuple[str, ...] = ()
    """Prompts with the new word, or {} for it; pictures of them are sampled into `samples/` on the way. None by
    default."""
    validation_negative_prompt: str = ""
    """What these pictures should not be."""
    num_validation_images: int = 4
    """Pictures of each prompt. The first has the seed, the next the one after."""
    validation_steps: str = "100"
    """How often they are sampled, besides before the first step and after the last: '100' steps or '2 epochs'."""
    validation_seed: int = 0
    """The same at every time, so that pictures differ by what was learned alone."""
    validation_sampling_steps: int = 25
    """Denoising steps of a picture."""
    validation_guidance_scale: float = 7.5
    """Weight of the prompt against the negative prompt; 1 turns guidance off."""
    validation_sampler: Sampler = "dpm++"
    """How they are sampled."""
    loss_steps: int = 50
    """Steps between fixed-draw losses: training's loss on the same 16 draws each time, the one that says whether
    training still helps; the best step is kept. Costs about as much as two steps of batch 4. 0 is never."""

    def __post_init__(self) -> None:
        settle_types(self)
        parse_steps(self.validation_steps, "validation_steps")
        at_least(
            1,
            num_validation_images=self.num_validation_images,
            validation_sampling_steps=self.validation_sampling_steps,
        )
        at_least(0, validation_guidance_scale=self.validation_guidance_scale, loss_steps=self.loss_steps)
        if not 0 <= self.validation_seed < 2**62:
            raise RecipeError(f"validation_seed must be between 0 and 2^62 - 1, not {self.validation_seed}.")
        if not all(prompt.strip() for prompt in self.validation_prompts):
            raise RecipeError("A validation prompt is empty; leave it out, or write what the picture should show.")


@dataclass(frozen=True)
class Output:
    """What a run leaves on disk. May change when a run is resumed."""

    folder: str = "pseudoword-output"
    """The run's folder: recipe, log, checkpoints, and the learned word."""
    save_steps: int = 500
    """Write the word as `learned_embeds-steps-N` every so many steps."""
    checkpointing_steps: int = 50
    """Keep a checkpoint to resume from every so many steps; it costs some kilobytes and milliseconds."""
    checkpoints_total_limit: int | None = None
    """Keep only this many newest checkpoints."""
    full_pipeline: bool = False
    """Also write the whole pipeline with the word inside (gigabytes)."""
    safe_serialization: bool = True
    """Write .safetensors; if off, only the .bin files."""
    report_to: Tracker = "tensorboard"
    """Experiment tracker that gets losses, learning rate and validation pictures; 'all' is every installed one."""
    logging_dir: str = "logs"
    """Folder of a tracker's files, inside the run's folder unless absolute."""
    push_to_hub: bool = False
    """Upload the word, its card and sample pictures to the Hub at the end, with HF_TOKEN or the Hub login."""
    hub_model_id: str | None = None
    """Repository to push to, 'name' or 'owner/name'; by default the run folder's name under the token's user."""
    hub_private: bool = False
    """Make the repository a private one, and refuse one that is public."""
    hub_branch: str | None = None
    """Branch to push to, made if it is missing; by default main."""
    push_steps: int | None = None
    """Also push the word on the way, every so many steps, in the background."""

    def __post_init__(self) -> None:
        settle_types(self)
        if not self.folder:
            raise RecipeError("The run needs a folder to write to, but it is empty; '.' is this one.")
        at_least(1, save_steps=self.save_steps, checkpointing_steps=self.checkpointing_steps)
        if self.checkpoints_total_limit is not None:
            at_least(1, checkpoints_total_limit=self.checkpoints_total_limit)
        if self.push_steps is not None:
            at_least(1, push_steps=self.push_steps)
            if not self.push_to_hub:
                raise RecipeError(
                    f"push_steps is {self.push_steps}, but push_to_hub is off; set it, or leave both out."
                )

    @property
    def suffix(self) -> str:
        """How the files of words end."""
        return ".safetensors" if self.safe_serialization else ".bin"


def parse_steps(length: str, name: str = "steps") -> tuple[int, Literal["steps", "epochs"]]:
    """Read a length with its unit: '500', '500 steps', '3 epochs'. `name` is what an error calls it."""
    number, _, unit = str(length).strip().partition(" ")
    unit = {"": "steps", "step": "steps", "epoch": "epochs"}.get(unit.strip(), unit.strip())
    if not number.isascii() or not number.isdigit() or int(number) < 1 or unit not in ("steps", "epochs"):
        raise RecipeError(f"{name} must be a positive number of steps or epochs ('500', '3 epochs'), not {length!r}.")
    return int(number), typing.cast(Literal["steps", "epochs"], unit)


def _check_colour(colour: str) -> None:
    if colour == "white":  # the default, without importing Pillow
        return
    from PIL import ImageColor

    try:
        opaque = len(ImageColor.getrgb(colour)) == 3
    except ValueError:
        opaque = False
    if not opaque:
        raise RecipeError(f"alpha_colour is a colour such as 'white', 'green' or '#808080', not {colour!r}.")


_NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_STEP_RULES = rf"({_NUMBER}:[0-9]+,)*{_NUMBER}"


def check_sampler(engine: str, sampler: Sampler) -> None:
    """Refuse a sampler that an engine has not."""
    if engine == "jax" and sampler not in IN_JAX:
        raise RecipeError(
            f"The JAX engine samples with {' or '.join(IN_JAX)}, not with {sampler!r}; "
            "choose one of them, or the torch engine."
        )
