"""Cohorts: the concepts of a run that are trained together from one step 0.

A run begins as one cohort. Concepts that are added to its recipe later, or that had failed and are tried again, make
another one, with a log and checkpoints of its own (`added-1/`) and their words beside the others (`words/`). No cohort
sees what another does, so nobody's numbers depend on who came later: a word that is added alone is, bit for bit, what a
run of it alone would learn.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pseudoword import disk, formats, layout
from pseudoword.checkpoints import Checkpoint
from pseudoword.errors import PseudowordError, TokenError
from pseudoword.placeholder import vector_tokens
from pseudoword.recipe import ConceptRecipe, Recipe
from pseudoword.run import Run, word_files, write_recipe
from pseudoword.settings import build


@dataclass
class Cohort:
    """Concepts that are trained together, and how far they have come."""

    folder: Path
    """Where its log and checkpoints are: the run's own, or inside it."""
    whole: Recipe
    """The recipe of the whole run."""
    concepts: tuple[ConceptRecipe, ...]
    """Its own, in the order of its checkpoint, those that it has given up included."""
    checkpoint: Checkpoint | None
    home: Path
    """The run's folder."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why some of its concepts are not learned, by token."""
    others: Mapping[str, Path] = field(default_factory=dict)
    """The folders of the words that other cohorts learn, by token."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of its concepts."""
        return replace(self.whole, concepts=self.concepts)

    @property
    def is_first(self) -> bool:
        """Whether it is what the run began with."""
        return self.folder == self.home

    @property
    def tokens(self) -> list[str]:
        """The words that it learns."""
        return [concept.token for concept in self.concepts if concept.token not in self.failed]

    @property
    def run(self) -> Run:
        """Its folder, with those of its words."""
        if self.checkpoint is None and self.is_first:
            return Run(self.folder, hold=False)
        places = Run(self.home, hold=False).places(self.whole)
        return Run(self.folder, hold=False, home=self.home, places={token: places[token] for token in self.tokens})

    def is_done(self, steps: int) -> bool:
        """Whether its words are as they will be after so many steps."""
        if self.checkpoint is None or self.checkpoint.step < steps:
            return False
        places = self.run.places(self.recipe)
        return all(_steps_of(places[token]) == self.checkpoint.step for token in self.tokens)

    def check(self, concept: ConceptRecipe) -> None:
        """Refuse a new word that cannot be written in one prompt with those of other cohorts; TokenError says why."""
        names = set(vector_tokens(concept.token, concept.num_vectors))
        for other in self.whole.concepts:
            both = names & set(vector_tokens(other.token, other.num_vectors)) if other.token in self.others else set()
            if both:
                raise TokenError(f"The token {min(both)!r} is already the name of a learned word here; choose another.")


def cohorts(run: Run, recipe: Recipe, resume: str | None) -> list[Cohort]:
    """Return a run's cohorts, in the order in which they are trained: the latest first. A new run has one.

    What is in the recipe, but was not learned or has failed, begins anew in one more.
    """
    first = run.find(resume)
    if first is None:
        return [Cohort(run.folder, recipe, recipe.concepts, None, run.folder)]
    if recipe.training.seed is None:
        recipe = replace(recipe, training=replace(recipe.training, seed=first.seed))
    known: list[Cohort] = []
    taken: set[str] = set()
    unused: Path | None = None
    for folder in reversed(layout.added(run.folder)):
        part = Run(folder, hold=False)
        checkpoint = part.find("latest") if part.checkpoints() else None
        if checkpoint is None or not set(_tokens(checkpoint)) - taken:
            unused = folder
            continue
        known.append(_known(folder, recipe, checkpoint, run.folder, taken))
        taken |= set(known[-1].tokens)
    known.append(_known(run.folder, recipe, first, run.folder, taken))
    taken |= set(known[-1].tokens)
    rest = tuple(concept for concept in recipe.concepts if concept.token not in taken)
    if rest:
        folder = unused or run.folder / f"added-{len(layout.added(run.folder)) + 1}"
        known.insert(0, Cohort(folder, recipe, rest, None, run.folder))
    places = run.places(recipe)
    for cohort in known:
        cohort.others = {token: place for token, place in places.items() if token not in cohort.tokens}
    return known


def failed_of(several: Sequence[Cohort]) -> dict[str, str]:
    """Return why concepts of the run's recipe are not learned, by token."""
    learned = {token for cohort in several for token in cohort.tokens}
    reasons: dict[str, str] = {}
    for cohort in reversed(several):  # the latest reason is what counts
        reasons |= cohort.failed
    order = [concept.token for concept in several[0].whole.concepts]
    return {token: reasons[token] for token in order if token in reasons and token not in learned}


