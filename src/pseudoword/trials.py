"""Trials: many runs that a question needs, trained one after the other, each in a folder of its own to go on from."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pseudoword import disk, recipe_paths, watch
from pseudoword.checkpoints import is_free, read_checkpoint
from pseudoword.data import pictures
from pseudoword.data.pictures import ConceptPictures
from pseudoword.errors import Interrupted, PseudowordError, RecipeError, RunError, TrainingStopped
from pseudoword.evaluate.words import Asked, Word, words_of
from pseudoword.interruption import Interruption
from pseudoword.progress import clock
from pseudoword.recipe import ConceptRecipe, Data, Recipe, parse_steps
from pseudoword.run import Run
from pseudoword.toybox import suite
from pseudoword.toybox.suite import Subject
from pseudoword.training import train

log = logging.getLogger(__name__)

TOKEN = "<word>"
BASE = {"model": "toybox"}


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
        return all((self.folder / name).exists() for name in ("README.md", "recipe.toml"))

    def check(self) -> None:
        """Raise RunError if the folder holds a run of another recipe, or of other pictures."""
        path = self.folder / "recipe.toml"
        if not path.exists():
            return
        try:
            old, new = _told(Recipe.read(path)), _told(self.recipe)
        except RecipeError as error:
            raise RunError(
                f"The run in {str(self.folder)!r} has a recipe that cannot be read; delete that folder to train it "
                "again."
            ) from error
        old["pictures"] = new["pictures"] = "the same"
        for _, checkpoint in Run(self.folder, hold=False).checkpoints()[-1:]:
            with contextlib.suppress(RunError):  # a damaged one says nothing; resuming takes the one before
                old["pictures"] = read_checkpoint(checkpoint).facts["pictures"]
                new["pictures"] = _facts_of(self.recipe.concepts[0], self.recipe.data)
        changed = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
        if changed:
            told = "; ".join(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in changed)
            raise RunError(f"{str(self.folder)!r} holds a run of another recipe: {told}. Name another --output.")


def _told(recipe: Recipe) -> dict[str, Any]:
    """Return what makes a run this one, by dotted name; what resuming may change stands there by what it comes to."""
    training = recipe.training
    placed = Recipe.from_dict(recipe_paths.absolute(recipe.to_dict()))
    values = {name: value for name, value in placed.of_the_word().items() if not is_free(name)}
    for name, choice in values.items():
        if isinstance(choice, str) and Path(choice).is_absolute():
            values[name] = str(Path(choice).resolve())
    values["schedule.steps"] = " ".join(map(str, parse_steps(recipe.schedule.steps)))
    return {**values, "pictures of a step": training.batch_size * training.gradient_accumulation_steps}


@functools.lru_cache
def _facts_of(wanted: ConceptRecipe, data: Data) -> list[str]:
    """Return what the pictures of a concept are, read once for all of its trials."""
    return ConceptPictures(wanted, data, pictures.find(wanted.pictures, data)).facts()


# Which


def plain_recipe() -> Recipe:
    """Return the recipe of the suite's plain runs, whose concept stands for any."""
    return suite.plain(ConceptRecipe(TOKEN, ".", "thing"))


def read(path: Path) -> Recipe:
    """Read a recipe that may leave out its concept and its base, which are then the suite's."""
    return Recipe.read(path, {"concepts": [{"token": TOKEN, "pictures": ".", "initializer": "thing"}], "base": BASE})


def leaving(recipe: Recipe, steps: Sequence[int] | None) -> Recipe:
    """Return a recipe whose runs leave words at these steps; RecipeError if they are shorter."""
    if not steps:
        return recipe
    length, unit = parse_steps(recipe.schedule.steps)
    if min(steps) < 1 or (unit == "steps" and max(steps) > length):
        raise RecipeError(f"--steps are 1 to {recipe.schedule.steps}, as long as a run is, not {max(steps)}.")
    return dataclasses.replace(recipe, output=dataclasses.replace(recipe.output, save_steps=math.gcd(*steps)))


def of_suite(recipe: Recipe, subjects: Sequence[Subject], seeds: int, folder: Path, name: str = "") -> list[Trial]:
    """Return a trial for each subject and training seed, first all of the first seed; their pictures are written."""
    trials: list[Trial] = []
    with disk.writing(folder):
        for subject in subjects:
            suite.write(subject, folder / "pictures" / subject.name)
    for seed in range(seeds):
        for subject in subjects:
            told = "-".join(part for part in (name, subject.name, f"seed-{seed}") if part)
            given = suite.concept(subject, (folder / "pictures" / subject.name).resolve(), recipe.concepts[0])
            trials.append(_trial(told, dataclasses.replace(recipe, concepts=(given,), dataset=None), seed, folder))
    return trials


def of_seeds(recipe: Recipe, seeds: int, folder: Path, name: str = "") -> list[Trial]:
    """Return a trial of the recipe's own concept for each training seed."""
    told = f"{name}-" if name else ""
    return [_trial(f"{told}seed-{seed}", recipe, seed, folder) for seed in range(seeds)]


def _trial(name: str, recipe: Recipe, seed: int, folder: Path) -> Trial:
    output = dataclasses.replace(
        recipe.output,
        folder=str((folder / "runs" / name).resolve()),
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
    with Interruption() as interruption:
        for number, trial in enumerate(left):
            pace = (time.monotonic() - began) / number if number else None
            remaining = f", about {clock(pace * (len(left) - number))} left" if pace else ""
            log.info("Run %d of %d: %s%s", number + 1, len(left), trial.name, remaining)
            try:
                _train(trial, interruption)
            except Interrupted:
                raise
            except PseudowordError as error:
                log.warning("The run %s is left out: %s", trial.name, error)
                failed[trial.name] = str(error)
    return failed


def _train(trial: Trial, interruption: Interruption) -> None:
    """Train to the end, shown where a person looks on; Interrupted if a signal has come, even in the last step."""
    resume = "latest" if any(trial.folder.glob("checkpoint-*")) else None
    run = train(trial.recipe, resume=resume, stop=interruption.wanted)
    watch.follow(run, quiet=not sys.stderr.isatty(), transient=True)
    if interruption.signal is not None:
        raise Interrupted(f"Stopped in {trial.name}; the same command goes on.", interruption.exit_code)
