"""What the text encoder alone says of a word: its size, where it points, and what it does to the words around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pseudoword.concept import Concept
from pseudoword.contracts import Family
from pseudoword.errors import TokenError
from pseudoword.evaluate.prompts import Question
from pseudoword.vocabulary import Vocabulary, encode_all, lent_words


@dataclass(frozen=True)
class RowDiagnosis:
    """What one row of a word looks like beside the vocabulary of its text encoder."""

    norm: float
    norm_ratio: float
    """Norm over the vocabulary's mean; far above 1, prompts around the word lose their say."""
    cosine_to_initializer: float | None
    nearest: tuple[tuple[str, float], ...]
    """The vocabulary's nearest tokens by cosine."""


@dataclass(frozen=True)
class Diagnosis:
    """What needs the text encoder alone."""

    rows: Mapping[str, tuple[RowDiagnosis, ...]]
    """Per text encoder."""
    drift: float
    """Mean of 1 - cosine between the outputs of all other tokens in prompts with the word and with its class word."""


def diagnose(
    family: Family, concept: Concept, initializer: str | None, class_word: str, questions: Sequence[Question]
) -> Diagnosis:
    """Look at a word's rows beside where training began, if that is known, and at the other tokens of its prompts."""
    rows = {
        encoder: _rows(vocabulary, vocabulary.rows_of(concept, encoder), initializer)
        for encoder, vocabulary in family.vocabularies.items()
    }
    return Diagnosis(rows, drift(family, concept, class_word, questions))


def _rows(vocabulary: Vocabulary, rows: np.ndarray, initializer: str | None) -> tuple[RowDiagnosis, ...]:
    usual = float(np.linalg.norm(vocabulary.table, axis=1).mean())
    begun = _initial(vocabulary, initializer, len(rows))
    return tuple(
        RowDiagnosis(
            norm=float(np.linalg.norm(row)),
            norm_ratio=float(np.linalg.norm(row)) / usual,
            cosine_to_initializer=None if begun is None else _cosine(row, begun[i]),
            nearest=tuple(vocabulary.nearest(row)),
        )
        for i, row in enumerate(rows)
    )


def _initial(vocabulary: Vocabulary, initializer: str | None, count: int) -> np.ndarray | None:
    try:
        return vocabulary.initial_rows(initializer, count)[0] if initializer else None
    except TokenError:
        return None


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def drift(family: Family, concept: Concept, class_word: str, questions: Sequence[Question]) -> float:
    """Return how far a word moves the outputs of the other tokens in its prompts, from 0 (not at all) to 2.

    Those before the word and those behind it, end token included, are compared with the same ones of the prompt with
    the class word (CoRe, arXiv 2408.15914, equation 3, where this is a loss). Padding and what is cut off are left out.
    """
    vocabulary = next(iter(family.vocabularies.values()))
    with lent_words(family.vocabularies, [concept]) as lent:
        with_word, with_class = (
            [question.saying(said) for question in questions] for said in (concept.token, class_word)
        )
        ids = [encode_all(family.vocabularies, texts) for texts in (with_word, with_class)]
        outputs = family.prompt_inputs(ids[0], ids[1], lent)
        learned, plain = (outputs[name].float().cpu().numpy() for name in ("prompt_embeds", "negative_prompt_embeds"))
        lengths = [[vocabulary.encode(text).length for text in texts] for texts in (with_word, with_class)]
    return float(
        np.mean(
            [
                1 - _cosine(one, other)
                for i, question in enumerate(questions)
                for one, other in _side_by_side(
                    learned[i],
                    plain[i],
                    before=vocabulary.encode(question.text.partition("{}")[0].rstrip()).length - 1,
                    vectors=concept.num_vectors,
                    lengths=(lengths[0][i], lengths[1][i]),
                )
            ]
        )
    )


def _side_by_side(
    learned: np.ndarray, plain: np.ndarray, *, before: int, vectors: int, lengths: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the outputs of each token that two prompts share: all but the word after `before` tokens."""
    class_tokens = lengths[1] - lengths[0] + vectors
    one = [*learned[:before], *learned[before + vectors : lengths[0]]]
    other = [*plain[:before], *plain[before + class_tokens : lengths[1]]]
    yield from zip(one, other, strict=False)  # the longer word's prompt may have lost its end
