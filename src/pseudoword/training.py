"""`train(recipe)`: from a recipe to a learned word, one optimizer step at a time."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pseudoword import engines, families, formats, hub, methods, schedules, toybox
from pseudoword.concept import Concept
from pseudoword.contracts import Engine, Family, NonFiniteLoss
from pseudoword.data import examples
from pseudoword.data.dataset import Dataset, TextualInversionDataset
from pseudoword.errors import RecipeError, TrainingStopped
from pseudoword.families.base import locate
from pseudoword.placeholder import vector_tokens
from pseudoword.progress import Progress
from pseudoword.recipe import ConceptRecipe, Recipe, parse_steps
from pseudoword.run import Checkpoint, Run, refuse_changes

log = logging.getLogger(__name__)


def train(recipe: Recipe, *, dataset: Dataset | None = None, resume: str | None = None) -> Iterator[Progress]:
    """Carry out a recipe, yielding `Progress` after every optimizer step; nothing happens until it is iterated.

    `dataset` replaces the folder of pictures (see `Dataset`); `resume` is 'latest' or a checkpoint's folder.
    Raises RecipeError, RunError, PicturesError, CaptionError, TokenError or TrainingStopped, each saying what to try.
    """
    engine: Engine = engines.module(recipe.engine.engine).ENGINE(recipe.engine, recipe.training.gradient_clip)
    with _opened(engine, recipe) as run:
        # What an earlier part of this run decided, and the pictures: both before any weight is loaded.
        checkpoint = engine.on_main(lambda: run.find(resume))
        recipe = _seeded(engine, recipe, checkpoint)
        [wanted] = recipe.concepts
        data = dataset if dataset is not None else _pictures(recipe, wanted)
        batch = recipe.training.batch_size * recipe.training.gradient_accumulation_steps * engine.processes
        facts = _facts(recipe, data, batch, engine.arithmetic())
        if checkpoint:
            refuse_changes(checkpoint, facts)

        # The frozen base, the word with its starting rows, and what it is learned from.
        family: Family = families.part(recipe.base.family, "torch").FAMILY.load(locate(recipe.base, toybox.BASES))
        rows = _starting_rows(family, wanted)
        engine.prepare(family)
        engine.start(family, methods.build(recipe.method), {wanted.token: rows})
        if checkpoint:
            engine.restore(checkpoint.step, checkpoint.arrays)
        source = _examples(family, recipe, wanted, data)

        # Every step is a function of its number: the learning rate, the draws, and so the batch.
        start, steps = engine.step_number, _steps(recipe, data, engine.processes)
        shares = engine.shares(recipe.training.batch_size, recipe.training.gradient_accumulation_steps)
        peak = recipe.schedule.learning_rate * (batch if recipe.schedule.scale_lr else 1)
        draws = (
            schedules.draw(
                recipe.training.seed or 0,
                wanted.token,
                step,
                share,
                batch,
                num_pictures=source.num_pictures,
                flip_p=source.flip_p,
                num_timesteps=family.num_timesteps,
                latent_shape=source.latent_shape,
            )
            for step in range(start, steps)
            for share in shares
        )
        batches = source.batches(draws)
        engine.on_main(lambda: run.begin(recipe, checkpoint))
        log.info("Training %s: steps %d to %d, %d pictures a step", wanted.token, start + 1, steps, batch)

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
                progress = dataclasses.replace(progress, saved=tuple(_keep(run, engine, recipe, facts, progress)))
            yield progress

        if engine.is_main:
            _finish(run, family, recipe, _concept(recipe, engine.rows()[wanted.token], max(start, steps)))


# Before the loop


@contextmanager
def _opened(engine: Engine, recipe: Recipe) -> Iterator[Run]:
    """Hold the run's folder on the main process; the others only know where it is."""
    held: list[Run] = []
    engine.on_main(lambda: held.append(Run(recipe.output.folder)))
    run = held[0] if held else Run(recipe.output.folder, hold=False)
    try:
        yield run
    finally:
        run.close()


def _seeded(engine: Engine, recipe: Recipe, checkpoint: Checkpoint | None) -> Recipe:
    """Return the recipe with a seed: its own, the resumed run's, or a new one."""
    seed = recipe.training.seed
    if seed is None:
        seed = checkpoint.seed if checkpoint else engine.on_main(lambda: secrets.randbelow(2**32))
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, seed=seed))


def _pictures(recipe: Recipe, wanted: ConceptRecipe) -> TextualInversionDataset:
    """Scan the concept's folder; the size is settled when the base is known."""
    return TextualInversionDataset(
        wanted.pictures,
        tokenizer=None,
        learnable_property=wanted.property,
        size=recipe.data.resolution or 0,
        repeats=recipe.data.repeats,
        flip_p=recipe.data.flip_p,
        placeholder_token=wanted.token,
        center_crop=recipe.data.fit == "crop",
    )


