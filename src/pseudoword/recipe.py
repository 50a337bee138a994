"""The recipe: every choice of a run, frozen and typed, read from TOML or flags, checked before any weight is loaded."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional, Protocol

from pseudoword.errors import RecipeError
from pseudoword.placeholder import check_token

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
MOST_VECTORS = 510
"""Beyond any text encoder's length."""


class MethodOptions(Protocol):
    """A method's options: a frozen dataclass that carries the method's name in the table."""

    name: ClassVar[str]


@dataclass(frozen=True)
class ConceptRecipe:
    """The word to learn, and what it is learned from."""

    token: str
    """The placeholder token: the new word, as you will write it in prompts. Usually '<something>'."""
    pictures: str
    """Folder with the pictures of the concept. Three to six good ones are enough."""
    initializer: str
    """Where the rows start: a word or phrase close to the concept ('toy'), or an embedding file to go on from."""
    property: Literal["object", "style"] = "object"
    """What the word stands for; chooses the caption templates ('a photo of a …' or 'a painting in the style of …')."""
    num_vectors: int = 1
    """Rows the word has. More hold more detail, cost prompt length, and are harder to put into new scenes."""

    def __post_init__(self) -> None:
        settle_types(self)
        check_token(self.token)
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
    family: str = "sd"
    """The kind of base model: 'sd' is Stable Diffusion 1.x and 2.x."""
    revision: Optional[str] = None
    """Branch, tag or commit on the Hub."""
    config: Optional[str] = None
    """With one file: folder in diffusers layout (weights or not) or Hub id to configure it; by default SD 1.5/2.1."""
    variant: Optional[str] = None
    """Variant of the weight files, such as 'fp16'."""
    tokenizer: Optional[str] = None
    """Folder or Hub id of another tokenizer than the model's own."""
    prediction_type: Optional[Literal["epsilon", "v_prediction"]] = None
    """What the denoiser predicts; by default what the model's scheduler configuration says."""
    clip_skip: Optional[int] = None
    """Leave out this many last layers of the text encoder. Some SD 1.x models want 1, A1111's "Clip skip 2"."""

    def __post_init__(self) -> None:
        settle_types(self)
        if self.clip_skip is not None:
            at_least(0, clip_skip=self.clip_skip)


@dataclass(frozen=True)
class Data:
    """How pictures become training examples."""

    resolution: Optional[int] = None
    """Side of the square training pictures in pixels; by default the model's own."""
    fit: Literal["crop", "squash"] = "crop"
    """'crop' keeps the aspect ratio and cuts the centre square; 'squash' resizes to a square, as the guide's script."""
    flip_p: float = 0.5
    """Share of pictures mirrored left to right. 0 for text, logos and faces that are not symmetric."""
    recursive: bool = False
    """Also take the pictures in folders inside the folder."""
    repeats: int = 100
    """How often an epoch goes through each picture; matters only where a length is given in epochs."""
    workers: int = 0
    """Processes that load a dataset whose pictures cannot be cached. 0 loads in the main process."""

    def __post_init__(self) -> None:
        settle_types(self)
        at_least(1, repeats=self.repeats)
        at_least(0, workers=self.workers)
        if self.resolution is not None:
            at_least(8, resolution=self.resolution)
        if not 0 <= self.flip_p <= 1:
            raise RecipeError(f"flip_p is a share between 0 and 1, not {self.flip_p}.")


