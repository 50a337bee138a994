"""`train(recipe)`: from a recipe to a learned word, one optimizer step at a time."""

from __future__ import annotations

import dataclasses
import errno
import gc
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pseudoword import card, disk, engines, formats, hub, schedules, toybox, tracking, weightings
from pseudoword.batch import Pair
from pseudoword.cohorts import Cohort, cohorts, failed_of, note, settle
from pseudoword.concept import Concept
from pseudoword.contracts import Engine, NonFiniteLoss
from pseudoword.data.dataset import Dataset
from pseudoword.data.lessons import Lesson
from pseudoword.errors import RunError, TrainingStopped
from pseudoword.evaluate.validator import Validator, prompts_of
from pseudoword.families.locate import locate
from pseudoword.job import Job, Plan, in_steps, is_finished, plan, prepare, with_dataset
from pseudoword.judging import learned
from pseudoword.judging.lengths import usual_length
from pseudoword.progress import Progress, mean
from pseudoword.recipe import BaseModel, Recipe
from pseudoword.run import BEST, Run
from pseudoword.summaries import named, summed_up
from pseudoword.tracking import Trackers

log = logging.getLogger(__name__)

SHOWN = 5
"""Of words that other tools call by another name; of more, only their number is said."""

UNWRITABLE = (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EIO, *((errno.EDQUOT,) if hasattr(errno, "EDQUOT") else ()))
"""What the system says when a disk is full, read-only or broken."""


def train(
    recipe: Recipe,
    *,
    dataset: Dataset | None = None,
    resume: str | None = None,
    stop: Callable[[], bool] | None = None,
    hub_token: str | None = None,
) -> Iterator[Progress]:
    """Carry out a recipe, yielding `Progress` after every optimizer step; nothing happens until it is iterated.

    `dataset` replaces the folder of pictures (see `Dataset`); `resume` is 'latest' or a checkpoint's folder.
    `stop` is asked after every step, on every process; if one says so, all keep a checkpoint and end after that step.
    `hub_token` is what to push with, by default the environment's or the Hub login's; it is written nowhere.
    Raises RecipeError, RunError, PicturesError, CaptionError, TokenError, TrainingStopped or, once the word is on disk,
    HubError, each saying what to try.
    """
    engine = _engine(recipe)
    with _opened(engine, recipe) as run:
        tracking.check(recipe.output.report_to)
        recipe = with_dataset(recipe, dataset)
        pushes = hub.Pushes(recipe.output, hub_token)
        several = engine.on_main(lambda: cohorts(run, recipe, resume))
        with summed_up(len(recipe.concepts)):
            plans = [plan(engine, cohort, dataset) for cohort in several]
        engine.on_main(pushes.check)
        base = locate(recipe.base, toybox.BASES)
        if several[-1].checkpoint:
            engine.on_main(lambda: settle(several, base.family))

        # Each cohort is a run of its own; most runs have one.
        unfinished = [planned for planned in plans if not is_finished(engine, planned)] or plans
        for i, planned in enumerate(unfinished):
            if i:
                engine = _engine(recipe)
                gc.collect()  # what the last one had on the device
            stopped = yield from _learn(engine, several, planned, base, stop, pushes)
            if stopped:
                return


def _engine(recipe: Recipe) -> Engine:
    """Return a new engine for a recipe."""
    weighting = weightings.read(recipe.training.loss_weighting)
    return engines.module(recipe.engine.engine).ENGINE(recipe.engine, recipe.training.gradient_clip, weighting)


