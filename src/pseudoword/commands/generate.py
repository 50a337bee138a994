"""`pseudoword generate`: pictures with learned words in the prompt."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import tyro

from pseudoword import disk, flags
from pseudoword.errors import RecipeError
from pseudoword.recipe import BaseModel, Sampler, check_sampler
from pseudoword.settings import at_least, check_seed, finite, plain

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from pseudoword.concept import Concept
    from pseudoword.generate import Redraw

FROM_WORDS = "what the words were learned on"
"""The default of --model."""
EXAMPLES = (
    "pseudoword generate --embeds cat-run --prompt 'a <cat-toy> on the beach' --output beach.png",
    "pseudoword generate --model MODEL --embeds cat.pt --prompt 'a cat' '<cat>, a comic' --num-images 4 --grid",
)
FIRST = (
    "prompt",
    "embeds",
    "model",
    "num_images",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "output",
    "grid",
)


@dataclass(frozen=True)
class Options:
    """Make pictures with learned words in the prompt."""

    base: BaseModel = field(default_factory=lambda: BaseModel(FROM_WORDS))
    prompt: tuple[str, ...] = ()
    """One or more prompts; learned words are written as their placeholder tokens."""
    prompt_file: Optional[Path] = None
    """A text file with a prompt on each line, after those of --prompt."""
    embeds: tuple[str, ...] = ()
    """Embedding files, folders of runs, or Hub ids (owner/name, or owner/name/file), of the words to lend."""
    strength: tuple[float, ...] = ()
    """How strong words are, 1 as they were learned: one number for all, or one for each of --embeds."""
    negative_prompt: str = ""
    """What the pictures should not be; learned words work here too."""
    num_images: int = 1
    """Pictures for each prompt. Each prompt's first has the seed, the next the one after, so columns share noise."""
    seed: int = 0
    """Seed of the first picture."""
    num_inference_steps: int = 25
    """Denoising steps."""
    sampler: Sampler = "dpm++"
    """How the pictures are sampled; 'dpm++' (DPM-Solver++ 2M) needs few steps."""
    guidance_scale: float = 7.5
    """Weight of the prompt against the negative prompt; 1 turns guidance off."""
    resolution: int = 0
    """Side of the pictures in pixels; 0 is the model's own."""
    image: Optional[Path] = None
    """A picture to start from, instead of noise alone."""
    image_strength: float = 0.6
    """How much of --image is drawn anew, from 0 to 1."""
    engine: str = "torch"
    """The engine: 'torch' (PyTorch and diffusers) or 'jax', whose samplers are 'dpm++' and 'ddim'."""
    output: Path = field(default_factory=lambda: Path("picture.png"))
    """A .png for one picture or a grid; several pictures are numbered, or go into this folder."""
    grid: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Lay all pictures out in one, a line for each prompt."""


def run(arguments: Sequence[str]) -> int:
    """Generate, and say where the pictures are."""
    options = flags.parse(
        Options,
        arguments,
        "pseudoword generate",
        "Make pictures with learned words in the prompt.",
        examples=EXAMPLES,
        first=FIRST,
    )
    _check(options)
    output = options.output.expanduser()
    _prepare(output)
    from pseudoword import watch

    watch.show_messages()
    from pseudoword import formats, generate, sheets

    asked = _prompts(options)
    files = [formats.find(formats.fetched(path)) for path in options.embeds]
    words = [_words_in(file, (*asked, options.negative_prompt)) for file in files]
    concepts: list[Concept] = []
    for in_file, scale in zip(words, _strengths(options), strict=True):
        concepts += [_scaled(concept, scale) for concept in in_file]
    redraw = _redraw(options)
    if options.base.model == FROM_WORDS:
        options = replace(options, base=_base_of(files, [in_file[0] for in_file in words], options.base))
    family = generate.load(options.base, options.engine)
    prompts, seeds = generate.repeated(asked, options.num_images, options.seed)
    sampling = generate.Sampling(
        seed=options.seed,
        steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        sampler=options.sampler,
        resolution=options.resolution or None,
    )
    pictures = generate.generate(
        family,
        concepts,
        prompts,
        negative_prompt=options.negative_prompt,
        sampling=sampling,
        seeds=seeds,
        redraw=redraw,
    )
    told = [{"prompt": prompt, "seed": str(seed)} for prompt, seed in zip(prompts, seeds, strict=True)]
    if options.grid:
        pictures = [sheets.grid(pictures, options.num_images)]
        told = [{"prompt": "\n".join(asked), "seed": str(options.seed)}]
    more = _told(options, files)
    for picture, path, own in zip(pictures, _paths(output, len(pictures)), told, strict=True):
        print(sheets.save(picture, path, {**own, **{k: v for k, v in more.items() if v}}))
    return 0


def _prompts(options: Options) -> list[str]:
    """Return the prompts of the command line and of the file."""
    lines: list[str] = []
    if options.prompt_file is not None:
        try:
            lines = options.prompt_file.expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"Cannot read the prompts in {str(options.prompt_file)!r}: {error}.") from error
    prompts = [*options.prompt, *(line.strip() for line in lines if line.strip())]
    if not prompts:
        raise RecipeError("--prompt, or the file of --prompt-file, needs at least one prompt.")
    return prompts


def _strengths(options: Options) -> Sequence[float]:
    count = len(options.embeds)
    if len(options.strength) not in (0, 1, count):
        raise RecipeError(f"--strength needs one number, or one for each of the {count} --embeds.")
    return options.strength if len(options.strength) == count else (*(options.strength or (1.0,)),) * count


def _words_in(file: Path, prompts: Sequence[str]) -> list[Concept]:
    """Return the words of a file; of several, as in a checkpoint of a run of many, those that the prompts call."""
    from pseudoword import formats

    concepts = formats.read_all(file)
    called = [concept for concept in concepts if any(concept.token in text for text in prompts)]
    if not called:
        tokens = ", ".join(concept.token for concept in concepts[:10])
        log.warning("%s is in none of the prompts.", tokens)
    return called or concepts


def _scaled(concept: Concept, scale: float) -> Concept:
    """Return a word whose rows are scaled."""
    return replace(concept, rows={encoder: rows * scale for encoder, rows in concept.rows.items()})


def _base_of(files: Sequence[Path], concepts: Sequence[Concept], options: BaseModel) -> BaseModel:
    """Return the base that the words were learned on, as their runs' recipes or else their files say."""
    from pseudoword import toybox
    from pseudoword.layout import recipe_around

    bases: dict[str, BaseModel] = {}
    for file, concept in zip(files, concepts, strict=True):
        recipe = recipe_around(file)
        if recipe and (not concept.base or concept.base in _names_of(recipe.base.model)):
            bases.setdefault(recipe.base.model, recipe.base)
        elif concept.base:
            bases.setdefault(concept.base, BaseModel(concept.base))
    for model in list(bases):
        for name in _names_of(model) - {model}:
            bases.pop(name, None)  # a file alone has no more than the name of a base on the disk
    if not bases:
        raise RecipeError(
            "--model says on which base to draw; no run or file in --embeds says which it was learned on."
        )
    if len(bases) > 1:
        raise RecipeError(f"The words were learned on different bases ({', '.join(bases)}); choose one with --model.")
    [base] = bases.values()
    is_id = "/" in base.model and not Path(base.model).is_absolute()  # on the Hub
    if not is_id and base.model not in toybox.BASES and not Path(base.model).exists():
        raise RecipeError(
            f"The words were learned on {base.model!r}, which is not there; say where it is with --model."
        )
    changes = {name: choice for name, choice in plain(options).items() if name != "model"}
    return replace(base, **changes)


