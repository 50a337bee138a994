"""What is looked at along the way, on the main process: the fixed-draw loss and validation pictures. Learns nothing."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from pseudoword.batch import Batch, Draw
from pseudoword.contracts import Engine, Family
from pseudoword.data import examples
from pseudoword.errors import OutOfMemory
from pseudoword.evaluate.fixed_draw import fixed_draws
from pseudoword.evaluate.samples import Samples
from pseudoword.recipe import Recipe
from pseudoword.run import Best, Run
from pseudoword.vocabulary import encode_all

log = logging.getLogger(__name__)

DRAWS = 16
"""Examples of the fixed-draw loss: the same every time, so that few tell one step from another."""


class Validator:
    """Measures and samples a run's word at the steps that its recipe names; training's own draws stay as they are."""

    def __init__(
        self,
        engine: Engine,
        family: Family,
        recipe: Recipe,
        source: examples.Cached | examples.Streamed,
        run: Run,
        *,
        seed: int,
        steps: int,
        every: int,
    ) -> None:
        self.engine, self.family, self.source = engine, family, source
        self.options = recipe.validation
        self.seed, self.steps, self.every = seed, steps, every
        self.samples = Samples(run.samples, self.options, family.resolution)
        [concept] = recipe.concepts
        self.token = concept.token
        self.best: Best | None = None
        """Known on the main process alone."""
        if self.options.validation_prompts:
            self._check_prompts()

    def measure(self, step: int) -> Mapping[str, float]:
        """Return the fixed-draw loss by token, and remember the best step; empty if it is not due, or not finite."""
        if not self.options.loss_steps or not self._is_due(step, self.options.loss_steps):
            return {}
        return self.engine.on_main(lambda: self._measured(step))

    def sample(self, step: int) -> tuple[Path, ...]:
        """Write the validation pictures of a step and return where; nothing if they are not due or there already."""
        if not self.options.validation_prompts or not self._is_due(step, self.every):
            return ()
        return self.engine.on_main(lambda: self._sampled(step))

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.steps

    @functools.cached_property
    def _draws(self) -> list[tuple[Batch, Draw]]:
        return fixed_draws(self.source, self.family, self.token, DRAWS, self.seed)

    def _measured(self, step: int) -> dict[str, float]:
        losses = self.engine.fixed_loss(self._draws)
        loss = losses[self.token]
        if not math.isfinite(loss):
            log.warning("The fixed-draw loss after step %d is %s.", step, loss)
            return {}
        if self.best is None or loss < self.best.loss:
            self.best = Best(step, loss, self.engine.rows()[self.token])
        return losses

    def _sampled(self, step: int) -> tuple[Path, ...]:
        if self.samples.path(step).exists() and self.samples.fits(step):
            return ()
        try:
            return (self.samples.take(step, self.family, self.engine.rows()[self.token]),)
        except OutOfMemory as error:
            log.warning("%s The word is learned all the same, without validation pictures.", error)
            return ()

    def _check_prompts(self) -> None:
        """Say which validation prompts do not show the word."""
        encode_all(self.family.vocabularies, self.options.validation_prompts)  # says what a prompt's end cuts off
        vocabulary = next(iter(self.family.vocabularies.values()))
        for prompt in self.options.validation_prompts:
            if self.token not in vocabulary.encode(prompt).words:
                log.warning(
                    "The validation prompt %r does not hold %s, so its pictures stay as they are.", prompt, self.token
                )
