"""Measuring: how words are measured, one choice for all of them, and the measuring itself."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pseudoword.errors import MeasureUnavailable, RecipeError
from pseudoword.evaluate import prompts
from pseudoword.recipe import BaseModel, Sampler
from pseudoword.settings import at_least, check_seed, finite

if TYPE_CHECKING:
    from PIL import Image

    from pseudoword.evaluate.examine import Examiner, Yardstick
    from pseudoword.evaluate.groups import Evaluated
    from pseudoword.evaluate.prompts import Question
    from pseudoword.evaluate.references import References
    from pseudoword.evaluate.similarity import Similarity
    from pseudoword.evaluate.words import Word
    from pseudoword.toybox.oracle import Judge
    from pseudoword.toybox.suite import Subject

log = logging.getLogger(__name__)

Model = Literal["clip", "dino", "dinov2", "siglip"]


@dataclass(frozen=True)
class Measuring:
    """How words are measured, all alike."""

    prompts: str = "auto"
    """'object', 'living', 'style', or a file with one prompt a line, a first paragraph of its own for plain ones."""
    measure: tuple[Model, ...] = ("clip", "dino")
    """Pretrained models to measure with. Words of the toybox's suite are measured by its oracle instead."""
    clip: str | None = None
    """Folder or Hub id of the CLIP model, by default openai/clip-vit-base-patch32."""
    dino: str | None = None
    """Folder or Hub id of the DINO model, by default facebook/dino-vits16."""
    dinov2: str | None = None
    """Folder or Hub id of the DINOv2 model, by default facebook/dinov2-base."""
    siglip: str | None = None
    """Folder or Hub id of the SigLIP model, by default google/siglip-base-patch16-512."""
    num_images: int = 4
    """Pictures for each prompt. All prompts and all words start from the same noises."""
    seed: int = 1000
    """Seed of the first noise; the next has the seed after."""
    num_inference_steps: int = 25
    """Denoising steps."""
    sampler: Sampler = "dpm++"
    """How the pictures are sampled."""
    guidance_scale: float | None = None
    """Weight of the prompt; by default 7.5, and 4 for the toybox."""
    references: bool = True
    """Also sample the word as it was before training, and the base's own words where they are known, to hold the
    numbers against. Takes as long as one more word for each concept."""

    def check(self) -> None:
        """Raise RecipeError, as the flags are called, for what cannot be measured so."""
        at_least(1, **{"--num-images": self.num_images, "--num-inference-steps": self.num_inference_steps})
        check_seed(**{"--seed": self.seed})
        if self.guidance_scale is not None:
            finite(**{"--guidance-scale": self.guidance_scale})
        if self.prompts != "auto" and self.prompts not in prompts.LISTS:
            prompts.read(Path(self.prompts))
        if not self.measure:
            raise RecipeError("--measure needs at least one of clip, dino, dinov2 and siglip.")

    @property
    def facts(self) -> dict[str, Any]:
        """What the pictures were sampled with, for a report."""
        return {
            "pictures for each prompt": self.num_images,
            "first seed": self.seed,
            "sampler": f"{self.sampler}, {self.num_inference_steps} steps",
        }


def evaluate(options: Measuring, found: Sequence[Word], output: Path) -> list[Evaluated]:
    """Examine every word on its base and return what was found, in their order; sampled pictures are kept in `output`.

    Each base and each pretrained model is loaded once.
    """
    from pseudoword import generate
    from pseudoword.evaluate import words
    from pseudoword.evaluate.examine import Examiner
    from pseudoword.evaluate.references import References

    models: dict[str, Similarity | None] = {}
    done: dict[int, Evaluated] = {}
    names = words.names(found)
    for base in dict.fromkeys(word.base for word in found):
        sampling = generate.Sampling(
            options.seed, options.num_inference_steps, _guidance(options, base), options.sampler
        )
        examiner = Examiner(generate.load(base), sampling, options.num_images, output / "examined")
        references = References(examiner) if options.references else None
        for i, word in enumerate(found):
            if word.base == base:
                done[i] = _examined(options, examiner, names[i], word, models, references)
    return [done[i] for i in range(len(found))]


def check_models(options: Measuring) -> None:
    """Raise RecipeError if none of the pretrained models can be had, or one that was named cannot be loaded."""
    _models(options, {})


def _models(options: Measuring, loaded: dict[str, Similarity | None]) -> list[Similarity]:
    """Return the pretrained models, loaded once; those that cannot be had are left out with a warning.

    RecipeError if none is left.
    """
    from pseudoword.evaluate import similarity

    for name in options.measure:
        if name in loaded:
            continue
        loaded[name] = None
        try:
            loaded[name] = similarity.Similarity(name, getattr(options, name))
        except MeasureUnavailable as error:
            log.warning("The measures of %s are left out. %s", name, error)
    models = [model for name in options.measure if (model := loaded[name])]
    if not models:
        raise RecipeError(
            f"None of the pretrained models to measure with can be had: {', '.join(options.measure)}. Connect to the "
            "Hub once, or name folders that hold them, such as --clip models/clip."
        )
    return models


def _guidance(options: Measuring, base: BaseModel) -> float:
    if options.guidance_scale is not None:
        return options.guidance_scale
    return 4.0 if base.model == "toybox" else 7.5


def _examined(
    options: Measuring,
    examiner: Examiner,
    name: str,
    word: Word,
    models: dict[str, Similarity | None],
    references: References | None,
) -> Evaluated:
    """Sample and measure one word, and say what the text encoder makes of it."""
    from pseudoword.evaluate.diagnostics import diagnose
    from pseudoword.evaluate.groups import Evaluated
    from pseudoword.toybox import suite

    real = word.real_pictures()
    subject = suite.recognised(real)
    yardstick, questions = _yardstick(options, examiner, word, real, subject, models)
    log.info("Examining %s: %d pictures", name, len(questions) * examiner.noises)
    done = examiner.examine(word.concept, yardstick, questions)
    diagnosis = diagnose(examiner.family, word.concept, word.initializer, word.class_word, questions)
    kinds = (subject.kind, subject.half) if subject else ()
    description = subject.described if subject else None
    against = references.of(word, yardstick, questions, description) if references else {}
    told = [f"guidance {examiner.sampling.guidance_scale:g} on {word.base.model}", *yardstick.told]
    return Evaluated(
        name, word, questions, done, diagnosis, yardstick.fidelity, yardstick.editability, told, real, kinds, against
    )


def _yardstick(
    options: Measuring,
    examiner: Examiner,
    word: Word,
    real: Sequence[Image.Image],
    subject: Subject | None,
    models: dict[str, Similarity | None],
) -> tuple[Yardstick, Sequence[Question]]:
    """Return what measures a word and what it is asked; for pictures of the toybox's suite, its answer key."""
    from pseudoword.evaluate import similarity
    from pseudoword.evaluate.answer_key import AnswerKey
    from pseudoword.toybox.render import SIDE

    if subject and options.prompts == "auto" and examiner.family.resolution == SIDE:
        key = AnswerKey(subject, _judge())
        return key, key.questions
    loaded = _models(options, models)
    kind = options.prompts if options.prompts != "auto" else word.concept.property
    questions = prompts.LISTS[kind] if kind in prompts.LISTS else prompts.read(Path(kind))
    return similarity.Pretrained(loaded, real, word.class_word), questions


@functools.cache
def _judge() -> Judge:
    from pseudoword.toybox import oracle

    return oracle.load()
