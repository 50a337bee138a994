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
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pseudoword import engines, families, formats, hub, methods, schedules, toybox
from pseudoword.batch import Draw
from pseudoword.concept import Concept
from pseudoword.contracts import Engine, Family, NonFiniteLoss
from pseudoword.data import examples, folder
from pseudoword.data.dataset import Dataset, TextualInversionDataset
from pseudoword.data.folder import Picture
from pseudoword.errors import RecipeError, RunError, TrainingStopped
from pseudoword.families.locate import locate
from pseudoword.families.single_file import is_single_file
from pseudoword.placeholder import vector_tokens
from pseudoword.progress import Progress
from pseudoword.recipe import ConceptRecipe, Recipe, parse_steps
from pseudoword.run import Checkpoint, Run, refuse_changes

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
        pictures = folder.scan(wanted.pictures, recursive=recipe.data.recursive) if dataset is None else None
        batch = recipe.training.batch_size * recipe.training.gradient_accumulation_steps * engine.processes
        facts = _facts(recipe, pictures or dataset, batch, engine.arithmetic())
        if checkpoint:
            refuse_changes(checkpoint, facts)

        # The frozen base, the word with its starting rows, and what it is learned from.
        family: Family = families.part(recipe.base.family, recipe.engine.engine).FAMILY.load(
            locate(recipe.base, toybox.BASES)
        )
        rows = _starting_rows(family, wanted)
        engine.prepare(family)
        engine.start(family, methods.build(recipe.method), {wanted.token: rows})
        if checkpoint:
            engine.restore(checkpoint.step, checkpoint.arrays)
        data = dataset if dataset is not None else _dataset(family, recipe, wanted, pictures)
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
                loss = engine.step(list(islice(batches, len(shares))), lr)
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


def _facts(
    recipe: Recipe, data: list[Picture] | Dataset | None, batch: int, arithmetic: dict[str, str]
) -> dict[str, Any]:
    """Return what a checkpoint says besides its numbers, to tell whether a resumed run is the same run."""
    data = data.pictures if isinstance(data, TextualInversionDataset) else data
    if isinstance(data, list):
        pictures = [f"{picture.path.name} {picture.sha256[:16]}" for picture in data]
    else:
        pictures = [f"{type(data).__name__} of {len(data or ())}"]
    arithmetic = {**arithmetic, "micro-batch": str(recipe.training.batch_size)}
    return {"recipe": _without_paths(recipe), "pictures": pictures, "batch": batch, "arithmetic": arithmetic}


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


def _starting_rows(family: Family, wanted: ConceptRecipe) -> dict[str, np.ndarray]:
    """Lend the word to the family's vocabularies and return its starting rows from the initializer."""
    file = Path(wanted.initializer).expanduser()
    holds_a_word = any((file / name).is_file() for name in formats.IN_FOLDER)
    is_folder = file.is_dir() and (holds_a_word or wanted.initializer != file.name)  # 'cat' beside ./cat is the word
    earlier = formats.read(file) if file.suffix in formats.SUFFIXES or is_folder else None
    rows = {}
    for encoder, vocabulary in family.vocabularies.items():
        vocabulary.lend(wanted.token, wanted.num_vectors)
        if earlier is None:
            rows[encoder], how = vocabulary.initial_rows(wanted.initializer, wanted.num_vectors)
            log.info("%s: %s", wanted.token, how)
            continue
        rows[encoder] = vocabulary.rows_of(earlier, encoder)
        if earlier.num_vectors != wanted.num_vectors:
            raise RecipeError(
                f"The initializer {wanted.initializer} has {earlier.num_vectors} vector(s), "
                f"but num_vectors is {wanted.num_vectors}; make them equal."
            )
        log.info("%s: starts from the rows of %s in %s", wanted.token, earlier.token, file)
    return rows


def _dataset(
    family: Family, recipe: Recipe, wanted: ConceptRecipe, pictures: list[Picture] | None
) -> TextualInversionDataset:
    """Return the concept's pictures at the run's resolution."""
    size = recipe.data.resolution or family.resolution
    if size % family.latent_factor:
        raise RecipeError(f"resolution must be a multiple of {family.latent_factor} for this base, but is {size}.")
    small = [picture.path.name for picture in pictures or () if min(picture.size) < size]
    if small:
        log.warning("Smaller than %d pixels, so enlarged, which teaches blur: %s", size, ", ".join(small))
    return TextualInversionDataset(
        wanted.pictures,
        tokenizer=None,
        learnable_property=wanted.property,
        size=size,
        repeats=recipe.data.repeats,
        flip_p=recipe.data.flip_p,
        placeholder_token=wanted.token,
        center_crop=recipe.data.fit == "crop",
        pictures=pictures,
    )


def _steps(recipe: Recipe, data: Dataset, processes: int) -> int:
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
    """Yield the draw of every micro-batch of this process, in the order of training."""
    for step in steps:
        for share in shares:
            yield schedules.draw(
                seed,
                token,
                step,
                share,
                batch,
                num_pictures=source.num_pictures,
                flip_p=source.flip_p,
                num_timesteps=family.num_timesteps,
                latent_shape=source.latent_shape,
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
