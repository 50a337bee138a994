"""Samplers' steps in NumPy against diffusers' schedulers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from pseudoword import objectives
from pseudoword.errors import RecipeError
from pseudoword.families import solvers

SCHEDULERS = {"ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler}
USUAL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def ours(plan: solvers.Plan, kind: Any, latents: np.ndarray, denoise: Any) -> np.ndarray:
    before = np.zeros_like(latents)
    for i, timestep in enumerate(plan.timestep):
        prediction = denoise(latents, int(timestep))
        clean, noise = objectives.found(kind, latents, prediction, plan.alpha[i], plan.sigma[i])
        clean = np.clip(clean, -plan.limit, plan.limit)
        latents = plan.kept[i] * latents + plan.clean[i] * clean + plan.before[i] * before + plan.noise[i] * noise
        before = clean
    return latents


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize(("steps", "first"), [(1, 0), (2, 0), (7, 0), (25, 0), (7, 3), (25, 24)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps_offset": 1, "set_alpha_to_one": False, "timestep_spacing": "leading"},
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"timestep_spacing": "linspace", "clip_sample": True},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
)
def test_latents_are_those_of_diffusers(sampler: Any, steps: int, first: int, changes: dict[str, Any]):
    config = {**USUAL, **changes}
    trailing = {"timestep_spacing": "trailing"} if "rescale_betas_zero_snr" in changes else {}
    theirs = SCHEDULERS[sampler].from_config({**config, **trailing})
    kind = config.get("prediction_type", "epsilon")
    plan = solvers.plan(sampler, config, steps, first)
    theirs.set_timesteps(steps)
    if first and sampler == "dpm++":
        theirs.set_begin_index(first)
    timesteps = theirs.timesteps[first:]
    assert plan.timestep.tolist() == timesteps.tolist()

    def denoise(latents: Any, timestep: int) -> Any:
        return 0.3 * latents + 0.1 * (timestep / 1000)

    start = np.random.default_rng(0).standard_normal((2, 4, 8, 8))
    latents = torch.tensor(start)
    for timestep in timesteps:
        latents = theirs.step(denoise(latents, int(timestep)), timestep, latents).prev_sample
    found = ours(plan, kind, start, denoise)
    assert np.abs(found - latents.numpy()).max() < 2e-4 * np.abs(latents.numpy()).max()


def test_what_is_not_known_is_refused():
    with pytest.raises(RecipeError, match=r"^The JAX engine samples with ddim or dpm\+\+, not with 'euler'; choose"):
        solvers.plan("euler", USUAL, 4)
    own = DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True).config
    with pytest.raises(RecipeError, match=r"configuration sets solver_order, use_karras_sigmas, which the JAX engine"):
        solvers.plan("dpm++", own, 4)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_a_plan_has_as_many_steps_as_asked_for(sampler: Any):
    """Counting down in fractions has one too many for 61 and 103, in diffusers too."""
    for steps in (61, 103, 121):
        timesteps = solvers.plan(sampler, {**USUAL, "timestep_spacing": "trailing"}, steps).timestep
        assert (len(timesteps), timesteps[0]) == (steps, 999)
        assert timesteps[-1] > 0


@pytest.mark.parametrize(("sampler", "steps"), [("dpm++", 1000), ("ddim", 1000)])
def test_steps_that_cannot_be_taken_are_errors(sampler: Any, steps: int):
    config = {**DDPMScheduler(**USUAL).config, "steps_offset": 1}
    with pytest.raises((IndexError, FloatingPointError)):
        solvers.plan(sampler, config, steps)
