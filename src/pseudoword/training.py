"""`train(recipe)`: from a recipe to a learned word, one optimizer step at a time."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pseudoword import engines, families, formats, hub, methods, schedules, toybox
from pseudoword.batch import Draw
from pseudoword.concept import Concept
from pseudoword.contracts import Engine, Family, NonFiniteLoss
from pseudoword.data import examples
from pseudoword.data.dataset import Dataset, TextualInversionDataset
from pseudoword.data.pictures import ConceptPictures, FramedPictures
from pseudoword.errors import RunError, TrainingStopped
from pseudoword.families.locate import locate
from pseudoword.placeholder import vector_tokens
from pseudoword.progress import Progress
from pseudoword.recipe import Recipe, parse_steps
from pseudoword.run import Checkpoint, Run, refuse_changes
from pseudoword.starting import starting_rows

log = logging.getLogger(__name__)

UNWRITABLE = (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EIO, *((errno.EDQUOT,) if hasattr(errno, "EDQUOT") else ()))
"""What the system says when a disk is full, read-only or broken."""


def train(
    recipe: Recipe,
    *,
    dataset: Dataset | None = None,
    resume: str | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Progress]:
    """Carry out a recipe, yielding `Progress` after every optimizer step; nothing happens until it is iterated.

    `dataset` replaces the folder of pictures (see `Dataset`); `resume` is 'latest' or a checkpoint's folder.
    `stop` is asked after every step, on every process; if one says so, all keep a checkpoint and end after that step.
    Raises RecipeError, RunError, PicturesError, CaptionError, TokenError or TrainingStopped, each saying what to try.
    """
    engine: Engine = engines.module(recipe.engine.engine).ENGINE(recipe.engine, recipe.training.gradient_clip)
    with _opened(engine, recipe) as run:
        # What an earlier part of this run decided, and the pictures: both before any weight is loaded.
        checkpoint = engine.on_main(lambda: run.find(resume))
        recipe, seed = _seeded(engine, recipe, checkpoint)
        [wanted] = recipe.concepts
        given = ConceptPictures(wanted, recipe.data) if dataset is None else dataset
        batch = recipe.training.batch_size * recipe.training.gradient_accumulation_steps * engine.processes
        facts = _facts(recipe, given, batch, engine.arithmetic())
        if checkpoint:
            refuse_changes(checkpoint, facts)

        # The frozen base, the word with its starting rows, and what it is learned from.
        family: Family = families.part(recipe.base.family, recipe.engine.engine).FAMILY.load(
            locate(recipe.base, toybox.BASES)
        )
        rows = starting_rows(family.vocabularies, wanted)
        engine.prepare(family)
        engine.start(family, methods.build(recipe.method), {wanted.token: rows})
        if checkpoint:
            engine.restore(checkpoint.step, checkpoint.arrays)
        data = given.framed(family) if isinstance(given, ConceptPictures) else given
        source = examples.prepare(
            data,
            family.vocabularies,
            vector_tokens(wanted.token, wanted.num_vectors),
            family.encode_images,
            seed=seed,
            workers=recipe.data.workers,
        )
        if isinstance(source, examples.Cached):
            family.leave_vae()

        # Every step is a function of its number: the learning rate, the draws, and so the batch.
        start, steps = engine.step_number, _steps(recipe, data, engine.processes)
        shares = engine.shares(recipe.training.batch_size, recipe.training.gradient_accumulation_steps)
        peak = recipe.schedule.learning_rate * (batch if recipe.schedule.scale_lr else 1)
        batches = source.batches(_draws(range(start, steps), shares, batch, seed, wanted.token, source, family))
        engine.on_main(lambda: run.begin(recipe, checkpoint))
        if start < steps:
            log.info("Training %s: steps %d to %d, %d pictures a step", wanted.token, start + 1, steps, batch)
        else:
            log.info("Nothing left to train: %d of %d steps are done; writing the outputs again", start, steps)

        for step in range(start, steps):
            began = time.perf_counter()
            lr = schedules.learning_rate(recipe.schedule, step, steps, peak)
            try:
                loss = engine.step(examples.take(batches, sum(map(len, shares))), lr)
            except NonFiniteLoss as error:
                raise _stopped(run, error, recipe) from error
            progress = Progress(step + 1, steps, loss, lr, time.perf_counter() - began)
            if engine.is_main:
                run.report(progress)
            stopping = stop is not None and engine.any(stop()) and step + 1 < steps
            if stopping or _is_due(recipe, progress):
                kept = engine.on_main(lambda done=progress, now=stopping: _keep(run, engine, recipe, facts, done, now))
                progress = dataclasses.replace(progress, saved=kept)
            yield progress
            if stopping:
                return

        word = _concept(recipe, engine.rows()[wanted.token], max(start, steps))
        engine.on_main(lambda: _finish(run, family, recipe, word, batch))


# Before the loop


@contextmanager
def _opened(engine: Engine, recipe: Recipe) -> Iterator[Run]:
    """Hold the run's folder on the main process; the others only know where it is."""
    held: list[Run] = []
    engine.on_main(lambda: held.append(Run(recipe.output.folder)))
    run = held[0] if held else Run(recipe.output.folder, hold=False)
    try:
        yield run
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        kept = [path.name for _, path in run.checkpoints()[-1:]] if run.folder.is_dir() else []
        last = f"{kept[0]} is whole and can be resumed from." if kept else "No checkpoint had been kept yet."
        raise RunError(f"Cannot write to {str(run.folder)!r}: {error.strerror}. {last}") from error
    finally:
        run.close()


