"""`pseudoword evaluate`: whether words are the concept, and whether the rest of a prompt still holds."""

from __future__ import annotations

import functools
import logging
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import tyro

from pseudoword.errors import RecipeError
from pseudoword.recipe import BaseModel, Sampler
from pseudoword.settings import at_least, check_seed, finite

if TYPE_CHECKING:
    from PIL import Image

    from pseudoword.evaluate.examine import Examiner, Yardstick
    from pseudoword.evaluate.prompts import Question
    from pseudoword.evaluate.report import Evaluated
    from pseudoword.evaluate.similarity import Similarity
    from pseudoword.evaluate.statistics import Scores
    from pseudoword.evaluate.words import Word
    from pseudoword.toybox.oracle import Judge

log = logging.getLogger(__name__)

EXAMPLE = "pseudoword evaluate cat-run other-cat-run --output evaluation"
Model = Literal["clip", "dino", "dinov2", "siglip"]


@dataclass(frozen=True)
class Options:
    """Measure how good words are, and write a report with pictures."""

    word: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of runs, which know their base, pictures and initializer, or embedding files."""
    model: Optional[str] = None
    """Base model; by default what each run was trained on."""
    pictures: Optional[Path] = None
    """Folder of what the words were learned from; by default each run's own."""
    class_word: Optional[str] = None
    """A plain word for the concept, which replaces the word where text is compared; by default the initializer."""
    steps: Optional[tuple[int, ...]] = None
    """Evaluate the words that runs left at these steps instead of their last; without numbers, all that they left."""
    prompts: str = "auto"
    """'object', 'living', 'style', or a file with one prompt a line, a first paragraph of its own for plain ones."""
    measure: tuple[Model, ...] = ("clip", "dino")
    """Pretrained models to measure with. Words of the toybox's suite are measured by its oracle instead."""
    clip: Optional[str] = None
    """Folder or Hub id of the CLIP model, by default openai/clip-vit-base-patch32."""
    dino: Optional[str] = None
    """Folder or Hub id of the DINO model, by default facebook/dino-vits16."""
    dinov2: Optional[str] = None
    """Folder or Hub id of the DINOv2 model, by default facebook/dinov2-base."""
    siglip: Optional[str] = None
    """Folder or Hub id of the SigLIP model, by default google/siglip-base-patch16-512."""
    num_images: int = 4
    """Pictures for each prompt. All prompts and all words start from the same noises."""
    seed: int = 1000
    """Seed of the first noise; the next has the seed after."""
    num_inference_steps: int = 25
    """Denoising steps."""
    sampler: Sampler = "dpm++"
    """How the pictures are sampled."""
    guidance_scale: Optional[float] = None
    """Weight of the prompt; by default 7.5, and 4 for the toybox."""
    output: Path = field(default_factory=lambda: Path("evaluation"))
    """Folder for the report. Pictures that are in it already are not sampled again."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print report.json instead of a table."""


def run(arguments: Sequence[str]) -> int:
    """Evaluate, print a table, and say where the report is."""
    options = tyro.cli(
        Options,
        args=list(arguments),
        prog="pseudoword evaluate",
        description=f"Measure how good words are, and write a report with pictures.\n\n{EXAMPLE}",
        config=(tyro.conf.HelptextFromCommentsOff,),
    )
    _check(options)
    from pseudoword import disk, watch

    watch.show_messages()
    from pseudoword.evaluate import report, words
    from pseudoword.evaluate.machine import machine

    report.check_installed()
    asked = words.Asked(BaseModel(options.model) if options.model else None, options.pictures, options.class_word)
    found = [word for path in options.word for word in words.words_of(path, asked, options.steps)]
    output = options.output.expanduser()
    with disk.writing(output):
        output.mkdir(parents=True, exist_ok=True)
    evaluated = _evaluate(options, list({(word.place, word.step): word for word in found}.values()), output)
    facts = {"command": shlex.join(["pseudoword", "evaluate", *arguments]), **machine(), **_sampled(options)}
    path = report.write(evaluated, output, facts)
    if options.json:
        print((output / report.JSON).read_text(encoding="utf-8"), end="")
    else:
        _print(evaluated)
        print(f"The report: {path.resolve()}")
    return 0


