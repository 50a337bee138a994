"""What is looked at along the way, on the main process: the fixed-draw loss and validation pictures. Learns nothing."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pseudoword import layout
from pseudoword.batch import Pair
from pseudoword.checkpoints import Best
from pseudoword.contracts import Engine, Family
from pseudoword.data.lessons import Lesson, Portions, grouped
from pseudoword.errors import OutOfMemory
from pseudoword.evaluate.fixed_draw import BATCH, fixed_draws
from pseudoword.evaluate.samples import Samples
from pseudoword.recipe import Recipe, Validation
from pseudoword.vocabulary import encode_all, warn_of_strays

log = logging.getLogger(__name__)

DRAWS = 16
"""Examples of the fixed-draw loss: the same every time, so that few tell one step from another."""


class Validator:
    """Measures and samples a run's words at the steps that its recipe names; training's own draws stay as they are."""

    def __init__(
        self,
        engine: Engine,
        family: Family,
        recipe: Recipe,
        lessons: Sequence[Lesson],
        places: Mapping[str, Path],
        portions: Portions,
        *,
        steps: int,
        every: int,
        beside: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> None:
        """`lessons` is the run's own list, from which concepts that are given up disappear.

        `recipe` is that of the whole run; `beside` has rows of words that are lent after those of the lessons.
        """
        self.engine, self.family, self.lessons, self.portions = engine, family, lessons, portions
        self.options = recipe.validation
        self.steps, self.every, self.beside = steps, every, beside
        self.samples = {
            lesson.token: Samples(places[lesson.token] / layout.SAMPLES, options, family.resolution)
            for lesson in lessons
            if (options := self._asked(recipe, lesson.token)).validation_prompts
        }
        told = recipe.engine.memory != "auto" or recipe.engine.pictures_at_once
        # Without gradients more fits than in training.
        self._at_once = portions.at_once if told else max(portions.at_once, BATCH)
        self.best: dict[str, Best] = {}
        """By token; known on the main process alone."""
        self._fixed: dict[str, list[Pair]] = {}
        if self.options.validation_prompts:
            self._check_prompts(recipe)

    def _asked(self, recipe: Recipe, token: str) -> Validation:
        return dataclasses.replace(self.options, validation_prompts=prompts_of(recipe, token))

    def measure(self, step: int) -> Mapping[str, float]:
        """Return the fixed-draw loss by token, and remember the best steps; empty if it is not due, or not finite."""
        if not self.options.loss_steps or not self._is_due(step, self.options.loss_steps):
            return {}
        return self.engine.on_main(lambda: self._measured(step))

    def sample(self, step: int) -> tuple[Path, ...]:
        """Write the validation pictures of a step and return where; nothing if they are not due or there already."""
        if not self.samples or not self._is_due(step, self.every):
            return ()
        return self.engine.on_main(lambda: self._sampled(step))

    def shown(self, step: int) -> list[tuple[str, list[Image.Image]]]:
        """Return the prompts of all words, each with its pictures of a step."""
        return [
            pair
            for samples in self._of_lessons()
            if samples.path(step).exists()
            for pair in zip(samples.options.validation_prompts, samples.pictures(step), strict=True)
        ]

    def strip(self, token: str) -> Path | None:
        """Write the strip of a word's pictures over the steps, if there are any, and return where it is."""
        return self.samples[token].strip() if token in self.samples else None

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.steps

    def _of_lessons(self) -> Iterator[Samples]:
        return (self.samples[lesson.token] for lesson in self.lessons if lesson.token in self.samples)

    def _draws(self) -> list[Pair]:
        """Return the fixed draws of all words that are learned, those of one shape together."""
        for lesson in self.lessons:
            if lesson.token not in self._fixed:
                self._fixed[lesson.token] = fixed_draws(lesson, self.family.num_timesteps, DRAWS, self.portions.seed)
        pairs = [pair for lesson in self.lessons for pair in self._fixed[lesson.token]]
        return grouped(pairs, self._at_once)

    def _measured(self, step: int) -> dict[str, float]:
        losses = self.engine.fixed_loss(self._draws())
        for token, loss in losses.items():
            if not math.isfinite(loss):
                log.warning("The fixed-draw loss of %s after step %d is %s.", token, step, loss)
        losses = {token: loss for token, loss in losses.items() if math.isfinite(loss)}
        rows = self.engine.rows()
        for token, loss in losses.items():
            if token not in self.best or loss < self.best[token].loss:
                self.best[token] = Best(step, loss, rows[token])
        return losses

    def _sampled(self, step: int) -> tuple[Path, ...]:
        made: list[Path] = []
        rows = self._rows()
        for samples in self._of_lessons():
            if samples.path(step).exists() and samples.fits(step):
                continue
            try:
                made.append(samples.take(step, self.family, rows))
            except OutOfMemory as error:
                log.warning("%s The word is learned all the same, without validation pictures.", error)
        return tuple(made)

    def _rows(self) -> dict[str, np.ndarray]:
        """Return the rows of all words under each other, as they were lent."""
        blocks = [*self.engine.rows().values(), *self.beside]
        return {encoder: np.concatenate([own[encoder] for own in blocks]) for encoder in blocks[0]}

    def _check_prompts(self, recipe: Recipe) -> None:
        """Say which validation prompts do not show a word."""
        tokens = [lesson.token for lesson in self.lessons]
        prompts = [prompt.replace(SLOT, token) for prompt in self.options.validation_prompts for token in tokens]
        prompts = list(dict.fromkeys(prompts))
        encode_all(self.family.vocabularies, prompts)  # says what a prompt's end cuts off
        warn_of_strays(self.family.vocabularies, [*prompts, self.options.validation_negative_prompt])
        vocabulary = next(iter(self.family.vocabularies.values()))
        for prompt in prompts:
            if set(tokens) & set(vocabulary.encode(prompt).words):
                continue
            several = len(recipe.concepts) > 1
            if several and any(prompt in prompts_of(recipe, concept.token) for concept in recipe.concepts):
                continue  # it is for a word that is trained apart
            if several:
                log.warning("The validation prompt %r holds none of the words, so it is left out.", prompt)
                continue
            log.warning(
                "The validation prompt %r does not hold %s, so its pictures stay as they are.", prompt, tokens[0]
            )


SLOT = "{}"
"""What stands for the word in a prompt."""


def prompts_of(recipe: Recipe, token: str) -> tuple[str, ...]:
    """Return a word's validation prompts, written out; of several words, those that are for all or hold this one."""
    prompts = recipe.validation.validation_prompts
    if len(recipe.concepts) > 1:
        alone = re.compile(rf"(?<!\w){re.escape(token)}(?!\w)")  # as the vocabulary reads it
        prompts = tuple(prompt for prompt in prompts if SLOT in prompt or alone.search(prompt))
    return tuple(prompt.replace(SLOT, token) for prompt in prompts)