def _learn(
    engine: Engine,
    several: Sequence[Cohort],
    planned: Plan,
    base: BaseModel,
    stop: Callable[[], bool] | None,
    pushes: hub.Pushes,
) -> Generator[Progress, None, bool]:
    """Train a cohort to its end, step by step, and return whether it was stopped before."""
    with summed_up(len(planned.given)):
        job = prepare(engine, planned, base)
    engine.on_main(lambda: note(planned.cohort.home, failed_of(several)))
    if job is None:
        return False
    run, recipe, start, steps = job.cohort.run, job.recipe, engine.step_number, job.steps

    # Every step is a function of its number: the learning rate, the draws, and so the batches.
    peak = recipe.schedule.learning_rate * (job.portions.batch if recipe.schedule.scale_lr else 1)
    validator = _validator(engine, run, job)
    with _tracked(engine, run, recipe, start) as trackers, _Batches(job, start) as batches:
        _say_what_begins(job, start)
        _look(engine, run, job, validator, trackers)

        for step in range(start, steps):
            began = time.perf_counter()
            lr = schedules.learning_rate(recipe.schedule, step, steps, peak)
            learning = len(job.lessons)
            loss = _step(engine, run, job, batches, step, lr)
            if gave_up := len(job.lessons) < learning:
                engine.on_main(lambda: note(job.cohort.home, failed_of(several)))
            if not job.lessons:
                return False
            seconds = time.perf_counter() - began
            stopping = stop is not None and engine.any(stop()) and step + 1 < steps

            # What it left: numbers in the log, files that are due, then pictures, whose making takes longest.
            fixed = validator.measure(step + 1)
            failed = failed_of(several)
            progress = Progress(step + 1, steps, loss, lr, seconds, fixed_draw_loss=fixed, failed=failed)
            engine.on_main(lambda done=progress: run.report(done))
            saved = _keep(engine, run, job, validator, progress, stopping or gave_up)
            pictures = () if stopping else validator.sample(step + 1)
            progress = dataclasses.replace(progress, saved=saved, pictures=pictures)
            if step + 1 == steps:
                signs = engine.on_main(lambda: _judged(run, job, engine.rows()))
                progress = dataclasses.replace(progress, suspicious=learned.sentences(signs))
            _track(trackers, validator, progress)
            _push_along(engine, job, pushes, progress)
            yield progress
            if stopping:
                return True

    words = [job.concept(lesson, engine.rows()[lesson.token], max(start, steps)) for lesson in job.lessons]
    pushes.wait()  # while one is under way the Hub's client has its limits, for everybody in this process
    with summed_up(len(words)):
        engine.on_main(lambda: _finish(run, job, words, validator))
    if engine.is_main:  # alone: the other processes do not wait for the Hub
        pushes.finish()
    return False


# The step


class _Batches:
    """What the steps see, in their order; made anew from a step on when a concept is given up."""

    def __init__(self, job: Job, start: int) -> None:
        self._job = job
        self._made = job.micro_batches(start)

    def __enter__(self) -> _Batches:
        return self

    def __exit__(self, *error: object) -> None:
        self._made.close()

    def next(self) -> list[Pair]:
        return next(self._made)

    def again(self, step: int) -> None:
        self._made.close()
        self._made = self._job.micro_batches(step)


def _step(engine: Engine, run: Run, job: Job, batches: _Batches, step: int, lr: float) -> dict[str, float]:
    """Carry out a step; of several concepts, those that it cannot be carried out for are given up, the rest goes on."""
    while True:
        try:
            return engine.step(batches.next(), lr)
        except NonFiniteLoss as error:
            if len(error.reasons) == len(job.lessons) and job.cohort.is_first:
                raise _stopped(run, error, job.recipe) from error
            with summed_up(len(error.reasons)):
                for token, reason in error.reasons.items():
                    log.warning("%s is given up because %s; the other concepts go on.", token, reason)
            gone = [lesson for lesson in job.lessons if lesson.token in error.reasons]
            engine.on_main(lambda lessons=gone: _write_along(engine, run, job, lessons, step))
            job.give_up(error.reasons)
            if not job.lessons:
                return {}
            batches.again(step)


# Around the loop


@contextmanager
def _opened(engine: Engine, recipe: Recipe) -> Iterator[Run]:
    """Hold the run's folder on the main process; the others only know where it is."""
    held: list[Run] = []
    engine.on_main(lambda: held.append(Run(recipe.output.folder)))
    run = held[0] if held else Run(recipe.output.folder, hold=False)
    try:
        yield run
    except OSError as error:
        named = error.filename if isinstance(error.filename, str | os.PathLike) else None
        inside = named is None or Path(named).is_relative_to(run.folder)  # deleted, unplugged
        if not inside or (named is None and error.errno not in UNWRITABLE):
            raise
        kept = [path.name for _, path in run.checkpoints()[-1:]] if run.folder.is_dir() else []
        last = f"{kept[0]} is whole and can be resumed from." if kept else "No checkpoint had been kept yet."
        raise RunError(f"Cannot write to {str(run.folder)!r}: {error.strerror}. {last}") from error
    finally:
        run.close()


