"""Arithmetic on words, against its definitions; what cannot be reckoned with is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pseudoword import algebra, cli
from pseudoword.concept import Concept
from pseudoword.errors import TokenError


def word(token: str = "<a>", vectors: int = 2, seed: int = 0, **widths: int) -> Concept:
    draw = np.random.default_rng(seed)
    rows = {e: draw.standard_normal((vectors, w), dtype=np.float32) for e, w in (widths or {"clip_l": 16}).items()}
    return Concept(token, rows, base="somebody/model", steps=100, metadata={"initializer": "toy"})


A, B = word("<a>"), word("<b>", seed=1)


def test_merge_is_the_weighted_mean():
    merged = algebra.merge([A, B], [3, 1], token="<c>")
    assert np.allclose(merged.rows["clip_l"], 0.75 * A.rows["clip_l"] + 0.25 * B.rows["clip_l"], atol=1e-6)
    assert (merged.token, merged.base, merged.steps) == ("<c>", "somebody/model", 0)
    assert merged.metadata == {"made": "merge", "of": "<a>, <b>", "weights": "0.75, 0.25"}
    assert algebra.merge([A, B]).token == "<a>"


def slerp(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Shoemake 1985, on directions; lengths between them."""
    lengths = np.linalg.norm(one), np.linalg.norm(other)
    a, b = one / lengths[0], other / lengths[1]
    angle = np.arccos(np.clip(a @ b, -1, 1))
    direction = (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)
    return direction * ((1 - share) * lengths[0] + share * lengths[1])