def note(home: Path, failed: Mapping[str, str]) -> None:
    """Write why concepts are not learned where whoever looks at the run's folder finds it."""
    path = home / layout.NOT_LEARNED
    if failed:
        disk.write(path, json.dumps(failed, indent=1, ensure_ascii=False) + "\n")
    else:
        disk.remove(path)


def _known(folder: Path, recipe: Recipe, checkpoint: Checkpoint, home: Path, taken: Collection[str]) -> Cohort:
    """Return the cohort that kept a checkpoint, without words that a later one has learned anew."""
    old = {values["token"]: values for values in checkpoint.facts["recipe"]["concepts"]}
    new = {concept.token: concept for concept in recipe.concepts}
    checkpoint = _without(checkpoint, [token for token in _tokens(checkpoint) if token in taken])
    if any(token not in new for token in _tokens(checkpoint)):
        return Cohort(folder, recipe, recipe.concepts, checkpoint, home)  # which is refused, as a run of other words
    concepts = []
    for token, values in old.items():
        is_failed = token in checkpoint.failed
        concepts.append(build(ConceptRecipe, values, "concepts") if is_failed else new[token])
    return Cohort(folder, recipe, tuple(concepts), checkpoint, home, dict(checkpoint.failed))


def _tokens(checkpoint: Checkpoint) -> list[str]:
    """Return the words that a checkpoint has, in the order of its numbers."""
    tokens = [values["token"] for values in checkpoint.facts["recipe"]["concepts"]]
    return [token for token in tokens if token not in checkpoint.failed]


def _without(checkpoint: Checkpoint, tokens: Sequence[str]) -> Checkpoint:
    """Return a checkpoint as if these words had been given up before it."""
    if not tokens:
        return checkpoint
    remaining = [i for i, token in enumerate(_tokens(checkpoint)) if token not in tokens]
    numbers = {str(old): str(new) for new, old in enumerate(remaining)}
    arrays: dict[str, Any] = {}
    for name, array in checkpoint.arrays.items():
        kind, _, rest = name.partition(".")
        number, _, block = rest.partition(".")
        if kind not in ("params", "state"):
            arrays[name] = array
        elif number in numbers:
            arrays[f"{kind}.{numbers[number]}.{block}"] = array
    starts = tuple(f"{token}: " for token in tokens)
    pictures = [fact for fact in checkpoint.facts["pictures"] if not fact.startswith(starts)]
    failed = {**checkpoint.failed, **dict.fromkeys(tokens, "it was begun anew later")}
    best = {token: best for token, best in checkpoint.best.items() if token not in tokens}
    return replace(
        checkpoint, arrays=arrays, facts={**checkpoint.facts, "pictures": pictures, "failed": failed}, best=best
    )


def _steps_of(place: Path) -> int:
    """Return how many steps a finished word in a folder has had; -1 if there is none."""
    if not (place / "README.md").is_file():  # the last that is written of it
        return -1
    try:
        return formats.read(place).steps
    except PseudowordError:
        return -1


# Where words are


def settle(several: Sequence[Cohort], family: str | None) -> None:
    """Write the recipe of a run that goes on, and move its words to where a run of so many concepts has them."""
    home, recipe = several[0].home, several[0].whole
    recipe = replace(recipe, base=replace(recipe.base, family=family))
    run = Run(home, hold=False)
    places = run.places(recipe)
    for folder in [home, *sorted((home / layout.WORDS).glob("*"))]:
        there = places.get(_only_token(folder) or "")
        moving = word_files(folder) if there not in (None, folder) else []
        if there is None or not moving:
            continue
        there.mkdir(parents=True, exist_ok=True)
        if in_the_way := word_files(there):
            run.set_aside(in_the_way)
        for path in moving:
            disk.move(path, there / path.name)
        if folder != home:
            disk.remove(folder / "recipe.toml")
    write_recipe(recipe, home)
    for cohort in several:
        if cohort.checkpoint:
            cohort.run.describe_words(recipe)


def _only_token(folder: Path) -> str | None:
    """Return the word of a folder of one; None if its recipe says otherwise, or there is none."""
    try:
        concepts = Recipe.read(folder / "recipe.toml").concepts
    except PseudowordError:
        return None
    return concepts[0].token if len(concepts) == 1 else None
