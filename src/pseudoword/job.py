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

from pseudoword import families, formats, methods
from pseudoword.batch import Pair
from pseudoword.checkpoints import Checkpoint, refuse_changes
from pseudoword.cohorts import Cohort
from pseudoword.concept import Concept
from pseudoword.contracts import Engine, Family
from pseudoword.data import examples
from pseudoword.data.dataset import Dataset, TextualInversionDataset
from pseudoword.data.examples import Cached
from pseudoword.data.folder import Picture
from pseudoword.data.lessons import Lesson, Portions, ahead, micro_batches
from pseudoword.data.pictures import ConceptPictures, FramedPictures
from pseudoword.errors import OutOfMemory, PseudowordError, RecipeError
from pseudoword.families.single_file import is_single_file
from pseudoword.placeholder import vector_tokens
from pseudoword.recipe import BaseModel, ConceptRecipe, Recipe, parse_steps
from pseudoword.starting import starting_rows, starting_state
from pseudoword.summaries import count_ready
from pseudoword.toybox import limits

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Job:
    """What a run needs besides its engine and folder, ready to train; concepts that fail on the way leave it."""

    cohort: Cohort
    recipe: Recipe
    facts: dict[str, Any]
    """What a checkpoint says besides its numbers."""
    family: Family
    lessons: list[Lesson]
    """The concepts that are learned, each with its pictures; one that fails on the way is taken out."""
    failed: dict[str, str]
    """Why each of the other concepts is not, by its token."""
    portions: Portions
    steps: int
    beside: list[Mapping[str, np.ndarray]]
    """Rows of words of other cohorts that validation prompts show, in the order in which they are lent."""
    first_rows: Mapping[str, Mapping[str, np.ndarray]]
    """Where each word's rows started, by token and text encoder."""

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


@dataclass
class Plan:
    """A cohort whose pictures are found, before anything is loaded; nothing that must not change has changed."""

    cohort: Cohort
    recipe: Recipe
    """The cohort's, with a seed."""
    seed: int
    given: Mapping[str, ConceptPictures | Dataset]
    share: Sequence[int]
    facts: dict[str, Any]
    known: int
    """Pictures that go through the model at once, if that is decided already."""
    compiled: bool | None
    """Whether the denoiser is compiled, if that is decided already."""


def plan(engine: Engine, cohort: Cohort, dataset: Dataset | None) -> Plan:
    """Find a cohort's pictures, and refuse what would not be the same run."""
    checkpoint = cohort.checkpoint
    recipe, seed = _seeded(engine, cohort.recipe, checkpoint)
    given = _given(recipe, dataset, _Attempts(engine, cohort))
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
    return Plan(cohort, recipe, seed, given, share, facts, known, compiled)


def is_finished(engine: Engine, plan: Plan) -> bool:
    """Whether one of several cohorts has nothing left to train or write; the same on every process."""
    cohort = plan.cohort
    if not cohort.others:
        return False
    steps, _ = parse_steps(plan.recipe.schedule.steps)  # of several concepts they are no epochs
    return engine.on_main(lambda: cohort.is_done(steps))


def prepare(engine: Engine, plan: Plan, base: BaseModel) -> Job | None:
    """Load the base, and encode what a cohort's words are learned from; None if none of a later cohort's can be."""
    cohort, facts = plan.cohort, plan.facts
    checkpoint, failed, known = cohort.checkpoint, cohort.failed, plan.known
    if not (plan.given or cohort.is_first):
        return None
    recipe = dataclasses.replace(plan.recipe, base=dataclasses.replace(plan.recipe.base, family=base.family))
    if limits.is_toybox(base.model):
        _say_limits(plan.given)
    family: Family = families.part(base.family, recipe.engine.engine).FAMILY.load(base)
    method = methods.build(recipe.method)
    with _room_for(family):
        engine.prepare(family)
        lessons, rows = _lessons(recipe, family, plan.given, _Attempts(engine, cohort), plan.seed)
        if not lessons:
            return None
        _forget(facts, failed)
        beside = _beside(family, cohort)
        states = {lesson.token: starting_state(lesson.wanted, rows[lesson.token], method) for lesson in lessons}
        if all(isinstance(lesson.source, Cached) for lesson in lessons):
            family.leave_vae()
        engine.start(family, method, rows, states)
    if checkpoint:
        engine.restore(checkpoint.step, checkpoint.arrays)
    pictures = len(plan.share) * len(lessons)
    at_once = known or engine.on_main(lambda: _fitting(recipe, base, engine, lessons, pictures))
    facts["arithmetic"][AT_ONCE] = str(at_once)
    engine.on_main(lambda: cohort.run.begin(recipe, checkpoint))
    portions = Portions(plan.seed, facts["batch"], plan.share, at_once, family.num_timesteps)
    steps = in_steps(recipe.schedule.steps, recipe, lessons[0].data, engine.processes)
    facts["failed"] = failed
    if engine.step_number < steps:
        done = engine.step_number
        is_compiled = engine.compile(
            lambda: next(micro_batches(lessons, [done], portions)), steps - done, plan.compiled
        )
        facts["arithmetic"][COMPILED] = str(is_compiled)
    return Job(cohort, recipe, facts, family, lessons, failed, portions, steps, beside, rows)


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