def _names_of(model: str) -> set[str]:
    """Return how files may call a base: as it was named, or a folder or file by its name alone."""
    path = Path(model).expanduser()
    return {model, path.name, path.resolve().name} if path.is_absolute() or path.exists() else {model}


def _redraw(options: Options) -> Redraw | None:
    """Return the picture to start from, if there is one; RecipeError if it cannot be read."""
    if options.image is None:
        return None
    from PIL import Image

    from pseudoword.data import images
    from pseudoword.errors import first_line
    from pseudoword.generate import Redraw

    try:
        return Redraw(images.read_rgb(options.image.expanduser()), options.image_strength)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RecipeError(f"Cannot read the picture {str(options.image)!r}: {first_line(error)}.") from error


def _told(options: Options, files: Sequence[Path]) -> dict[str, str]:
    """Return what all pictures say of how they were made, besides their prompt and seed."""
    from pseudoword import formats

    parts = [formats.parts_of(file) for file in files]
    hashes = [hashlib.sha256(b"".join(part.read_bytes() for part in own)).hexdigest()[:16] for own in parts]
    words = [f"{name} (sha256 {told})" for name, told in zip(options.embeds, hashes, strict=True)]
    return {
        "negative_prompt": options.negative_prompt,
        "base": options.base.model,
        **{name: str(value) for name, value in plain(options.base).items() if name != "model"},
        "embeds": ", ".join(words),
        "strength": " ".join(f"{scale:g}" for scale in options.strength),
        "engine": options.engine,
        "sampler": f"{options.sampler}, {options.num_inference_steps} steps, guidance {options.guidance_scale:g}",
        "image": f"{options.image.name}, {options.image_strength:g} drawn anew" if options.image else "",
    }


def _check(options: Options) -> None:
    if not options.prompt and options.prompt_file is None:
        raise RecipeError("--prompt needs at least one prompt, or --prompt-file a file with some.")
    for scale in options.strength:
        finite(**{"--strength": scale})
    check_sampler(options.engine, options.sampler)
    at_least(1, **{"--num-images": options.num_images, "--num-inference-steps": options.num_inference_steps})
    check_seed(**{"--seed": options.seed})
    finite(**{"--guidance-scale": options.guidance_scale})
    if options.resolution < 0:
        raise RecipeError(f"--resolution must be pixels, or 0 for the model's own, not {options.resolution}.")
    if disk.means_file(options.output, disk.IMAGE_ENDINGS) and options.output.suffix.lower() != ".png":
        disk.check_folder(options.output)  # of what is there already
        raise RecipeError(f"--output must be a .png or a folder, not {options.output.name!r}.")


def _prepare(output: Path) -> None:
    """Make the folder that pictures go to, or say why they cannot, before any is sampled."""
    folder = output.parent if disk.means_file(output, disk.IMAGE_ENDINGS) else output
    if folder.is_file():
        raise RecipeError(f"Cannot write pictures to {str(folder)!r}: it is a file; name another --output.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RecipeError(f"Cannot write pictures to {str(folder)!r}: {error.strerror}.") from error


def _paths(output: Path, count: int) -> list[Path]:
    """Return where pictures go: the one file, numbered files beside it, or numbered files in a folder."""
    if not disk.means_file(output, disk.IMAGE_ENDINGS):
        return [output / f"{i}.png" for i in range(count)]
    return [output] if count == 1 else [output.with_stem(f"{output.stem}-{i}") for i in range(count)]