def _facts(recipe: Recipe, data: Dataset, batch: int, arithmetic: dict[str, str]) -> dict[str, Any]:
    """Return what a checkpoint says besides its numbers, to tell whether a resumed run is the same run."""
    if isinstance(data, TextualInversionDataset):
        pictures = [f"{picture.path.name} {picture.sha256[:16]}" for picture in data.pictures]
    else:
        pictures = [f"{type(data).__name__} of {len(data)}"]
    return {"recipe": recipe.to_dict(), "pictures": pictures, "batch": batch, "arithmetic": arithmetic}


def _starting_rows(family: Family, wanted: ConceptRecipe) -> dict[str, np.ndarray]:
    """Lend the word to the family's vocabularies and return its starting rows from the initializer."""
    file = Path(wanted.initializer).expanduser()
    holds_a_word = any((file / name).is_file() for name in formats.IN_FOLDER)
    is_folder = file.is_dir() and (holds_a_word or wanted.initializer != file.name)  # 'cat' beside ./cat is the word
    earlier = formats.read(file) if file.suffix in (".safetensors", ".bin", ".pt") or is_folder else None
    rows = {}
    for encoder, vocabulary in family.vocabularies.items():
        vocabulary.lend(wanted.token, wanted.num_vectors)
        if earlier is None:
            rows[encoder], how = vocabulary.initial_rows(wanted.initializer, wanted.num_vectors)
            log.info("%s: %s", wanted.token, how)
            continue
        rows[encoder] = vocabulary.check_width(earlier, encoder)
        if earlier.num_vectors != wanted.num_vectors:
            raise RecipeError(
                f"The initializer {wanted.initializer} has {earlier.num_vectors} vector(s), "
                f"but num_vectors is {wanted.num_vectors}; make them equal."
            )
        log.info("%s: starts from the rows of %s in %s", wanted.token, earlier.token, file)
    return rows


def _examples(
    family: Family, recipe: Recipe, wanted: ConceptRecipe, data: Dataset
) -> examples.Cached | examples.Streamed:
    """Return what batches are made of; if every latent is cached, the VAE leaves the accelerator."""
    size = recipe.data.resolution or family.resolution
    if size % family.latent_factor:
        raise RecipeError(f"resolution must be a multiple of {family.latent_factor} for this base, but is {size}.")
    if isinstance(data, TextualInversionDataset) and not data.size:
        data.size = size
    source = examples.prepare(
        data,
        family.vocabularies,
        vector_tokens(wanted.token, wanted.num_vectors),
        family.encode_images,
        seed=recipe.training.seed or 0,
        workers=recipe.data.workers,
    )
    if isinstance(source, examples.Cached):
        family.leave_vae()
    return source


def _steps(recipe: Recipe, data: Dataset, processes: int) -> int:
    """Return the run's length in optimizer steps."""
    number, unit = parse_steps(recipe.schedule.steps)
    if unit == "steps":
        return number
    micro_batches = math.ceil(len(data) / (recipe.training.batch_size * processes))
    return number * math.ceil(micro_batches / recipe.training.gradient_accumulation_steps)


# During and after it


def _keep(run: Run, engine: Engine, recipe: Recipe, facts: dict[str, Any], progress: Progress) -> Iterator[Path]:
    """Write what is due after this step; the last step always leaves a checkpoint, so a finished run can go on."""
    step, output = progress.step, recipe.output
    if step % output.save_steps == 0:
        [(_, rows)] = engine.rows().items()
        suffix = "safetensors" if output.safe_serialization else "bin"
        yield formats.write_file(_concept(recipe, rows, step), run.folder / f"learned_embeds-steps-{step}.{suffix}")
    if step % output.checkpointing_steps == 0 or step == progress.steps:
        yield run.keep(step, engine.snapshot(), facts)
        run.rotate(output.checkpoints_total_limit)


def _concept(recipe: Recipe, rows: dict[str, np.ndarray], step: int) -> Concept:
    """Return the learned word with what its file should say."""
    [wanted] = recipe.concepts
    told = recipe.to_dict()
    told = {section: told[section] for section in ("method", "training", "schedule", "data")}
    model = recipe.base.model
    return Concept(
        token=wanted.token,
        rows=rows,
        property=wanted.property,
        base=Path(model).name if Path(model).is_dir() else model,  # a path says more about a disk than about the base
        steps=step,
        metadata={"initializer": wanted.initializer, "recipe": json.dumps(told)},
    )


def _finish(run: Run, family: Family, recipe: Recipe, concept: Concept) -> None:
    """Write the learned word for every reader."""
    formats.write_folder(concept, run.folder, safetensors=recipe.output.safe_serialization)
    exports = run.folder / "exports"
    exports.mkdir(exist_ok=True)
    suffix = "safetensors" if recipe.output.safe_serialization else "bin"
    formats.write_file(concept, exports / f"{formats.stem_of(concept.token)}.{suffix}", "kohya")
    hub.write_card(concept, recipe, run.folder)
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