def _say_what_begins(job: Job, start: int) -> None:
    """Say what is learned, and how much of it at a step."""
    words, pictures = named([lesson.token for lesson in job.lessons]), job.portions.batch * len(job.lessons)
    if start < job.steps:
        log.info("Training %s: steps %d to %d, %d pictures a step", words, start + 1, job.steps, pictures)
    else:
        log.info("Nothing left to train: %d of %d steps are done; writing the outputs again", start, job.steps)


def _validator(engine: Engine, run: Run, job: Job) -> Validator:
    """Return what looks at the words along the way, with the best steps that a resumed run knew."""
    every = in_steps(job.recipe.validation.validation_steps, job.recipe, job.lessons[0].data, engine.processes)
    places, checkpoint = run.places(job.recipe), job.cohort.checkpoint
    validator = Validator(
        engine,
        job.family,
        job.cohort.whole,
        job.lessons,
        places,
        job.portions,
        steps=job.steps,
        every=every,
        beside=job.beside,
    )
    validator.best = dict(checkpoint.best) if checkpoint else {}
    return validator


@contextmanager
def _tracked(engine: Engine, run: Run, recipe: Recipe, start: int) -> Iterator[Trackers]:
    """Hold the recipe's trackers open on the main process; on the others there are none."""
    trackers = Trackers(recipe, run.logs(recipe), start)
    try:
        engine.on_main(trackers.start)
        yield trackers
    finally:
        trackers.close()


def _look(engine: Engine, run: Run, job: Job, validator: Validator, trackers: Trackers) -> None:
    """Look at the words as training finds them, and leave on disk what a resumed run knew of their best steps."""
    start = engine.step_number
    loss = {} if start else validator.measure(0)
    before = Progress(start, job.steps, {}, 0.0, 0.0, fixed_draw_loss=loss)
    if loss:
        log.info("Fixed-draw loss before training: %.4f", mean(loss))
        engine.on_main(lambda: run.report(before))
    if loss or start:  # on every process alike; only the main one knows the best
        engine.on_main(lambda: _write_best(run, job, validator, list(validator.best)))
    _track(trackers, validator, dataclasses.replace(before, pictures=validator.sample(start)))


# During and after it


def _keep(
    engine: Engine, run: Run, job: Job, validator: Validator, progress: Progress, to_go_on: bool
) -> tuple[Path, ...]:
    """Write what is due after this step and return where; `to_go_on` asks for a checkpoint, as does the last step."""
    step, output = progress.step, job.recipe.output
    checkpointing = to_go_on or step % output.checkpointing_steps == 0 or step == progress.steps
    if not (checkpointing or progress.fixed_draw_loss or step % output.save_steps == 0):
        return ()

    def write() -> tuple[Path, ...]:
        kept = _write_best(run, job, validator, [token for token, own in validator.best.items() if own.step == step])
        if step % output.save_steps == 0:
            kept += _write_along(engine, run, job, job.lessons, step)
        if checkpointing:
            arrays = engine.snapshot([lesson.token for lesson in job.lessons])
            kept.append(run.keep(step, arrays, job.facts, validator.best))
            run.rotate(output.checkpoints_total_limit)
        return tuple(kept)

    return engine.on_main(write)


def _write_along(engine: Engine, run: Run, job: Job, lessons: Sequence[Lesson], step: int) -> list[Path]:
    """Write words as they are after a step."""
    rows, places, written = engine.rows(), run.places(job.recipe), []
    for lesson in lessons:
        path = places[lesson.token] / f"learned_embeds-steps-{step}{job.recipe.output.suffix}"
        written += formats.write_each(job.concept(lesson, rows[lesson.token], step), path)
    return written


def _write_best(run: Run, job: Job, validator: Validator, tokens: Sequence[str]) -> list[Path]:
    """Write words as they were when their fixed-draw losses were lowest so far."""
    places, written = run.places(job.recipe), []
    for lesson in (own for own in job.lessons if own.token in tokens):
        best = validator.best[lesson.token]
        path = places[lesson.token] / f"{BEST}{job.recipe.output.suffix}"
        written += formats.write_each(job.concept(lesson, best.rows, best.step), path)
    return written