@dataclass(frozen=True)
class Training:
    """The optimizer step's own numbers."""

    seed: Optional[int] = None
    """Every random choice follows from it. Drawn and written to the run's recipe if not given."""
    batch_size: int = 4
    """Pictures per micro-batch and process."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step. Saves memory, costs time; the result is that of one large batch."""
    gradient_clip: Optional[float] = None
    """Largest norm of the gradient of a word's rows; longer ones are shortened to it. Off by default."""

    def __post_init__(self) -> None:
        settle_types(self)
        at_least(1, batch_size=self.batch_size, gradient_accumulation_steps=self.gradient_accumulation_steps)
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise RecipeError(f"gradient_clip must be above 0, not {self.gradient_clip}; leave it out for no clipping.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise RecipeError(f"seed must be between 0 and 2^63 - 1, not {self.seed}.")


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
    lr_step_rules: Optional[str] = None
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
    """The engine: 'torch' (PyTorch and Accelerate)."""
    mixed_precision: Precision = "no"
    """Precision of the frozen model; the rows are always fp32. bf16 halves the UNet's weights in memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    xformers: bool = False
    """Use xformers' attention instead of PyTorch's own (SDPA), which is as fast and the default."""
    allow_tf32: bool = False
    """Allow TF32 matrix products on NVIDIA Ampere GPUs and later: faster fp32, slightly less exact."""

    def __post_init__(self) -> None:
        settle_types(self)


@dataclass(frozen=True)
class Output:
    """What a run leaves on disk. May change when a run is resumed."""

    folder: str = "pseudoword-output"
    """The run's folder: recipe, log, checkpoints, and the learned word."""
    save_steps: int = 500
    """Write the word as `learned_embeds-steps-N` every so many steps."""
    checkpointing_steps: int = 50
    """Keep a checkpoint to resume from every so many steps; it costs some kilobytes and milliseconds."""
    checkpoints_total_limit: Optional[int] = None
    """Keep only this many newest checkpoints."""
    full_pipeline: bool = False
    """Also write the whole pipeline with the word inside (gigabytes)."""
    safe_serialization: bool = True
    """Write .safetensors; if off, only the .bin files."""

    def __post_init__(self) -> None:
        settle_types(self)
        if not self.folder:
            raise RecipeError("The run needs a folder to write to, but it is empty; '.' is this one.")
        at_least(1, save_steps=self.save_steps, checkpointing_steps=self.checkpointing_steps)
        if self.checkpoints_total_limit is not None:
            at_least(1, checkpoints_total_limit=self.checkpoints_total_limit)

    @property
    def suffix(self) -> str:
        """How the files of words end."""
        return ".safetensors" if self.safe_serialization else ".bin"


@dataclass(frozen=True)
class Recipe:
    """Every choice of a run. Refuses unknown or contradictory values on construction."""

    concepts: tuple[ConceptRecipe, ...]
    base: BaseModel
    method: MethodOptions
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    schedule: Schedule = field(default_factory=Schedule)
    engine: EngineRecipe = field(default_factory=EngineRecipe)
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        settle_types(self)
        if not self.concepts:
            raise RecipeError("A recipe needs at least one concept: a token, its pictures and an initializer.")
        if len(self.concepts) > 1:
            tokens = ", ".join(c.token for c in self.concepts)
            raise RecipeError(f"One concept a run for now, not {len(self.concepts)} ({tokens}); train them one by one.")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, `None` left out, ready for TOML."""
        values = _plain(self)
        values["method"] = {"name": self.method.name, **values["method"]}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Build a recipe from plain values; `method` is a table with the method's name and its options."""
        from pseudoword.methods import OPTIONS  # a door upwards, as in `Concept.load`: recipes are made by name

        values = dict(values)
        method = values.pop("method", {})
        if not isinstance(method, Mapping):
            raise RecipeError(f"[method] must be a table of values, not {method!r}.")
        method = dict(method)
        name = method.pop("name", "classic")
        if name not in list(OPTIONS):
            raise RecipeError(f"There is no method {name!r}; the methods are {', '.join(sorted(OPTIONS))}.")
        values["method"] = _build(OPTIONS[name], method, "method")
        return _build(cls, values, "")

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read a recipe from a TOML file."""
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"Cannot read the recipe {path}: {error}.") from error
        try:
            return cls.from_dict(values)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error


def parse_steps(length: str) -> tuple[int, Literal["steps", "epochs"]]:
    """Read a length with its unit: '500', '500 steps', '3 epochs'."""
    number, _, unit = str(length).strip().partition(" ")
    unit = {"": "steps", "step": "steps", "epoch": "epochs"}.get(unit.strip(), unit.strip())
    if not number.isascii() or not number.isdigit() or int(number) < 1 or unit not in ("steps", "epochs"):
        raise RecipeError(f"steps must be a positive number of steps or epochs ('500', '3 epochs'), not {length!r}.")
    return int(number), typing.cast(Literal["steps", "epochs"], unit)


def settle_types(section: Any) -> None:
    """Make a section's values what their annotations say (a list a tuple, 1 a 1.0), or raise RecipeError."""
    for name, hint in typing.get_type_hints(type(section)).items():
        if typing.get_origin(hint) is not ClassVar:
            object.__setattr__(section, name, _convert(hint, getattr(section, name), name))


def at_least(minimum: int, **values: float) -> None:
    """Raise RecipeError naming the first value below `minimum`, or not finite."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= minimum):
            raise RecipeError(f"{name} must be at least {minimum}, but is {value}.")


_NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_STEP_RULES = rf"({_NUMBER}:[0-9]+,)*{_NUMBER}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: _plain(v) for name, v in fields.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _build(cls: type, values: Any, where: str) -> Any:
    """Make the dataclass `cls` from a table of plain values, refusing unknown keys and wrong types by name."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"[{where}] must be a table of values, not {values!r}.")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}."
            raise RecipeError(f"Unknown setting {name!r}{f' in [{where}]' if where else ''}; {hint}")
    required = [f.name for f in dataclasses.fields(cls) if _is_required(f) and f.name not in values]
    if required:
        raise RecipeError(f"Missing {', '.join(required)}{f' in [{where}]' if where else ''}.")
    return cls(**{name: _convert(hints[name], v, f"{where}.{name}".lstrip(".")) for name, v in values.items()})


def _is_required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as the annotated type, or say what was expected and what came."""
    if hint is MethodOptions:
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            raise RecipeError(f"{where} must be a method's options, such as ClassicOptions(), not {value!r}.")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, typing.cast(type, hint)):
        return value
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where} must be a list, [[{where}]] in TOML, not {value!r}.")
        return tuple(_convert(typing.get_args(hint)[0], v, f"{where}.{i}") for i, v in enumerate(value))
    if origin in (types.UnionType, typing.Union):
        inner = next(a for a in typing.get_args(hint) if a is not types.NoneType)
        return None if value is None else _convert(inner, value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise RecipeError(f"{where} must be one of {', '.join(map(repr, typing.get_args(hint)))}, not {value!r}.")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int) and where.endswith(".steps"):
        return str(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise RecipeError(f"{where} must be of type {hint.__name__}, not {value!r}.")
    return value
