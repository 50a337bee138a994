"""What an evaluation's numbers come to, in a sentence, and what words are held against."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pseudoword import ranges, trials
from pseudoword.concept import Concept
from pseudoword.evaluate import groups, verdict
from pseudoword.evaluate.examine import Examination
from pseudoword.evaluate.reference_lines import label, reference_lines
from pseudoword.evaluate.references import IN_WORDS, UNTRAINED, Reference
from pseudoword.recipe import Recipe

NOTHING: Any = None


def scores(fidelity: float, editability: float, spread: float = 0.0) -> Examination:
    """Two pictures of two prompts, whose scores are so far from their mean."""
    either = np.array([[-spread, spread]] * 2)
    return Examination({"fidelity": fidelity + either, "editability": editability + either}, [])


def evaluated(
    name: str,
    learned: Examination,
    untrained: Examination | None = None,
    known: Examination | None = None,
    recipe: Recipe | None = None,
) -> groups.Evaluated:
    recipe = recipe or trials.plain_recipe()
    rows = np.ones((recipe.concepts[0].num_vectors, 2), np.float32)
    word: Any = SimpleNamespace(
        choices={k: v for k, v in recipe.of_the_word().items() if k != "training.seed"},
        seed=recipe.training.seed,
        step=5,
        seconds=1.0,
        concept=Concept("<a>", {"clip_l": rows}),
        base=recipe.base,
    )
    references = {}
    if untrained:
        references[UNTRAINED] = Reference(UNTRAINED, "thing", untrained)
    if known:
        references[IN_WORDS] = Reference(IN_WORDS, "yellow ring", known)
    return groups.Evaluated(name, word, [], learned, NOTHING, "fidelity", "editability", [], [], references=references)


def said(*words: groups.Evaluated) -> str:
    return verdict.verdict(words, groups.pools(words), reference_lines(words))


@pytest.mark.parametrize(
    ("learned", "sentence"),
    [
        (
            scores(0.8, 0.95),
            "<a> is learned, and the rest of a prompt holds: fidelity 0.80 (untrained 0.10), editability 0.95",
        ),
        (
            scores(0.8, 0.5),
            "<a> is learned, but the rest of a prompt suffers: fidelity 0.80 (untrained 0.10), editability",
        ),
        (scores(0.12, 1.0), "<a> is no better than untrained: fidelity 0.12 (untrained 0.10)"),
        (scores(0.4, 1.0, spread=0.4), "<a> is no better than untrained: fidelity 0.40"),
        (scores(0.0, 1.0), "<a> is worse than untrained: fidelity 0.00 (untrained 0.10)"),
    ],
)
def test_a_word_is_judged_by_its_untrained_self(learned: Examination, sentence: str):
    one = evaluated("a", learned, scores(0.1, 0.98), scores(0.9, 1.0))
    assert said(one).startswith(sentence)
    assert said(one).endswith("The base's own words, 'yellow ring', have a fidelity of 0.90.")


def test_a_word_of_which_nothing_is_known_is_not_judged():
    one = evaluated("a", scores(0.8, 0.9))
    assert verdict.of_word(one) == verdict.UNKNOWN
    assert said(one) == "<a>: fidelity 0.80, editability 0.90. There is no untrained word to judge that by."


def test_of_many_words_those_that_failed_are_named():
    words = [evaluated(f"w{i}", scores(0.8 if i else 0.1, 1.0), scores(0.1, 1.0)) for i in range(3)]
    assert (
        said(*words) == "2 of 3 words are learned, and the rest of their prompts holds. No better than untrained: w0."
    )


def settings(*numbers: list[tuple[float, float]]) -> list[groups.Evaluated]:
    """Words of several settings, of which each has fidelity and editability from seed 0 and on."""
    plain = trials.plain_recipe()
    recipes = ranges.varied(plain, [f"learning_rate={','.join(str(i + 1) for i in range(len(numbers)))}"])
    words = []
    for (name, recipe), own in zip(recipes.items(), numbers, strict=True):
        for seed, (fidelity, editability) in enumerate(own):
            seeded = replace(recipe, training=replace(recipe.training, seed=seed))
            words.append(evaluated(f"{name}-{seed}", scores(fidelity, editability), scores(0.1, 1.0), recipe=seeded))
    return words


def test_the_best_setting_is_named_and_how_sure_that_is():
    told = said(*settings([(0.5, 0.9)] * 3, [(0.7, 0.95), (0.71, 0.95), (0.69, 0.95)]))
    assert told.startswith("learning_rate=2.0 is first of 2 in both, fidelity 0.70 and editability 0.95.")
    assert "Its lead in fidelity over learning_rate=1.0 is more than 3 training seeds leave (0.20 ± 0.02)." in told
    assert told.endswith("Untrained: fidelity 0.10, editability 1.00.")
    told = said(*settings([(0.5, 0.9)] * 3, [(0.9, 0.8), (0.2, 0.8), (0.5, 0.8)]))
    assert "learning_rate=2.0 has the highest fidelity of 2, 0.53." in told
    assert "learning_rate=1.0 has the highest editability of 2, 0.90. Choose by what you need." in told
    assert "is within what 3 training seeds leave (0.03 ± 0.87)" in told
    told = said(*settings([(0.5, 0.9)] * 2, [(0.9, 0.9)] * 2))
    assert "Two seeds are too few to tell settings apart: train 3 or more (--seeds 3)." in told
    assert "In editability learning_rate=1.0 is as good." in told
    assert "One seed is too few" in said(*settings([(0.5, 0.9)], [(0.9, 0.8)]))


def test_references_are_pooled_over_concepts_and_told_apart_where_settings_begin_differently():
    plain = trials.plain_recipe()
    other = replace(plain, concepts=(replace(plain.concepts[0], pictures="other"),))
    words = [
        evaluated("a", scores(0.5, 1), scores(0.1, 1), scores(0.9, 1), plain),
        evaluated("b", scores(0.5, 1), scores(0.3, 1), None, other),
    ]
    untrained, known = reference_lines(words)
    assert (untrained.name, untrained.concepts, untrained.means["fidelity"]) == (UNTRAINED, 2, pytest.approx(0.2))
    assert label(known) == "in the base's own words (1 of 2)"
    recipes = ranges.varied(plain, ["num_vectors=1,2"])
    several = [evaluated(n, scores(0.5, 1), scores(0.1 * i, 1), recipe=r) for i, (n, r) in enumerate(recipes.items())]
    assert [line.name for line in reference_lines(several)] == [
        f"untrained: 'thing', vectors: {count}, on toybox" for count in (1, 2)
    ]
