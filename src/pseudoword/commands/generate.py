"""`pseudoword generate`: pictures with learned words in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from pseudoword.errors import RecipeError
from pseudoword.recipe import BaseModel, Sampler
from pseudoword.settings import at_least, check_seed, finite

EXAMPLE = "pseudoword generate --model MODEL --embeds cat-run --prompt 'a <cat-toy> on the beach' --output beach.png"


@dataclass(frozen=True)
class Options:
    """Make pictures with learned words in the prompt."""

    base: BaseModel
    prompt: tuple[str, ...]
    """One or more prompts; learned words are written as their placeholder tokens."""
    embeds: tuple[str, ...] = ()
    """Embedding files, folders of runs, or Hub ids (owner/name, or owner/name/file), of the words to lend."""
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
    output: Path = field(default_factory=lambda: Path("picture.png"))
    """A .png for one picture or a grid; several pictures are numbered, or go into this folder."""
    grid: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Lay all pictures out in one, a line for each prompt."""


def run(arguments: Sequence[str]) -> int:
    """Generate, and say where the pictures are."""
    options = tyro.cli(
        Options,
        args=list(arguments),
        prog="pseudoword generate",
        description=f"Make pictures with learned words in the prompt.\n\n{EXAMPLE}",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff),
    )
    _check(options)
    output = options.output.expanduser()
    _prepare(output)
    from pseudoword import watch

    watch.show_messages()
    from pseudoword import formats, generate, sheets

    concepts = [formats.read(formats.fetched(path)) for path in options.embeds]
    family = generate.load(options.base)
    prompts, seeds = generate.repeated(options.prompt, options.num_images, options.seed)
    sampling = generate.Sampling(
        seed=options.seed,
        steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        sampler=options.sampler,
        resolution=options.resolution or None,
    )
    pictures = generate.generate(
        family, concepts, prompts, negative_prompt=options.negative_prompt, sampling=sampling, seeds=seeds
    )
    told = [{"prompt": prompt, "seed": str(seed)} for prompt, seed in zip(prompts, seeds, strict=True)]
    if options.grid:
        pictures = [sheets.grid(pictures, options.num_images)]
        told = [{"prompt": "\n".join(options.prompt), "seed": str(options.seed)}]
    more = {"negative_prompt": options.negative_prompt, "base": options.base.model, "embeds": ", ".join(options.embeds)}
    for picture, path, own in zip(pictures, _paths(output, len(pictures)), told, strict=True):
        print(sheets.save(picture, path, {**own, **{k: v for k, v in more.items() if v}}))
    return 0


def _check(options: Options) -> None:
    if not options.prompt:
        raise RecipeError("--prompt needs at least one prompt.")
    at_least(1, **{"--num-images": options.num_images, "--num-inference-steps": options.num_inference_steps})
    check_seed(**{"--seed": options.seed})
    finite(**{"--guidance-scale": options.guidance_scale})
    if options.resolution < 0:
        raise RecipeError(f"--resolution must be pixels, or 0 for the model's own, not {options.resolution}.")
    if options.output.suffix.lower() not in ("", ".png"):
        raise RecipeError(f"--output must be a .png or a folder, not {options.output.name!r}.")


def _prepare(output: Path) -> None:
    """Make the folder that pictures go to, or say why they cannot, before any is sampled."""
    if output.suffix and output.is_dir():
        raise RecipeError(f"--output {str(output)!r} is a folder; name a file in it, or a folder without .png.")
    folder = output.parent if output.suffix else output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"Cannot write pictures to {str(folder)!r}: {error.strerror}.") from error


def _paths(output: Path, count: int) -> list[Path]:
    """Return where pictures go: the one file, numbered files beside it, or numbered files in a folder."""
    if not output.suffix:
        return [output / f"{i}.png" for i in range(count)]
    return [output] if count == 1 else [output.with_stem(f"{output.stem}-{i}") for i in range(count)]
