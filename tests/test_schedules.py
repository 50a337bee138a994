"""Learning rates against diffusers' schedulers; random draws that depend on nothing but seed, token, step and index."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from pseudoword import schedules
from pseudoword.batch import Draw
from pseudoword.recipe import Schedule
from pseudoword.schedules import Purpose

SHAPE = (4, 3, 2)
KEYS = st.integers(0, 2**64 - 1)

# The learning rate


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant", {}),
        *itertools.product(
            ["constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"],
            [{}, {"lr_warmup_steps": 1}, {"lr_warmup_steps": 13}, {"lr_warmup_steps": 60}],
        ),
        ("cosine_with_restarts", {"lr_num_cycles": 3}),
        ("cosine_with_restarts", {"lr_num_cycles": 4, "lr_warmup_steps": 10}),
        ("polynomial", {"lr_power": 2.0}),
        ("polynomial", {"lr_power": 0.5, "lr_warmup_steps": 10}),
        ("piecewise_constant", {"lr_step_rules": "1:10,0.1:20,0.01:30,0.005"}),
        ("piecewise_constant", {"lr_step_rules": "0.5:30,2:10,.25"}),
        ("piecewise_constant", {"lr_step_rules": "1e-1"}),
    ],
)
@pytest.mark.parametrize("peak", [5e-3, 2e-6])
def test_the_learning_rate_is_that_of_diffusers_scheduler(name: str, options: dict[str, Any], peak: float):
    steps = 50
    schedule = Schedule(lr_scheduler=name, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = get_scheduler(
        name,
        optimizer,
        step_rules=schedule.lr_step_rules,
        num_warmup_steps=schedule.lr_warmup_steps,
        num_training_steps=steps,
        num_cycles=schedule.lr_num_cycles,
        power=schedule.lr_power,
    )
    for step in range(steps + 3):  # a little beyond the end, where a curve must stay at its end
        [expected] = theirs.get_last_lr()
        assert schedules.learning_rate(schedule, step, steps, peak) == pytest.approx(expected, rel=1e-9, abs=1e-18), (
            step
        )
        optimizer.step()
        theirs.step()


# Draws


def draw(indices: Sequence[int] = range(6), **changes: Any) -> Draw:
    options: dict[str, Any] = {"seed": 7, "token": "<t>", "step": 3, "batch": 6, "num_pictures": 5, "flip_p": 0.5}
    return schedules.draw(indices=indices, num_timesteps=1000, latent_shape=SHAPE, **{**options, **changes})


def parts(drawn: Draw) -> dict[str, np.ndarray]:
    return {f.name: getattr(drawn, f.name) for f in dataclasses.fields(drawn) if f.name != "step"}


def same(one: Draw, other: Draw) -> dict[str, bool]:
    return {name: np.array_equal(value, parts(other)[name]) for name, value in parts(one).items()}


@pytest.mark.parametrize("split", [[6], [3, 3], [2, 2, 2], [1] * 6, [4, 2]])
def test_a_batch_is_drawn_the_same_however_it_is_split(split: list[int]):
    whole, ends = draw(), list(itertools.accumulate([0, *split]))
    micro_batches = [draw(range(first, end)) for first, end in itertools.pairwise(ends)]
    for name, value in parts(whole).items():
        assert np.array_equal(value, np.concatenate([parts(micro)[name] for micro in micro_batches])), name


def test_a_draw_repeats_and_does_not_depend_on_global_random_state():
    one = draw()
    np.random.seed(1)
    torch.manual_seed(1)
    assert all(same(one, draw()).values())


@pytest.mark.parametrize("change", [{"seed": 8}, {"token": "<u>"}, {"step": 4}, {"indices": range(6, 12)}])
def test_another_seed_token_step_or_index_is_another_draw(change: dict[str, Any]):
    other = same(draw(), draw(**change))
    assert not any(other[name] for name in ("template", "timestep", "posterior", "noise"))


@given(seed=st.integers(0, 2**63 - 2), token=st.text(max_size=8))
def test_neighbouring_seeds_and_tokens_have_streams_of_their_own(seed: int, token: str):
    key = schedules.concept_key(token)
    streams = [(seed, key), (seed + 1, key), (seed, key ^ 1), (seed, key ^ (1 << 63))]
    assert len({schedules.stream(*own, 0, 0, Purpose.NOISE).bytes(16) for own in streams}) == 4


@given(seed=st.integers(0, 2**63 - 1), key=KEYS, step=st.integers(0, 2**41), index=st.integers(0, 2**20))
def test_a_stream_is_philox_keyed_by_seed_and_concept(seed: int, key: int, step: int, index: int):
    generator = schedules.stream(seed, key, step, index, Purpose.TIMESTEP)
    state: Any = generator.bit_generator.state
    assert state["state"]["key"].tolist() == [seed, key]
    assert state["state"]["counter"].tolist() == [0, Purpose.TIMESTEP, index, step]


def test_streams_do_not_overlap_however_much_is_drawn():
    # A stream counts in its lowest counter word; the others, which are its own, must not have moved.
    generator = schedules.stream(7, 11, 3, 5, Purpose.NOISE)
    generator.standard_normal((4, 128, 128), dtype=np.float32)
    state: Any = generator.bit_generator.state
    assert state["state"]["counter"][1:].tolist() == [Purpose.NOISE, 5, 3]
    assert 0 < state["state"]["counter"][0] < 2**20
    numbers = [
        schedules.stream(seed, key, step, index, purpose).integers(2**64, size=64, dtype=np.uint64)
        for seed, key, step, index, purpose in itertools.product([0, 1], [0, 1], [0, 1], [0, 1], Purpose)
    ]
    assert len(np.unique(np.concatenate(numbers))) == 64 * len(numbers)


def test_the_key_of_a_token_and_the_number_of_a_purpose_are_fixed_for_good():
    # sha256("<cat-toy>") begins with these bytes; a change would make old runs impossible to repeat.
    assert schedules.concept_key("<cat-toy>") == int.from_bytes(bytes.fromhex("5d480cfd2192a9a1"), "little")
    fixed = ["ORDER", "TEMPLATE", "FLIP", "TIMESTEP", "POSTERIOR", "NOISE", "ITEM", "CROP", "TAGS", "DROP"]
    fixed += ["AUGMENT", "VARIANT"]
    assert [p.name for p in sorted(Purpose)] == fixed
    assert sorted(Purpose) == list(range(len(fixed)))


def test_values_are_of_their_kind_and_range():
    many = [draw(step=step) for step in range(50)]
    timesteps = np.concatenate([d.timestep for d in many])
    templates = np.concatenate([d.template for d in many])
    assert timesteps.dtype == np.int64
    assert 0 <= timesteps.min() <= timesteps.max() < 1000
    assert 0 <= templates.min() <= templates.max() < 1
    assert many[0].noise.shape == many[0].posterior.shape == (6, *SHAPE)
    assert many[0].noise.dtype == many[0].posterior.dtype == np.float32
    assert not np.array_equal(many[0].noise, many[0].posterior)
    assert many[0].index.tolist() == list(range(6))
    assert all(d.step == step for step, d in enumerate(many))


@pytest.mark.parametrize(("flip_p", "expected"), [(0.0, False), (1.0, True)])
def test_pictures_are_mirrored_never_or_always_at_the_ends_of_flip_p(flip_p: float, expected: bool):
    flips = draw(flip_p=flip_p, indices=range(200)).flip
    assert flips.dtype == bool
    assert (flips == expected).all()


def test_the_numbers_are_uniform_and_normal():
    indices = range(4000)
    drawn = draw(indices, flip_p=0.3)
    for value, bins in ((drawn.timestep / 1000, 10), (drawn.template, 10)):
        counts = np.histogram(value, bins, (0, 1))[0]
        expected = len(indices) / bins
        assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-square of 9 degrees of freedom at p = 0.001
    assert abs(drawn.flip.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(indices))
    for normal in (drawn.noise, drawn.posterior):
        assert abs(normal.mean()) < 4 / np.sqrt(normal.size)
        assert abs(normal.std() - 1) < 4 / np.sqrt(2 * normal.size)
    assert abs(np.corrcoef(drawn.noise.ravel(), drawn.posterior.ravel())[0, 1]) < 4 / np.sqrt(drawn.noise.size)


# The order of pictures


@given(seed=st.integers(0, 2**63 - 1), key=KEYS, count=st.integers(1, 20), rounds=st.integers(1, 4))
def test_every_round_is_a_permutation_of_the_pictures(seed: int, key: int, count: int, rounds: int):
    order = schedules.pictures(seed, key, range(count * rounds), count).reshape(rounds, count)
    assert (np.sort(order, axis=1) == np.arange(count)).all()


@settings(max_examples=50)
@given(key=KEYS, count=st.integers(1, 9), positions=st.lists(st.integers(0, 300), min_size=1, max_size=20))
def test_the_order_can_be_entered_anywhere(key: int, count: int, positions: list[int]):
    whole = schedules.pictures(7, key, range(301), count)
    assert schedules.pictures(7, key, positions, count).tolist() == whole[positions].tolist()


def test_rounds_differ_and_steps_go_on_where_the_one_before_ended():
    steps = np.concatenate([draw(step=step, batch=4, indices=range(4)).picture for step in range(50)])
    rounds = steps.reshape(-1, 5)
    assert (np.sort(rounds, axis=1) == np.arange(5)).all()
    assert len({tuple(order) for order in rounds.tolist()}) > 10


def test_each_number_comes_from_the_stream_of_its_own_purpose():
    drawn, key = draw(), schedules.concept_key("<t>")

    def stream(index: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.Philox(key=np.array([7, key], dtype=np.uint64), counter=[0, purpose, index, 3])
        )

    for i in range(6):
        assert drawn.template[i] == stream(i, 1).random()
        assert drawn.flip[i] == (stream(i, 2).random() < 0.5)
        assert drawn.timestep[i] == stream(i, 3).integers(1000)
        assert np.array_equal(drawn.posterior[i], stream(i, 4).standard_normal(SHAPE, dtype=np.float32))
        assert np.array_equal(drawn.noise[i], stream(i, 5).standard_normal(SHAPE, dtype=np.float32))
        assert drawn.crop[i] == stream(i, 7).random()
        assert drawn.tags[i] == stream(i, 8).integers(2**64, dtype=np.uint64)
        assert drawn.drop[i] == stream(i, 9).random()


def test_a_draw_for_each_shape_holds_the_numbers_that_one_picture_alone_gets():
    shapes = [(4, 2, 3), (4, 3, 2), (4, 2, 3), (4, 1, 6), (4, 3, 2)]
    options: dict[str, Any] = {"flip_p": 0.5, "num_timesteps": 1000}
    together = schedules.draws(7, "<t>", 3, range(6), 6, latent_shapes=shapes, **options)
    assert sorted(i for d in together for i in d.index.tolist()) == list(range(6))
    assert len(together) == len({shapes[p] for d in together for p in d.picture.tolist()}) > 1
    for drawn in together:
        for i, picture in zip(drawn.index.tolist(), drawn.picture.tolist(), strict=True):
            assert drawn.noise.shape[1:] == shapes[picture]
            alone = schedules.draw(7, "<t>", 3, [i], 6, num_pictures=5, latent_shape=shapes[picture], **options)
            for name, value in parts(alone).items():
                assert np.array_equal(value[0], parts(drawn)[name][list(drawn.index).index(i)]), name


def test_equal_shapes_are_one_draw():
    options: dict[str, Any] = {"flip_p": 0.5, "num_timesteps": 1000}
    [drawn] = schedules.draws(7, "<t>", 3, range(6), 6, latent_shapes=[SHAPE] * 5, **options)
    assert all(same(drawn, draw()).values())
