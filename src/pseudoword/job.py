"""A job: a recipe with its base loaded and its concepts' pictures encoded, ready to train."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pseudoword import families, hub, methods, toybox, tracking
from pseudoword.batch import Pair
from pseudoword.concept import Concept
from pseudoword.contracts import Engine, Family
from pseudoword.data import examples
from pseudoword.data.dataset import Dataset, TextualInversionDataset
from pseudoword.data.examples import Cached
from pseudoword.data.lessons import Lesson, Portions, ahead, micro_batches
from pseudoword.data.pictures import ConceptPictures, FramedPictures
from pseudoword.errors import OutOfMemory, PseudowordError, RecipeError
from pseudoword.families.locate import locate
from pseudoword.families.single_file import is_single_file
from pseudoword.placeholder import vector_tokens
from pseudoword.recipe import BaseModel, ConceptRecipe, Recipe, parse_steps
from pseudoword.run import Checkpoint, Run, refuse_changes
from pseudoword.starting import starting_rows, starting_state

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Job:
    """What a run needs besides its engine and folder, ready to train; concepts that fail on the way leave it."""

    recipe: Recipe
    checkpoint: Checkpoint | None
    facts: dict[str, Any]
    """What a checkpoint says besides its numbers."""
    family: Family
    lessons: list[Lesson]
    """The concepts that are learned, each with its pictures; one that fails on the way is taken out."""
    failed: dict[str, str]
    """Why each of the other concepts is not, by its token."""
    portions: Portions
    steps: int

    def concept(self, lesson: Lesson, rows: Mapping[str, np.ndarray], step: int) -> Concept:
        """Return a word as it is after a step, with what its file should say."""
        wanted = lesson.wanted
        told = _without_paths(self.recipe)
        told = {section: told[section] for section in ("base", "method", "training", "schedule", "data")}
        return Concept(
            token=wanted.token,
            rows=rows,
            property=wanted.property,
            base=told["base"]["model"],
            steps=step,
            metadata={
                "initializer": _shared(wanted.initializer),
                "recipe": json.dumps(_shared(told)),
            },
        )

    def micro_batches(self, first: int) -> Generator[list[Pair]]:
        """Yield what each step from the first on sees; from a cache it is prepared on a thread, ahead of the steps."""
        made = micro_batches(self.lessons, range(first, self.steps), self.portions)
        return ahead(made) if all(isinstance(lesson.source, Cached) for lesson in self.lessons) else made

    def give_up(self, reasons: Mapping[str, str]) -> None:
        """Take concepts out that cannot be learned on."""
        self.failed.update(reasons)
        _forget(self.facts, reasons)
        self.lessons[:] = [lesson for lesson in self.lessons if lesson.token not in reasons]


def prepare(
    engine: Engine, run: Run, recipe: Recipe, dataset: Dataset | None, resume: str | None, pushes: hub.Pushes
) -> Job:
    """Find what an earlier part of the run decided, load the base, and encode what the words are learned from."""
    tracking.check(recipe.output.report_to)
    checkpoint = engine.on_main(lambda: run.find(resume))
    recipe, seed = _seeded(engine, recipe, checkpoint)
    failed = dict(checkpoint.failed) if checkpoint else {}
    attempt = _Attempts(engine, recipe, failed, resumed=checkpoint is not None)
    given = _given(recipe, dataset, attempt)
    share = engine.share(recipe.training.batch_size, recipe.training.gradient_accumulation_steps)
    batch = len(share) * engine.processes
    # What the last bits depend on is as it was in the resumed run, unless it is asked for otherwise.
    same_memory = checkpoint is not None and checkpoint.memory == recipe.engine.memory
    known = recipe.engine.pictures_at_once or (checkpoint.at_once if checkpoint and same_memory else 0)
    facts = {"recipe": _without_paths(recipe), "pictures": _picture_facts(recipe, given), "batch": batch}
    compiled = {"on": True, "off": False}.get(recipe.engine.compile, checkpoint.compiled if checkpoint else None)
    facts["arithmetic"] = {**engine.arithmetic(), AT_ONCE: str(known), COMPILED: str(compiled)}
    if checkpoint:
        refuse_changes(checkpoint, facts)
    engine.on_main(pushes.check)

    base = locate(recipe.base, toybox.BASES)
    recipe = dataclasses.replace(recipe, base=dataclasses.replace(recipe.base, family=base.family))
    family: Family = families.part(base.family, recipe.engine.engine).FAMILY.load(base)
    method = methods.build(recipe.method)
    with _room_for(family):
        engine.prepare(family)
        lessons, rows = _lessons(recipe, family, given, attempt, seed)
        _forget(facts, failed)
        states = {lesson.token: starting_state(lesson.wanted, rows[lesson.token], method) for lesson in lessons}
        if all(isinstance(lesson.source, Cached) for lesson in lessons):
            family.leave_vae()
        engine.start(family, method, rows, states)
    if checkpoint:
        engine.restore(checkpoint.step, checkpoint.arrays)
    pictures = len(share) * len(lessons)
    at_once = known or engine.on_main(lambda: _fitting(recipe, base, engine, lessons, pictures))
    facts["arithmetic"][AT_ONCE] = str(at_once)
    engine.on_main(lambda: run.begin(recipe, checkpoint))
    portions = Portions(seed, batch, share, at_once, family.num_timesteps)
    steps = in_steps(recipe.schedule.steps, recipe, lessons[0].data, engine.processes)
    facts["failed"] = failed
    if engine.step_number < steps:
        done = engine.step_number
        is_compiled = engine.compile(lambda: next(micro_batches(lessons, [done], portions)), steps - done, compiled)
        facts["arithmetic"][COMPILED] = str(is_compiled)
    return Job(recipe, checkpoint, facts, family, lessons, failed, portions, steps)


@contextmanager
def _room_for(family: Family) -> Iterator[None]:
    """Say in a sentence that a base or its pictures do not fit into the device's memory."""
    try:
        yield
    except RuntimeError as error:
        if not family.is_full(error):
            raise
        raise OutOfMemory(
            "The device has not enough memory for the base model and a picture; try memory 'low', another device, or a "
            "smaller resolution."
        ) from error