def _say_limits(given: Mapping[str, ConceptPictures | Dataset]) -> None:
    """Say once that pictures are not of the toybox's world."""
    pictures: list[Picture] = []
    for data in given.values():
        pictures += getattr(data, "pictures", [])
    limit = limits.overstepped(pictures)
    if limit:
        log.warning(limit)


class _Attempts:
    """Tries what a run of several concepts needs of each; one that fails is noted, and the others go on."""

    def __init__(self, engine: Engine, cohort: Cohort) -> None:
        self.engine, self.cohort, self.failed = engine, cohort, cohort.failed
        is_all_of_a_run = cohort.is_first and len(cohort.concepts) == 1
        self._all_or_nothing = cohort.checkpoint is not None or is_all_of_a_run

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


def with_dataset(recipe: Recipe, dataset: Dataset | None) -> Recipe:
    """Return the recipe with the class of a dataset of one's own; RecipeError if it names one that is not there."""
    if dataset is not None:
        kind = type(dataset)
        return dataclasses.replace(recipe, dataset=f"{kind.__module__}.{kind.__qualname__}")
    if recipe.dataset is not None:
        raise RecipeError(
            f"The recipe is of a run with a dataset of its own, {recipe.dataset}; pass one in Python: "
            "train(recipe, dataset=…), or take the line 'dataset' out of the recipe to learn from its pictures."
        )
    return recipe


def _given(recipe: Recipe, dataset: Dataset | None, attempt: _Attempts) -> dict[str, ConceptPictures | Dataset]:
    """Return the pictures of every concept that has some."""
    if dataset is not None:
        if recipe.data.augment:
            raise RecipeError(
                "augment is for folders of pictures, but a dataset of your own is trained on; augment in its items, or "
                "leave augment out."
            )
        if len(attempt.cohort.whole.concepts) > 1:
            raise RecipeError(
                f"A dataset of your own is for one concept, but the recipe has {len(attempt.cohort.whole.concepts)}; "
                "train them one by one, or from folders."
            )
        return {wanted.token: dataset for wanted in recipe.concepts}
    given = {}
    for wanted in (own for own in recipe.concepts if own.token not in attempt.failed):
        found = attempt(wanted, functools.partial(_pictures, attempt.cohort, wanted))
        if found is not None:
            given[wanted.token] = found
    return given


def _pictures(cohort: Cohort, wanted: ConceptRecipe) -> ConceptPictures:
    """Return a concept's pictures, if its word is none that the run has already."""
    if cohort.checkpoint is None:
        cohort.check(wanted)
    return ConceptPictures(wanted, cohort.whole.data)


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
        count_ready(len(lessons), len(given))
    if not lessons and attempt.cohort.is_first:
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


def _beside(family: Family, cohort: Cohort) -> list[Mapping[str, np.ndarray]]:
    """Lend finished words of other cohorts that validation prompts show too, and return their rows."""
    prompts, rows = " ".join(cohort.whole.validation.validation_prompts), []
    for token, place in cohort.others.items():
        if token not in prompts or not formats.files_in(place):
            continue
        word = formats.read(place)
        for vocabulary in family.vocabularies.values():
            vocabulary.lend(token, word.num_vectors)
        rows.append({encoder: words.rows_of(word, encoder) for encoder, words in family.vocabularies.items()})
    return rows


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