def _track(trackers: Trackers, validator: Validator, progress: Progress) -> None:
    """Let the trackers have a step's numbers and pictures."""
    trackers.report(progress)
    if progress.pictures and trackers.open:
        trackers.show(progress.step, validator.shown(progress.step))


def _push_along(engine: Engine, job: Job, pushes: hub.Pushes, progress: Progress) -> None:
    """Upload the word as it is after this step, if that is due, while training goes on."""
    if engine.is_main and pushes.is_due(progress.step, progress.steps):
        [lesson] = job.lessons  # pushing is for a run of one concept
        word = job.concept(lesson, engine.rows()[lesson.token], progress.step)
        pushes.begin(lambda folder: _write_word(job, word, folder))


def _finish(run: Run, job: Job, words: Sequence[Concept], validator: Validator) -> None:
    """Write the learned words for every reader, and say which step was best."""
    places = run.places(job.recipe)
    for word in words:
        _write_word(job, word, places[word.token])
        if validator.strip(word.token):
            _write_card(job, word, places[word.token])  # again: now there is a strip to show
        best = validator.best.get(word.token)
        if best and best.step != job.steps:
            at = f"after step {best.step}" if best.step else "before training"
            name = (places[word.token] / f"{BEST}{job.recipe.output.suffix}").relative_to(run.home)
            log.info("The fixed-draw loss was lowest %s (%.4f); that word is in %s.", at, best.loss, name)
    learned.warn(_judged(run, job, {word.token: word.rows for word in words}))
    stems = {word.token: formats.safe_stem(word.token) for word in words}
    renamed = [f"{token} is {stem}" for token, stem in stems.items() if stem != formats.plain_name(token)]
    if renamed:
        more = f" and {len(renamed) - SHOWN} more" if len(renamed) > SHOWN else ""
        log.info("In exports, for other tools' prompts: %s%s.", ", ".join(renamed[:SHOWN]), more)
    if job.recipe.output.full_pipeline:
        others = [formats.read(place) for place in job.cohort.others.values() if formats.files_in(place)]
        pipeline = job.family.with_words([*words, *others])
        disk.patiently(run.home, lambda: pipeline.save_pretrained(run.home))


def _judged(run: Run, job: Job, rows: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, list[learned.Suspicion]]:
    """Return what speaks against words as they are after the last step, by token, where something does."""
    usual = {encoder: usual_length(vocabulary.table) for encoder, vocabulary in job.family.vocabularies.items()}
    lines = [line["fixed_draw_loss"] for line in run.log_lines() if "fixed_draw_loss" in line]
    suspicious = {}
    for lesson in job.lessons:
        token = lesson.token
        losses = [line[token] for line in lines if token in line]
        rate = job.recipe.schedule.learning_rate
        signs = learned.suspicions(rows[token], job.first_rows[token], usual, losses, rate)
        if signs:
            suspicious[token] = signs
    return suspicious


def _write_word(job: Job, word: Concept, folder: Path) -> None:
    """Write a word for every reader, and its card."""
    recipe = job.recipe
    formats.write_folder(word, folder, safetensors=recipe.output.safe_serialization)
    formats.write_exports(word, folder, recipe.output.suffix)
    _write_card(job, word, folder)


def _write_card(job: Job, word: Concept, folder: Path) -> None:
    [wanted] = [concept for concept in job.recipe.concepts if concept.token == word.token]
    recipe = job.recipe.alone(wanted)
    card.write_card(word, recipe, job.portions.batch, folder, prompts_of(job.cohort.whole, word.token))


def _stopped(run: Run, error: NonFiniteLoss, recipe: Recipe) -> TrainingStopped:
    kept = run.checkpoints()[-1:]
    where = f"The last good checkpoint is {kept[0][1]}." if kept else "No checkpoint had been kept yet."
    half = "mixed_precision 'bf16' or 'no', or " if recipe.engine.mixed_precision == "fp16" else ""
    return TrainingStopped(
        f"Training stopped because {error}. {where} Try {half}a lower learning rate "
        f"(it is {recipe.schedule.learning_rate:g}), or gradient_clip 1."
    )