class _Attempts:
    """Tries what a run of several concepts needs of each; one that fails is noted, and the others go on."""

    def __init__(self, engine: Engine, recipe: Recipe, failed: dict[str, str], *, resumed: bool) -> None:
        self.engine, self.recipe, self.failed = engine, recipe, failed
        self._all_or_nothing = resumed or len(recipe.concepts) == 1

    def __call__(self, wanted: ConceptRecipe, make: Callable[[], T]) -> T | None:
        """Return what is made, on every process; None if it fails on one of them."""
        made = failed = None
        try:
            made = make()
        except PseudowordError as error:
            failed = error
        if not self.engine.any(failed is not None):
            return made
        if self._all_or_nothing and failed:
            raise failed
        if self._all_or_nothing:
            raise RecipeError(f"{wanted.token} cannot be learned: another process could not read its pictures.")
        self.failed[wanted.token] = str(failed or "Another process could not read it.")
        log.warning("%s is left out, and the others are learned: %s", wanted.token, self.failed[wanted.token])
        return None


def _given(recipe: Recipe, dataset: Dataset | None, attempt: _Attempts) -> dict[str, ConceptPictures | Dataset]:
    """Return the pictures of every concept that has some."""
    if dataset is not None:
        if recipe.data.augment:
            raise RecipeError(
                "augment is for folders of pictures, but a dataset of your own is trained on; augment in its items, or "
                "leave augment out."
            )
        if len(recipe.concepts) > 1:
            raise RecipeError(
                f"A dataset of your own is for one concept, but the recipe has {len(recipe.concepts)}; "
                "train them one by one, or from folders."
            )
        return {wanted.token: dataset for wanted in recipe.concepts}
    given = {}
    for wanted in (own for own in recipe.concepts if own.token not in attempt.failed):
        found = attempt(wanted, functools.partial(ConceptPictures, wanted, recipe.data))
        if found is not None:
            given[wanted.token] = found
    return given


def _lessons(
    recipe: Recipe, family: Family, given: Mapping[str, ConceptPictures | Dataset], attempt: _Attempts, seed: int
) -> tuple[list[Lesson], dict[str, dict[str, np.ndarray]]]:
    """Lend the words to the base, and return what each is learned from and its first rows."""
    lessons: list[Lesson] = []
    rows = {}
    for wanted in (own for own in recipe.concepts if own.token in given):
        own, number = given[wanted.token], len(lessons)
        made = attempt(wanted, functools.partial(_lesson, recipe, family, wanted, own, number, seed))
        if made is None:
            for vocabulary in family.vocabularies.values():
                vocabulary.give_back(wanted.token)
            continue
        lesson, rows[wanted.token] = made
        lessons.append(lesson)
    if not lessons:
        told = " ".join(attempt.failed.values())
        raise RecipeError(f"None of the {len(recipe.concepts)} concepts can be learned: {told}")
    return lessons, rows