def _check(options: Options) -> None:
    if not options.word:
        raise RecipeError("Name at least one run's folder or embedding file to evaluate.")
    at_least(1, **{"--num-images": options.num_images, "--num-inference-steps": options.num_inference_steps})
    check_seed(**{"--seed": options.seed})
    if options.output.suffix or options.output.is_file():
        raise RecipeError(f"--output must be a folder, not {options.output.name!r}.")
    if options.guidance_scale is not None:
        finite(**{"--guidance-scale": options.guidance_scale})
    if not options.measure:
        raise RecipeError("--measure needs at least one of clip, dino, dinov2 and siglip.")


def _evaluate(options: Options, found: Sequence[Word], output: Path) -> list[Evaluated]:
    """Examine every word on its base; each base and each pretrained model is loaded once."""
    from pseudoword import generate
    from pseudoword.evaluate import words
    from pseudoword.evaluate.examine import Examiner

    models: dict[str, Similarity] = {}
    done: dict[int, Evaluated] = {}
    names = words.names(found)
    for base in dict.fromkeys(word.base for word in found):
        sampling = generate.Sampling(
            options.seed, options.num_inference_steps, _guidance(options, base), options.sampler
        )
        examiner = Examiner(generate.load(base), sampling, options.num_images, output / "examined")
        for i, word in enumerate(found):
            if word.base == base:
                done[i] = _examined(options, examiner, names[i], word, models)
    return [done[i] for i in range(len(found))]


def _guidance(options: Options, base: BaseModel) -> float:
    if options.guidance_scale is not None:
        return options.guidance_scale
    return 4.0 if base.model == "toybox" else 7.5


def _examined(options: Options, examiner: Examiner, name: str, word: Word, models: dict[str, Similarity]) -> Evaluated:
    """Sample and measure one word, and say what the text encoder makes of it."""
    from pseudoword.evaluate.diagnostics import diagnose
    from pseudoword.evaluate.report import Evaluated

    real = word.real_pictures()
    yardstick, questions = _yardstick(options, examiner, word, real, models)
    log.info("Examining %s: %d pictures", name, len(questions) * examiner.noises)
    done = examiner.examine(word.concept, yardstick, questions)
    diagnosis = diagnose(examiner.family, word.concept, word.initializer, word.class_word, questions)
    told = [f"guidance {examiner.sampling.guidance_scale:g} on {word.base.model}", *yardstick.told]
    return Evaluated(name, word, questions, done, diagnosis, yardstick.fidelity, yardstick.editability, told, real)


def _yardstick(
    options: Options, examiner: Examiner, word: Word, real: Sequence[Image.Image], models: dict[str, Similarity]
) -> tuple[Yardstick, Sequence[Question]]:
    """Return what measures a word and what it is asked; for pictures of the toybox's suite, its answer key."""
    from pseudoword.evaluate import prompts, similarity
    from pseudoword.evaluate.answer_key import AnswerKey
    from pseudoword.toybox import suite
    from pseudoword.toybox.render import SIDE

    subject = suite.recognised(real)
    if subject and options.prompts == "auto" and examiner.family.resolution == SIDE:
        key = AnswerKey(subject, _judge())
        return key, key.questions
    for name in options.measure:
        if name not in models:
            models[name] = similarity.Similarity(name, getattr(options, name))
    kind = options.prompts if options.prompts != "auto" else word.concept.property
    questions = prompts.LISTS[kind] if kind in prompts.LISTS else prompts.read(Path(kind))
    return similarity.Pretrained([models[name] for name in options.measure], real, word.class_word), questions


@functools.cache
def _judge() -> Judge:
    from pseudoword.toybox import oracle

    return oracle.load()


def _sampled(options: Options) -> dict[str, Any]:
    return {
        "pictures for each prompt": options.num_images,
        "first seed": options.seed,
        "sampler": f"{options.sampler}, {options.num_inference_steps} steps",
    }


def _print(evaluated: Sequence[Evaluated]) -> None:
    from rich.console import Console
    from rich.table import Table

    from pseudoword.evaluate import report

    measures = report.measures(evaluated)
    table = Table(box=None, pad_edge=False)
    for name in ("word", "step", *measures):
        table.add_column(name, overflow="fold", justify="left" if name == "word" else "right")
    for one in evaluated:
        cells = (_cell(one.done.scores.get(name)) for name in measures)
        table.add_row(one.name, str(one.word.step or "—"), *cells)
    Console(soft_wrap=True, highlight=False, markup=False).print(table)


def _cell(scores: Scores | None) -> str:
    from pseudoword.evaluate import statistics

    if scores is None:
        return "—"
    error = statistics.sampling_error(scores)
    return f"{statistics.mean(scores):.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")
