"""Loss weightings: each of the table is what its paper says, for eps and v; looking is never weighted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pseudoword import Recipe, train, weightings
from pseudoword.concept import Concept
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.errors import RecipeError
from pseudoword.families.sd import miniature
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.methods import build
from pseudoword.recipe import Training
from pseudoword.vocabulary import lent_words
from pseudoword.weightings import WEIGHTINGS
from tests.miniatures import TOKEN, MakeRecipe, log_of, one_batch, rows_of, stopped_after

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
"""Stable Diffusion's schedule."""
ALPHA = np.sqrt(np.cumprod(1 - BETAS))
SIGMA = np.sqrt(1 - ALPHA**2)
SNR = ALPHA**2 / SIGMA**2
KINDS = ("epsilon", "v_prediction")


def weights(text: str, prediction_type: str, xp: Any = np, alpha: Any = ALPHA, sigma: Any = SIGMA) -> Any:
    weighting = weightings.read(text)
    assert weighting is not None
    return weighting(xp, alpha, sigma, prediction_type)


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_a_weighting_is_one_objective_whatever_is_predicted(name: str):
    """The error of eps is SNR times, that of v SNR + 1 times, the error of the clean latents."""
    on_eps, on_v = (weights(name, kind) for kind in KINDS)
    np.testing.assert_allclose(on_eps * SNR, on_v * (SNR + 1), rtol=1e-9)
    assert np.ptp(on_eps) > 0.1, "it weighs something"


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_is_the_papers(gamma: float):
    np.testing.assert_allclose(weights(f"min-snr={gamma}", "epsilon"), np.minimum(SNR, gamma) / SNR, rtol=1e-9)
    np.testing.assert_allclose(
        weights(f"min-snr={gamma}", "v_prediction"), np.minimum(SNR, gamma) / (SNR + 1), rtol=1e-9
    )
    np.testing.assert_array_equal(weights("min-snr", "epsilon"), weights("min-snr=5", "epsilon"))


def test_debiased_is_the_papers():
    np.testing.assert_allclose(weights("debiased", "epsilon"), 1 / np.sqrt(SNR), rtol=1e-9)
    np.testing.assert_allclose(weights("debiased", "v_prediction"), np.sqrt(SNR) / (SNR + 1), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_libraries_agree_and_noise_alone_has_a_finite_weight(name: str, kind: str):
    alpha, sigma = np.append(ALPHA, 0.0).astype(np.float32), np.append(SIGMA, 1.0).astype(np.float32)
    found = weights(name, kind, torch, torch.from_numpy(alpha), torch.from_numpy(sigma)).numpy()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(weights(name, kind, jnp, jnp.asarray(alpha), jnp.asarray(sigma)), found, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_snr", "There is no loss_weighting 'min_snr'; did you mean 'min-snr'?"),
        ("p2", "There is no loss_weighting 'p2'; there are min-snr, debiased."),
        ("debiased=2", "debiased takes no number; write loss_weighting 'debiased'."),
        ("min-snr=0", "min-snr needs a number above 0, such as min-snr=5, not 0.0."),
        ("min-snr=five", "loss_weighting must look like 'min-snr' or 'min-snr=5', not 'min-snr=five'."),
    ],
)
def test_what_is_no_weighting_is_refused(text: str, message: str):
    with pytest.raises(RecipeError) as refused:
        Training(loss_weighting=text)
    assert str(refused.value) == message


def test_nothing_of_it_is_in_a_recipe_that_does_not_ask_for_it(make_recipe: MakeRecipe):
    values = make_recipe().to_dict()
    assert "loss_weighting" not in values["training"]
    assert not {"augment", "augment_variants"} & values["data"].keys(), "so old runs go on, and files keep their bytes"
    weighted = make_recipe(loss_weighting="min-snr=2")
    assert Recipe.from_dict(weighted.to_dict()) == weighted


@pytest.fixture(scope="module")
def v_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write(tmp_path_factory.mktemp("v"), prediction_type="v_prediction")


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_weighted_picture_by_picture_and_looking_is_not(
    kind: str, make_recipe: MakeRecipe, v_base: Path
) -> None:
    recipe = make_recipe(**({} if kind == "epsilon" else {"model": str(v_base)}))
    family: Any = StableDiffusion.load(recipe.base)
    rows = {e: np.ones((1, v.table.shape[1]), np.float32) for e, v in family.vocabularies.items()}
    losses = {}
    with lent_words(family.vocabularies, [Concept(TOKEN, rows)]):
        batch, draw = one_batch(family, count=4)
        for name in (None, "min-snr=0.5"):
            engine = TorchEngine(recipe.engine, weighting=weightings.read(name))
            engine.prepare(family)
            engine.start(family, build(recipe.method), {TOKEN: rows})
            alone = [(batch.part(slice(i, i + 1)), draw.part(slice(i, i + 1))) for i in range(4)]
            each = [engine._gradients([pair])[0].item() for pair in alone]
            losses[name] = np.asarray(each), engine.fixed_loss([(batch, draw)])[TOKEN]
            assert engine._gradients([(batch, draw)])[0].item() == pytest.approx(np.mean(each), rel=1e-5)
    alpha, sigma = (level.numpy().ravel() for level in family.noise_levels(torch.from_numpy(draw.timestep)))
    expected = weights("min-snr=0.5", kind, np, alpha, sigma)
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(losses["min-snr=0.5"][0], losses[None][0] * expected, rtol=1e-5)
    assert losses["min-snr=0.5"][1] == losses[None][1], "the fixed-draw loss is always the plain one"


def test_a_weighted_run_begins_at_the_plain_fixed_draw_loss_and_resumes(make_recipe: MakeRecipe, tmp_path: Path):
    common: dict[str, Any] = {"loss_steps": 2, "steps": "4"}
    weighted = {**common, "loss_weighting": "min-snr=0.5"}
    for name, changes in (("plain", common), ("weighted", weighted)):
        list(train(make_recipe(**changes, folder=str(tmp_path / name))))
    plain, other = log_of(tmp_path / "plain"), log_of(tmp_path / "weighted")
    assert plain[0]["fixed_draw_loss"] == other[0]["fixed_draw_loss"]
    assert plain[1]["loss"] != other[1]["loss"]
    stopped_after(make_recipe(**weighted, folder=str(tmp_path / "broken")), 2)
    list(train(make_recipe(**weighted, folder=str(tmp_path / "broken")), resume="latest"))
    assert rows_of(tmp_path / "broken").tobytes() == rows_of(tmp_path / "weighted").tobytes()