def _lesson(
    recipe: Recipe, family: Family, wanted: ConceptRecipe, given: ConceptPictures | Dataset, number: int, seed: int
) -> tuple[Lesson, dict[str, np.ndarray]]:
    """Lend a word to the base, and return what it is learned from and its first rows."""
    rows = starting_rows(family.vocabularies, wanted)
    data = given.framed(family) if isinstance(given, ConceptPictures) else given
    source = examples.prepare(
        data,
        {encoder: vocabulary.alone(wanted.token) for encoder, vocabulary in family.vocabularies.items()},
        vector_tokens(wanted.token, wanted.num_vectors),
        family.encode_images,
        seed=seed,
        workers=recipe.data.workers,
    )
    return Lesson(wanted, number, data, source), rows


def _forget(facts: dict[str, Any], tokens: Iterable[str]) -> None:
    """Take these concepts' pictures out of a checkpoint's facts; a resumed run does not look at them."""
    gone = tuple(f"{token}: " for token in tokens)
    facts["pictures"] = [fact for fact in facts["pictures"] if not fact.startswith(gone)]


AT_ONCE = "micro-batch"
"""What a checkpoint calls the pictures that went through the model together."""
COMPILED = "compiled"
"""What it calls whether the denoiser was compiled."""
MARGIN = 2
"""Times what a forward pass keeps that has to be free: the backward pass has arrays of its own."""


def _fitting(recipe: Recipe, base: BaseModel, engine: Engine, lessons: Sequence[Lesson], pictures: int) -> int:
    """Return how many of a step's pictures go through the model at once: all of them, or as many as memory holds."""
    batch_size = recipe.training.batch_size
    if recipe.engine.memory != "auto":
        return engine.devices
    if pictures == batch_size:
        return batch_size
    shapes = (shape for lesson in lessons for shape in lesson.source.latent_shapes)
    kept = engine.kept_for_gradient(base, max(shapes, key=lambda shape: shape[1] * shape[2]), batch_size)
    fitting = batch_size * max(1, engine.free_memory() // (MARGIN * kept))
    log.info("Taking %d of %d pictures of a step at once, as memory allows", min(pictures, fitting), pictures)
    return min(pictures, fitting)


def in_steps(length: str, recipe: Recipe, data: Dataset | FramedPictures, processes: int) -> int:
    """Return a length of steps or epochs in optimizer steps."""
    number, unit = parse_steps(length)
    if unit == "steps":
        return number
    micro_batches = math.ceil(len(data) / (recipe.training.batch_size * processes))
    return number * math.ceil(micro_batches / recipe.training.gradient_accumulation_steps)


def _seeded(engine: Engine, recipe: Recipe, checkpoint: Checkpoint | None) -> tuple[Recipe, int]:
    """Return the recipe with a seed, and the seed: its own, the resumed run's, or a new one."""
    seed = recipe.training.seed
    if seed is None:
        seed = checkpoint.seed if checkpoint else engine.on_main(lambda: secrets.randbelow(2**32))
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, seed=seed)), seed


def _picture_facts(recipe: Recipe, given: Mapping[str, ConceptPictures | Dataset]) -> list[str]:
    """Return what a resumed run must find again: of several concepts, each fact after the concept's token."""
    named = [(f"{token}: " if len(recipe.concepts) > 1 else "", own) for token, own in given.items()]
    return [before + fact for before, own in named for fact in _facts_of(own)]


def _facts_of(data: ConceptPictures | Dataset) -> list[str]:
    if isinstance(data, ConceptPictures):
        return data.facts()
    if isinstance(data, TextualInversionDataset):
        return [picture.fact for picture in data.pictures]
    return [f"{type(data).__name__} of {len(data)}"]


def _without_paths(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's values, a base in a folder or file by its name: the rest of its path is about a disk."""
    values = recipe.to_dict()
    for name in {"model", "config"} & values["base"].keys():
        path = Path(values["base"][name]).expanduser()
        if path.is_dir():
            values["base"][name] = path.resolve().name
        elif is_single_file(str(path)):
            values["base"][name] = path.name  # not resolved: in the Hub's cache a file is a link to a hash
    return values


def _shared(value: Any) -> Any:
    """Return plain values for others to read, of places on this disk only the last part: words are given away."""
    if isinstance(value, dict):
        return {name: _shared(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shared(inner) for inner in value]
    is_place = isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~/", "./", "../")))
    return Path(value).name if is_place else value