def _seeded(engine: Engine, recipe: Recipe, checkpoint: Checkpoint | None) -> tuple[Recipe, int]:
    """Return the recipe with a seed, and the seed: its own, the resumed run's, or a new one."""
    seed = recipe.training.seed
    if seed is None:
        seed = checkpoint.seed if checkpoint else engine.on_main(lambda: secrets.randbelow(2**32))
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, seed=seed)), seed


def _facts(recipe: Recipe, data: ConceptPictures | Dataset, batch: int, arithmetic: dict[str, str]) -> dict[str, Any]:
    """Return what a checkpoint says besides its numbers, to tell whether a resumed run is the same run."""
    if isinstance(data, ConceptPictures):
        pictures = data.facts()
    elif isinstance(data, TextualInversionDataset):
        pictures = [picture.fact for picture in data.pictures]
    else:
        pictures = [f"{type(data).__name__} of {len(data)}"]
    arithmetic = {**arithmetic, "micro-batch": str(recipe.training.batch_size)}
    return {"recipe": _without_paths(recipe), "pictures": pictures, "batch": batch, "arithmetic": arithmetic}


def _without_paths(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's values, a base in a folder by its name: the rest of its path is about a disk."""
    values = recipe.to_dict()
    if Path(recipe.base.model).expanduser().is_dir():
        values["base"]["model"] = Path(recipe.base.model).expanduser().resolve().name
    return values


def _steps(recipe: Recipe, data: Dataset | FramedPictures, processes: int) -> int:
    """Return the run's length in optimizer steps."""
    number, unit = parse_steps(recipe.schedule.steps)
    if unit == "steps":
        return number
    micro_batches = math.ceil(len(data) / (recipe.training.batch_size * processes))
    return number * math.ceil(micro_batches / recipe.training.gradient_accumulation_steps)


def _draws(
    steps: range,
    shares: list[list[int]],
    batch: int,
    seed: int,
    token: str,
    source: examples.Cached | examples.Streamed,
    family: Family,
) -> Iterator[Draw]:
    """Yield the draws of every micro-batch of this process, in the order of training."""
    for step in steps:
        for share in shares:
            yield from schedules.draws(
                seed,
                token,
                step,
                share,
                batch,
                flip_p=source.flip_p,
                num_timesteps=family.num_timesteps,
                latent_shapes=source.latent_shapes,
            )


# During and after it


def _is_due(recipe: Recipe, progress: Progress) -> bool:
    """Whether this step leaves files; the last always leaves a checkpoint, so that a finished run can go on."""
    every = (recipe.output.save_steps, recipe.output.checkpointing_steps)
    return progress.step == progress.steps or any(progress.step % steps == 0 for steps in every)


def _keep(
    run: Run, engine: Engine, recipe: Recipe, facts: dict[str, Any], progress: Progress, stopping: bool
) -> tuple[Path, ...]:
    """Write what is due after this step, a checkpoint in any case if it is the last for now, and return where."""
    step, output, kept = progress.step, recipe.output, []
    if step % output.save_steps == 0:
        [(_, rows)] = engine.rows().items()
        path = run.folder / f"learned_embeds-steps-{step}{output.suffix}"
        kept.append(formats.write_file(_concept(recipe, rows, step), path))
    if stopping or step % output.checkpointing_steps == 0 or step == progress.steps:
        kept.append(run.keep(step, engine.snapshot(), facts))
        run.rotate(output.checkpoints_total_limit)
    return tuple(kept)


def _concept(recipe: Recipe, rows: dict[str, np.ndarray], step: int) -> Concept:
    """Return the learned word with what its file should say."""
    [wanted] = recipe.concepts
    told = _without_paths(recipe)
    told = {section: told[section] for section in ("base", "method", "training", "schedule", "data")}
    return Concept(
        token=wanted.token,
        rows=rows,
        property=wanted.property,
        base=told["base"]["model"],
        steps=step,
        metadata={"initializer": wanted.initializer, "recipe": json.dumps(told)},
    )


def _finish(run: Run, family: Family, recipe: Recipe, concept: Concept, batch: int) -> None:
    """Write the learned word for every reader."""
    formats.write_folder(concept, run.folder, safetensors=recipe.output.safe_serialization)
    exports, stem = run.folder / "exports", formats.stem_of(concept.token)
    exports.mkdir(exist_ok=True)
    for suffix in formats.SUFFIXES:
        (exports / f"{stem}{suffix}").unlink(missing_ok=True)  # of another choice of safe_serialization
    formats.write_file(concept, exports / f"{stem}{recipe.output.suffix}", "kohya")
    hub.write_card(concept, recipe, batch, run.folder)
    if recipe.output.full_pipeline:
        family.with_words([concept]).save_pretrained(run.folder)


def _stopped(run: Run, error: NonFiniteLoss, recipe: Recipe) -> TrainingStopped:
    kept = run.checkpoints()[-1:]
    where = f"The last good checkpoint is {kept[0][1]}." if kept else "No checkpoint had been kept yet."
    half = "mixed_precision 'bf16' or 'no', or " if recipe.engine.mixed_precision == "fp16" else ""
    return TrainingStopped(
        f"Training stopped because {error}. {where} Try {half}a lower learning rate "
        f"(it is {recipe.schedule.learning_rate:g}), or gradient_clip 1."
    )
