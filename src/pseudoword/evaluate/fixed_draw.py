"""The fixed-draw loss: training's own loss on draws that no training step sees, so that numbers can be compared."""

from __future__ import annotations

import dataclasses

import numpy as np

from pseudoword import engines, methods, schedules
from pseudoword.batch import Pair
from pseudoword.concept import Concept
from pseudoword.contracts import Engine, Family
from pseudoword.data import examples
from pseudoword.data.dataset import Dataset
from pseudoword.data.lessons import Lesson
from pseudoword.data.pictures import FramedPictures
from pseudoword.methods.classic import ClassicOptions
from pseudoword.recipe import ConceptRecipe, EngineRecipe
from pseudoword.vocabulary import lent_words

BATCH = 8


def fixed_draw_loss(
    family: Family, concept: Concept, pictures: Dataset | FramedPictures, *, num_draws: int = 64, seed: int = 0
) -> float:
    """Return the mean loss of a word over fixed captions, noises and evenly spread timesteps of its pictures.

    The same seed, token and pictures give the same draws, so two words' losses differ by the words alone, where a
    training step's loss is mostly its timesteps' (DVAR, Voronov et al. 2023). Puts the base on the engine's device in
    fp32. CaptionError if the word is not in the captions.
    """
    engine: Engine = engines.module("torch").ENGINE(EngineRecipe())
    engine.prepare(family)
    with lent_words(family.vocabularies, [concept]):
        source = examples.prepare(
            pictures, family.vocabularies, concept.tokens, family.encode_images, seed=seed, workers=0
        )
        engine.start(family, methods.build(ClassicOptions()), {concept.token: concept.rows})
        wanted = ConceptRecipe(concept.token, ".", ".")  # what is learned already starts from nothing
        lesson = Lesson(wanted, 0, pictures, source)
        return engine.fixed_loss(fixed_draws(lesson, family.num_timesteps, num_draws, seed))[concept.token]


def fixed_draws(lesson: Lesson, num_timesteps: int, num_draws: int, seed: int) -> list[Pair]:
    """Return at least `num_draws` of a word's examples with noise at timesteps spread evenly over all there are."""
    batches = -(-num_draws // BATCH)
    spread = (np.arange(batches * BATCH) + 0.5) / (batches * BATCH) * num_timesteps
    timesteps = spread.astype(np.int64).reshape(BATCH, batches).T  # every batch goes from little noise to much
    draws = [
        dataclasses.replace(draw, timestep=timesteps[i][draw.index])
        for i in range(batches)
        for draw in schedules.draws(
            seed,
            lesson.token,
            schedules.FIXED + i,
            range(BATCH),
            BATCH,
            flip_p=lesson.source.flip_p,
            num_timesteps=num_timesteps,
            latent_shapes=lesson.source.latent_shapes,
        )
    ]
    return list(lesson.batches(draws))
