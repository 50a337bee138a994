"""The classic method's update against torch's AdamW, and its options."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pseudoword import methods
from pseudoword.errors import RecipeError
from pseudoword.methods.classic import Classic, ClassicOptions

STEPS = 50
OPTIONS = [
    ClassicOptions(),
    ClassicOptions(adam_weight_decay=1e-2),
    ClassicOptions(adam_beta1=0.5, adam_beta2=0.9, adam_weight_decay=0.3, adam_epsilon=1e-3),
    ClassicOptions(adam_beta1=0.0, adam_beta2=0.0),
]


def gradients() -> list[dict[str, np.ndarray]]:
    """Gradients of very different sizes, zero and tiny ones among them."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.integers(-9, 3, (2, 8))
    return [
        {name: rng.standard_normal((2, 8)) * sizes * (step % 7 > 0) for name in ("clip_l", "clip_g")}
        for step in range(STEPS)
    ]


def start(dtype: type) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal((2, 8)).astype(dtype) for name in ("clip_l", "clip_g")}


def learning_rate(step: int) -> float:
    return 5e-3 * (1 + step % 5)


def ours(xp: ModuleType, options: ClassicOptions, dtype: type) -> dict[str, np.ndarray]:
    """Return the parameters after all steps, computed with the namespace `xp`."""
    method = methods.build(options)
    put: Any = torch.from_numpy if xp is torch else np.array
    params: Any = {name: put(p) for name, p in start(dtype).items()}
    state: Any = {name: put(s) for name, s in method.state(start(dtype)).items()}
    for step, grads in enumerate(gradients()):
        given = {name: put(g.astype(dtype)) for name, g in grads.items()}
        params, state = method.update(xp, params, given, state, learning_rate(step), step)
    return {name: np.asarray(p) for name, p in params.items()}


def theirs(options: ClassicOptions, dtype: type) -> dict[str, np.ndarray]:
    params = {name: torch.nn.Parameter(torch.from_numpy(p)) for name, p in start(dtype).items()}
    optimizer = torch.optim.AdamW(
        params.values(),
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        weight_decay=options.adam_weight_decay,
        foreach=False,
    )
    for step, grads in enumerate(gradients()):
        for name, p in params.items():
            p.grad = torch.from_numpy(grads[name].astype(dtype))
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        optimizer.step()
    return {name: p.detach().numpy() for name, p in params.items()}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_fifty_steps_are_those_of_torchs_adamw(options: ClassicOptions, dtype: type, rtol: float):
    expected = theirs(options, dtype)
    for name, params in ours(torch, options, dtype).items():
        assert params.dtype == dtype
        np.testing.assert_allclose(params, expected[name], rtol=rtol, atol=rtol)
        assert not np.allclose(params, start(dtype)[name], atol=1e-2)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_numpy_computes_what_torch_computes(options: ClassicOptions):
    with_torch = ours(torch, options, np.float32)
    for name, params in ours(np, options, np.float32).items():
        assert params.dtype == np.float32
        np.testing.assert_allclose(params, with_torch[name], rtol=1e-6, atol=1e-7)


def test_the_rows_are_the_parameters_in_fp32():
    method, rows = Classic(ClassicOptions()), start(np.float64)
    params = method.params(rows)
    for name, block in method.rows(torch, params).items():
        assert block.dtype == np.float32
        assert np.array_equal(block, rows[name].astype(np.float32))
        assert not np.shares_memory(block, rows[name])


def test_an_update_leaves_what_it_was_given_as_it_was():
    method = Classic(ClassicOptions(adam_weight_decay=0.1))
    params, state, grads = start(np.float32), method.state(start(np.float32)), gradients()[1]
    method.update(np, params, grads, state, 1e-2, 0)
    assert all(np.array_equal(p, start(np.float32)[name]) for name, p in params.items())
    assert set(state) == {"mean.clip_l", "square.clip_l", "mean.clip_g", "square.clip_g"}
    assert not any(s.any() for s in state.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adam_beta1": 1.0}, r"adam_beta1 must be at least 0 and below 1, but is 1\.0\."),
        ({"adam_beta1": -0.1}, r"adam_beta1 must be at least 0 and below 1, but is -0\.1\."),
        ({"adam_beta2": 1.5}, r"adam_beta2 must be at least 0 and below 1, but is 1\.5\."),
        ({"adam_beta2": float("nan")}, r"adam_beta2 must be at least 0 and below 1, but is nan\."),
        ({"adam_weight_decay": -1e-2}, "must be at least 0"),
        ({"adam_epsilon": -1e-8}, "must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str):
    with pytest.raises(RecipeError, match=message):
        ClassicOptions(**options)


def test_every_method_of_the_table_is_built_from_its_own_options():
    assert methods.METHODS.keys() == methods.OPTIONS.keys()
    for name, options in methods.OPTIONS.items():
        assert options.name == name
        assert type(methods.build(options())) is methods.METHODS[name]


# Going on from another trainer's state


@pytest.mark.parametrize("xp", [np, torch])
def test_it_goes_on_where_another_adamw_was(xp: ModuleType):
    whole, half = torch.nn.Parameter(torch.from_numpy(start(np.float64)["clip_l"])), STEPS // 2
    other = torch.optim.AdamW([whole], lr=5e-3, weight_decay=0.0)
    method, put = methods.build(ClassicOptions()), torch.from_numpy if xp is torch else np.array
    params: Any = {}
    state: Any = {}
    for step, grads in enumerate(gradients()):
        if step == half:
            kept = other.state_dict()["state"][0]
            means, squares = kept["exp_avg"].numpy().copy(), kept["exp_avg_sq"].numpy().copy()
            params = {"clip_l": put(whole.detach().numpy().copy())}
            earlier = method.state_of_adam("clip_l", means, squares, int(kept["step"]))
            state = {name: put(np.asarray(value)) for name, value in earlier.items()}
        if step >= half:
            given = {"clip_l": put(grads["clip_l"].copy())}
            params, state = method.update(xp, params, given, state, 5e-3, step - half)
        whole.grad = torch.from_numpy(grads["clip_l"].copy())
        other.step()
    assert np.allclose(np.asarray(params["clip_l"]), whole.detach().numpy(), rtol=1e-9, atol=1e-12)
