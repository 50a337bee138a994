"""Arithmetic on words: merge, concatenate, difference, scale, prune. Each returns a new word; rows are fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from pseudoword.concept import Concept
from pseudoword.errors import TokenError

Block = Float[np.ndarray, "vectors width"]


def merge(
    concepts: Sequence[Concept], weights: Sequence[float] | None = None, *, spherical: bool = False, token: str = ""
) -> Concept:
    """Return the weighted mean of words, vector by vector; equal weights if none are given, which are made to sum to 1.

    `spherical` averages directions and lengths apart (of two words: slerp, Shoemake 1985, along the shorter arc), so
    that the result is as long as the words are and not shorter. TokenError if the words are not of one kind.
    """
    _refuse_other_kinds(concepts, "merged", vectors=True)
    shares = _shares(concepts, weights)
    mean = _on_the_sphere if spherical else _mean
    rows = {encoder: mean([own.rows[encoder] for own in concepts], shares) for encoder in concepts[0].rows}
    return _made(concepts, token, rows, "merge", weights=", ".join(f"{share:.4g}" for share in shares))


def concatenate(concepts: Sequence[Concept], token: str = "") -> Concept:
    """Return one word of all vectors of the words, in their order. TokenError if the words are not of one kind."""
    _refuse_other_kinds(concepts, "concatenated")
    rows = {encoder: np.concatenate([own.rows[encoder] for own in concepts]) for encoder in concepts[0].rows}
    return _made(concepts, token, rows, "concatenate")


def difference(first: Concept, second: Concept, plus: Concept | None = None, token: str = "") -> Concept:
    """Return the first word less the second, and plus a third if there is one, vector by vector.

    Alone a difference is a direction rather than a word; king - man + woman needs the third.
    """
    concepts = [first, second, *([plus] if plus else [])]
    _refuse_other_kinds(concepts, "subtracted", vectors=True)
    rows = {
        encoder: block - second.rows[encoder] + (plus.rows[encoder] if plus else 0)
        for encoder, block in first.rows.items()
    }
    return _made(concepts, token, rows, "difference")


def scale(concept: Concept, norms: Mapping[str, float], token: str = "") -> Concept:
    """Return the word with every vector as long as `norms` says for its text encoder: the vocabulary's mean norm.

    TokenError if a norm is missing, or a vector is zero and has no direction.
    """
    rows = {}
    for encoder, block in concept.rows.items():
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        if encoder not in norms:
            raise TokenError(f"{concept.token!r} has rows for {encoder}, which the base has not; name its own base.")
        if not lengths.all():
            raise TokenError(f"A vector of {concept.token!r} for {encoder} is zero, so it cannot be scaled; prune it.")
        rows[encoder] = block * (np.float32(norms[encoder]) / lengths)
    return _made([concept], token, rows, "scale")


def prune(concept: Concept, keep: Sequence[int] = (), vectors: int = 0, token: str = "") -> Concept:
    """Return the word with the vectors `keep`, counted from 0, or with the `vectors` that are least like each other.

    For the latter, of the two vectors with the highest cosine (its mean over text encoders) the shorter is left out,
    until so many remain. TokenError if there are no such vectors.
    """
    if bool(keep) == bool(vectors):
        raise TokenError("Say either which vectors to keep, or how many.")
    if len(set(concept.vectors.values())) > 1:
        raise TokenError(
            f"{concept.token!r} has {concept.vector_count} vectors and cannot be pruned; that takes equally many in "
            "each text encoder."
        )
    if keep and (len(set(keep)) < len(keep) or not all(0 <= i < concept.num_vectors for i in keep)):
        wanted = ", ".join(map(str, keep))
        raise TokenError(f"{concept.token!r} has vectors 0 to {concept.num_vectors - 1}, each once, not {wanted}.")
    if vectors and not 0 < vectors <= concept.num_vectors:
        raise TokenError(f"{concept.token!r} has {concept.num_vectors} vector(s), of which {vectors} cannot be kept.")
    kept = list(keep) or _least_alike(list(concept.rows.values()), vectors)
    rows = {encoder: block[kept] for encoder, block in concept.rows.items()}
    return _made([concept], token, rows, "prune", kept=", ".join(map(str, kept)))


def _least_alike(blocks: Sequence[Block], count: int) -> list[int]:
    kept = list(range(len(blocks[0])))
    lengths = np.sum([np.linalg.norm(block, axis=1) for block in blocks], axis=0)
    cosines = np.sum([_cosines(block) for block in blocks], axis=0)
    while len(kept) > count:
        among = np.where(np.eye(len(kept), dtype=bool), -np.inf, cosines[np.ix_(kept, kept)])
        pair = [kept[i] for i in np.unravel_index(among.argmax(), among.shape)]
        kept.remove(min(pair, key=lambda i: (lengths[i], -i)))
    return kept


def _cosines(block: Block) -> Float[np.ndarray, "vectors vectors"]:
    directions = block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
    return directions @ directions.T


def _mean(blocks: Sequence[Block], shares: Sequence[float]) -> Block:
    return np.einsum("b,b...->...", np.array(shares), np.stack(blocks).astype(np.float64))


def _on_the_sphere(blocks: Sequence[Block], shares: Sequence[float]) -> Block:
    """Return means of directions on the sphere (the point that all geodesics to it balance at), times mean lengths."""
    lengths = [np.linalg.norm(block, axis=1, keepdims=True).astype(np.float64) for block in blocks]
    if not all(own.all() for own in lengths):
        raise TokenError("A vector that is zero has no direction to merge spherically; merge plainly, or prune it.")
    points = [block / own for block, own in zip(blocks, lengths, strict=True)]
    start = _mean(points, shares)
    norms = np.linalg.norm(start, axis=1, keepdims=True)
    if (norms < 1e-9).any():
        raise TokenError("Vectors that point in opposite directions have no spherical mean; change the weights.")
    centre = start / norms
    for _ in range(1000):  # Buss & Fillmore 2001: the mean of the logarithms, followed until it vanishes
        steps = sum(share * _logarithm(centre, point) for point, share in zip(points, shares, strict=True))
        angle = np.linalg.norm(steps, axis=1, keepdims=True)
        centre = centre * np.cos(angle) + steps * np.sinc(angle / np.pi)
        if angle.max() < 1e-12:
            break
    return centre * _mean(lengths, shares)


def _logarithm(centre: Block, point: Block) -> Block:
    """Return the tangents at `centre` that lead to `point`, as long as the angles between them."""
    cosine = np.clip((centre * point).sum(1, keepdims=True), -1, 1)
    across = point - cosine * centre
    sine = np.linalg.norm(across, axis=1, keepdims=True)
    return across * (np.arctan2(sine, cosine) / np.maximum(sine, 1e-15))


def _shares(concepts: Sequence[Concept], weights: Sequence[float] | None) -> list[float]:
    given = [1.0] * len(concepts) if weights is None else list(weights)
    if len(given) != len(concepts):
        raise TokenError(f"There are {len(concepts)} words to merge, but {len(given)} weights; give one for each.")
    total = sum(given)
    if not np.isfinite(total) or abs(total) < 1e-9:
        raise TokenError(f"The weights sum to {total:g}, so they are no shares; choose others.")
    return [weight / total for weight in given]


def _refuse_other_kinds(concepts: Sequence[Concept], done: str, *, vectors: bool = False) -> None:
    """Raise TokenError unless there are words, for the same text encoders, and of equally many vectors if asked."""
    if not concepts:
        raise TokenError(f"There is no word to be {done}.")
    kinds = [{encoder: block.shape[1] for encoder, block in own.rows.items()} for own in concepts]
    for own, kind in zip(concepts, kinds, strict=True):
        if kind != kinds[0]:
            raise TokenError(
                f"Words of different bases cannot be {done}: {concepts[0].token!r} has {kinds[0]}, "
                f"but {own.token!r} has {kind}."
            )
        if vectors and own.vectors != concepts[0].vectors:
            raise TokenError(
                f"Words of {concepts[0].vector_count} and of {own.vector_count} vectors cannot be {done} vector by "
                "vector; prune the longer one, or concatenate them."
            )


def _made(concepts: Sequence[Concept], token: str, rows: Mapping[str, Block], how: str, **more: str) -> Concept:
    """Return a word of new rows, that says what it was made of; what was true of the first alone is left behind."""
    bases = {own.base for own in concepts}
    single: Callable[[str], bool] = lambda name: len({getattr(own, name) for own in concepts}) == 1  # noqa: E731
    return replace(
        concepts[0],
        token=token or concepts[0].token,
        rows=rows,
        property=concepts[0].property if single("property") else "object",
        base=bases.pop() if len(bases) == 1 else "",
        steps=0,
        metadata={"made": how, "of": ", ".join(own.token for own in concepts), **more},
    )
