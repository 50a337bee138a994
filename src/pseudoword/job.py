"""A job: a recipe with its base loaded and its pictures encoded, ready to train."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pseudoword import families, hub, methods, toybox, tracking
from pseudoword.concept import Concept
from pseudoword.contracts import Engine, Family
from pseudoword.data import examples
from pseudoword.data.dataset import Dataset, TextualInversionDataset
from pseudoword.data.pictures import ConceptPictures, FramedPictures
from pseudoword.families.locate import locate
from pseudoword.families.single_file import is_single_file
from pseudoword.placeholder import vector_tokens
from pseudoword.recipe import BaseModel, Recipe, parse_steps
from pseudoword.run import Checkpoint, Run, refuse_changes
from pseudoword.starting import starting_rows, starting_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a run needs besides its engine and folder, ready to train."""

    recipe: Recipe
    seed: int
    checkpoint: Checkpoint | None
    facts: dict[str, Any]
    """What a checkpoint says besides its numbers."""
    family: Family
    data: Dataset | FramedPictures
    source: examples.Cached | examples.Streamed
    batch: int
    """Pictures of a step, over all micro-batches and processes."""
    shares: list[list[int]]
    """This process' micro-batches of a step: indices into the concept's global batch."""
    steps: int

    @property
    def token(self) -> str:
        """The word to learn."""
        return self.recipe.concepts[0].token

    def concept(self, rows: Mapping[str, np.ndarray], step: int) -> Concept:
        """Return the word as it is after a step, with what its file should say."""
        [wanted] = self.recipe.concepts
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


def prepare(
    engine: Engine, run: Run, recipe: Recipe, dataset: Dataset | None, resume: str | None, pushes: hub.Pushes
) -> Job:
    """Find what an earlier part of the run decided, load the base, and encode what the word is learned from."""
    tracking.check(recipe.output.report_to)
    checkpoint = engine.on_main(lambda: run.find(resume))
    recipe, seed = _seeded(engine, recipe, checkpoint)
    [wanted] = recipe.concepts
    given = ConceptPictures(wanted, recipe.data) if dataset is None else dataset
    batch = recipe.training.batch_size * recipe.training.gradient_accumulation_steps * engine.processes
    # What the last bits depend on is as it was in the resumed run, unless it is asked for otherwise.
    known = recipe.engine.pictures_at_once or (checkpoint.micro_batch if checkpoint else 0)
    facts = _facts(recipe, given, batch, engine.arithmetic(), _shares(engine, recipe, known))
    if checkpoint:
        refuse_changes(checkpoint, facts)
    engine.on_main(pushes.check)

    base = locate(recipe.base, toybox.BASES)
    recipe = dataclasses.replace(recipe, base=dataclasses.replace(recipe.base, family=base.family))
    family: Family = families.part(base.family, recipe.engine.engine).FAMILY.load(base)
    rows, method = starting_rows(family.vocabularies, wanted), methods.build(recipe.method)
    engine.prepare(family)
    engine.start(family, method, {wanted.token: rows}, {wanted.token: starting_state(wanted, rows, method)})
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
    at_once = known or engine.on_main(lambda: _fitting(recipe, base, engine, source))
    shares = _shares(engine, recipe, at_once)
    facts["arithmetic"]["micro-batch"] = str(len(shares[0]))
    engine.on_main(lambda: run.begin(recipe, checkpoint))
    steps = in_steps(recipe.schedule.steps, recipe, data, engine.processes)
    return Job(recipe, seed, checkpoint, facts, family, data, source, batch, shares, steps)


MARGIN = 2
"""Times what a forward pass keeps that has to be free: the backward pass has arrays of its own."""


def _fitting(recipe: Recipe, base: BaseModel, engine: Engine, source: examples.Cached | examples.Streamed) -> int:
    """Return how many pictures of a step go through the model at once: whole micro-batches, as many as memory holds."""
    batch_size, micro_batches = recipe.training.batch_size, recipe.training.gradient_accumulation_steps
    if micro_batches == 1 or recipe.engine.gradient_checkpointing:
        return batch_size
    costs = families.part(base.family, "costs")
    factor = families.part(base.family, "sizes").sizes(base).latent_factor
    _, height, width = max(source.latent_shapes, key=lambda shape: shape[1] * shape[2])
    half = recipe.engine.mixed_precision != "no"
    kept = costs.kept_for_gradient(base, (width * factor, height * factor), batch_size, half=half)
    together = min(micro_batches, max(1, engine.free_memory() // (MARGIN * kept)))
    log.info("Taking %d of %d micro-batches at once, as memory allows", together, micro_batches)
    return batch_size * together


def _shares(engine: Engine, recipe: Recipe, at_once: int) -> list[list[int]]:
    return engine.shares(recipe.training.batch_size, recipe.training.gradient_accumulation_steps, at_once)


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


def _facts(
    recipe: Recipe, data: ConceptPictures | Dataset, batch: int, arithmetic: dict[str, str], shares: list[list[int]]
) -> dict[str, Any]:
    """Return what a checkpoint says besides its numbers, to tell whether a resumed run is the same run."""
    if isinstance(data, ConceptPictures):
        pictures = data.facts()
    elif isinstance(data, TextualInversionDataset):
        pictures = [picture.fact for picture in data.pictures]
    else:
        pictures = [f"{type(data).__name__} of {len(data)}"]
    arithmetic = {**arithmetic, "micro-batch": str(len(shares[0]))}
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


def _shared(value: Any) -> Any:
    """Return plain values for others to read, of places on this disk only the last part: words are given away."""
    if isinstance(value, dict):
        return {name: _shared(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shared(inner) for inner in value]
    is_place = isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~/", "./", "../")))
    return Path(value).name if is_place else value