@given(share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_a_spherical_merge_of_two_is_slerp(share: float, seed: int):
    other = word("<b>", seed=seed + 1)
    merged = algebra.merge([A, other], [1 - share, share], spherical=True).rows["clip_l"]
    pairs = zip(A.rows["clip_l"].astype(float), other.rows["clip_l"].astype(float), strict=True)
    assert np.allclose(merged, [slerp(a, b, share) for a, b in pairs], atol=1e-5)


def test_a_spherical_merge_of_many_is_where_their_pulls_balance_and_as_long_as_they_are():
    words, shares = [word(seed=i) for i in range(4)], np.array([0.1, 0.2, 0.3, 0.4])
    merged = algebra.merge(words, shares.tolist(), spherical=True).rows["clip_l"].astype(float)
    blocks = [own.rows["clip_l"].astype(float) for own in words]
    lengths = [np.linalg.norm(block, axis=1) for block in blocks]
    assert np.allclose(np.linalg.norm(merged, axis=1), np.einsum("w,wv->v", shares, lengths), rtol=1e-6)
    centre = merged / np.linalg.norm(merged, axis=1, keepdims=True)
    pull = np.zeros_like(centre)
    for share, block, length in zip(shares, blocks, lengths, strict=True):
        point = block / length[:, None]
        cosine = (centre * point).sum(1, keepdims=True)
        across = point - cosine * centre
        pull += share * np.arccos(cosine) * across / np.linalg.norm(across, axis=1, keepdims=True)
    assert np.abs(pull).max() < 1e-6
    plain = algebra.merge(words, shares.tolist()).rows["clip_l"]
    assert (np.linalg.norm(plain, axis=1) < np.linalg.norm(merged, axis=1)).all()


def test_concatenate_and_difference():
    both = algebra.concatenate([A, B])
    assert np.array_equal(both.rows["clip_l"], np.concatenate([A.rows["clip_l"], B.rows["clip_l"]]))
    king, man, woman = word(seed=1), word(seed=2), word(seed=3)
    queen = algebra.difference(king, man, woman, token="<queen>")
    assert np.array_equal(queen.rows["clip_l"], king.rows["clip_l"] - man.rows["clip_l"] + woman.rows["clip_l"])
    assert np.array_equal(algebra.difference(king, man).rows["clip_l"], king.rows["clip_l"] - man.rows["clip_l"])


def test_scale_keeps_directions():
    xl = word(clip_l=16, clip_g=24)
    scaled = algebra.scale(xl, {"clip_l": 0.4, "clip_g": 2.0})
    for encoder, norm in (("clip_l", 0.4), ("clip_g", 2.0)):
        block, before = scaled.rows[encoder], xl.rows[encoder]
        assert np.allclose(np.linalg.norm(block, axis=1), norm, rtol=1e-6)
        assert np.allclose((block * before).sum(1), np.linalg.norm(before, axis=1) * norm, rtol=1e-6)


def test_prune_keeps_what_is_named_or_what_is_least_alike():
    whole = word(vectors=5)
    assert np.array_equal(algebra.prune(whole, [3, 0]).rows["clip_l"], whole.rows["clip_l"][[3, 0]])
    twice = np.concatenate([whole.rows["clip_l"], whole.rows["clip_l"][[1, 3]] * 0.5])
    pruned = algebra.prune(Concept("<a>", {"clip_l": twice}), vectors=5)
    assert np.array_equal(pruned.rows["clip_l"], whole.rows["clip_l"]), "the shorter of each pair goes"
    assert pruned.metadata["kept"] == "0, 1, 2, 3, 4"


@pytest.mark.parametrize(
    ("reckon", "message"),
    [
        (
            lambda: algebra.merge([A, word(vectors=3)]),
            r"of 2 and of 3 vectors cannot be merged vector by vector",
        ),
        (
            lambda: algebra.merge([A, word(clip_h=16)]),
            r"different bases cannot be merged: '<a>' has \{'clip_l",
        ),
        (lambda: algebra.concatenate([A, word(clip_l=8)]), r"Words of different bases cannot be concatenated"),
        (lambda: algebra.difference(A, word(vectors=1)), r"of 2 and of 1 vectors cannot be subtracted"),
        (lambda: algebra.merge([]), r"^There is no word to be merged\.$"),
        (lambda: algebra.merge([A, B], [1]), r"There are 2 words to merge, but 1 weights; give one for each\.$"),
        (lambda: algebra.merge([A, B], [1, -1]), r"The weights sum to 0, so they are no shares; choose others\.$"),
        (lambda: algebra.merge([A, B], [1, float("nan")]), r"The weights sum to nan, so they are no shares"),
        (
            lambda: algebra.merge([A, algebra.difference(A, A)], spherical=True),
            r"A vector that is zero has no direction",
        ),
        (
            lambda: algebra.merge([A, Concept("<m>", {"clip_l": -A.rows["clip_l"]})], spherical=True),
            r"Vectors that point in opposite directions have no spherical mean; change the weights\.$",
        ),
        (lambda: algebra.scale(A, {"clip_h": 1}), r"'<a>' has rows for clip_l, which the base has not; name its own"),
        (lambda: algebra.scale(algebra.difference(A, A), {"clip_l": 1}), r"A vector of '<a>' for clip_l is zero"),
        (lambda: algebra.prune(A), r"Say either which vectors to keep, or how many\.$"),
        (lambda: algebra.prune(A, [0], 1), r"Say either which vectors to keep, or how many\.$"),
        (lambda: algebra.prune(A, [0, 2]), r"'<a>' has vectors 0 to 1, each once, not 0, 2\.$"),
        (lambda: algebra.prune(A, [0, 0]), r"'<a>' has vectors 0 to 1, each once, not 0, 0\.$"),
        (lambda: algebra.prune(A, vectors=3), r"'<a>' has 2 vector\(s\), of which 3 cannot be kept\.$"),
    ],
)
def test_what_makes_no_sense_is_refused(reckon: object, message: str):
    assert callable(reckon)
    with pytest.raises(TokenError, match=message):
        reckon()


# The command


def test_the_command_writes_a_new_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b, out = A.save(tmp_path / "a.safetensors"), B.save(tmp_path / "b"), tmp_path / "new" / "c.safetensors"
    done = cli.main(["algebra", "merge", str(a), str(b), "--weights", "3", "1", "--token", "<c>", "--output", str(out)])
    assert (done, capsys.readouterr().out) == (0, f"{out}: <c>, 2 vector(s)\n")
    assert np.array_equal(Concept.load(out).rows["clip_l"], algebra.merge([A, B], [3, 1]).rows["clip_l"])
    for operation, more, vectors in [
        ("concatenate", [str(b)], 4),
        ("difference", [str(b)], 2),
        ("prune", ["--vectors", "1"], 1),
        ("prune", ["--keep", "1"], 1),
    ]:
        assert cli.main(["algebra", operation, str(a), *more, "--output", str(out), "--overwrite"]) == 0
        assert Concept.load(out).num_vectors == vectors
        capsys.readouterr()
    for words, message in [
        (["merge", str(a), "--output", str(out)], "error: This takes 2 or more word(s), but 1 are named.\n"),
        (["difference", *[str(a)] * 4, "--output", str(out)], "error: This takes 2 to 3 word(s), but 4 are named.\n"),
        (["prune", str(a), "--keep", "0", "--output", str(a)], f"error: {a} is one of the words; write to another.\n"),
        (["prune", str(b), "--keep", "0", "--output", str(b)], f"error: {b} is one of the words; write to"),
        (["prune", str(a), "--keep", "0", "--output", str(out)], f"error: {out} is there already; name another, or"),
        (["prune", str(a), "--keep", "0", "--output", "x.png"], "error: A new word is a .safetensors, .bin, .pt file"),
        (
            ["scale", str(a), "--output", str(a.with_name("n.pt"))],
            "error: Name the base whose vocabulary the word shall be as long",
        ),
    ]:
        assert cli.main(["algebra", *words]) == 1
        assert capsys.readouterr().err.startswith(message)


def test_a_word_is_scaled_to_a_bases_vocabulary(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    path = word(clip_l=32).save(tmp_path / "a.safetensors")
    out = tmp_path / "scaled.safetensors"
    assert cli.main(["algebra", "scale", str(path), "--base", str(base), "--output", str(out)]) == 0
    from transformers import CLIPTextModel

    table = CLIPTextModel.from_pretrained(base / "text_encoder").get_input_embeddings().weight.detach().numpy()
    mean = np.linalg.norm(table, axis=1).mean()
    assert np.allclose(np.linalg.norm(Concept.load(out).rows["clip_l"], axis=1), mean, rtol=1e-5)
    capsys.readouterr()
    other = word(clip_l=16).save(tmp_path / "b.safetensors")
    assert cli.main(["algebra", "scale", str(other), "--base", str(base), "--output", str(tmp_path / "c.pt")]) == 1
    assert "has rows for clip_l of width 16; this base wants clip_l of width 32" in capsys.readouterr().err
