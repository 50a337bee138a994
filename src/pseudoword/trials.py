"""Trials: many runs that a question needs, trained one after the other, each in a folder of its own to go on from."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pseudoword import interruption
from pseudoword.errors import RunError, TrainingStopped
from pseudoword.evaluate.words import Asked, Word, words_of
from pseudoword.recipe import ConceptRecipe, Recipe
from pseudoword.settings import flat
from pseudoword.toybox import suite
from pseudoword.toybox.suite import Subject
from pseudoword.training import train

log = logging.getLogger(__name__)

TOKEN = "<word>"
BASE = {"model": "toybox"}
WATCHED = ("concepts", "base", "method", "data", "training", "schedule")
"""Sections of a recipe that make a run another run."""


@dataclass(frozen=True)
class Trial:
    """One run of many."""

    name: str
    recipe: Recipe
    """With a seed, and the trial's own folder."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.recipe.output.folder)

    @property
    def is_done(self) -> bool:
        """Whether the run has come to its end; its card is what a run writes last."""
        return (self.folder / "README.md").exists()

    def check(self) -> None:
        """Raise RunError if the folder holds a run of another recipe."""
        path = self.folder / "recipe.toml"
        if not path.exists():
            return
        old, new = (_watched(recipe) for recipe in (Recipe.read(path), self.recipe))
        changed = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
        if changed:
            told = "; ".join(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in changed)
            raise RunError(f"{str(self.folder)!r} holds a run of another recipe: {told}. Name another --output.")


def _watched(recipe: Recipe) -> dict[str, Any]:
    """Return what makes a run this one, by dotted name."""
    return flat({name: value for name, value in recipe.to_dict().items() if name in WATCHED})


# Which


def plain_recipe() -> Recipe:
    """Return the recipe of the suite's plain runs, whose concept stands for any."""
    return suite.plain(ConceptRecipe(TOKEN, ".", "thing"))


def read(path: Path) -> Recipe:
    """Read a recipe that may leave out its concept and its base, which are then the suite's."""
    return Recipe.read(path, {"concepts": [{"token": TOKEN, "pictures": ".", "initializer": "thing"}], "base": BASE})


def of_suite(recipe: Recipe, subjects: Sequence[Subject], seeds: int, folder: Path, name: str = "") -> list[Trial]:
    """Return a trial for each subject and training seed, first all of the first seed; their pictures are written."""
    trials: list[Trial] = []
    for seed in range(seeds):
        for subject in subjects:
            told = "-".join(part for part in (name, subject.name, f"seed-{seed}") if part)
            suite.write(subject, folder / "pictures" / subject.name)
            given = suite.concept(subject, folder / "pictures" / subject.name, recipe.concepts[0])
            trials.append(_trial(told, dataclasses.replace(recipe, concepts=(given,)), seed, folder))
    return trials


def of_seeds(recipe: Recipe, seeds: int, folder: Path, name: str = "") -> list[Trial]:
    """Return a trial of the recipe's own concept for each training seed."""
    told = f"{name}-" if name else ""
    return [_trial(f"{told}seed-{seed}", recipe, seed, folder) for seed in range(seeds)]


def _trial(name: str, recipe: Recipe, seed: int, folder: Path) -> Trial:
    output = dataclasses.replace(
        recipe.output,
        folder=str(folder / "runs" / name),
        report_to="none",
        push_to_hub=False,
        push_steps=None,
        full_pipeline=False,
    )
    training = dataclasses.replace(recipe.training, seed=seed)
    return Trial(name, dataclasses.replace(recipe, training=training, output=output))


# Carrying out


def words(trials: Sequence[Trial], steps: Sequence[int] | None = None) -> tuple[list[Word], dict[str, str]]:
    """Train, and return the words to evaluate, and why by name for each run that had to stop; see `carry_out`."""
    failed = carry_out(trials)
    left = [str(trial.folder) for trial in trials if trial.name not in failed]
    if not left:
        raise TrainingStopped(f"No run has come to its end. {next(iter(failed.values()))}")
    return [word for path in left for word in words_of(path, Asked(), steps)], failed


def carry_out(trials: Sequence[Trial]) -> dict[str, str]:
    """Train what is not yet trained, and return why by name for each run that had to stop.

    RunError names a folder with another recipe, before anything is trained; Interrupted says how to go on.
    """
    for trial in trials:
        trial.check()
    left = [trial for trial in trials if not trial.is_done]
    if len(left) < len(trials):
        log.info("%d of %d runs are done already.", len(trials) - len(left), len(trials))
    began, failed = time.monotonic(), {}
    for number, trial in enumerate(left):
        pace = (time.monotonic() - began) / number if number else None
        remaining = f", about {pace * (len(left) - number) / 60:.0f} min left" if pace else ""
        log.info("Run %d of %d: %s%s", number + 1, len(left), trial.name, remaining)
        try:
            _train(trial)
        except TrainingStopped as error:
            log.warning("The run %s is left out: %s", trial.name, error)
            failed[trial.name] = str(error)
    return failed


def _train(trial: Trial) -> None:
    resume = "latest" if any(trial.folder.glob("checkpoint-*")) else None
    interruption.carry_out(
        lambda stop: train(trial.recipe, resume=resume, stop=stop), "the same command", only_at_terminal=True
    )
