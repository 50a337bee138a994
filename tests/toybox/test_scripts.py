from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pseudoword.errors import RecipeError, TrainingStopped
from pseudoword.toybox import captions, suite, world
from pseudoword.toybox.base import text_encoder, tokenizer
from pseudoword.toybox.captions import MANNER, NAME
from pseudoword.toybox.muon import Muon, orthogonal
from pseudoword.toybox.names import Names, point_at_names, with_names
from pseudoword.toybox.oracle import ATTRIBUTES, Judge, Oracle, agreement, load, save, truth
from pseudoword.toybox.render import render
from pseudoword.toybox.train_oracle import oracle_drawing, twin
from pseudoword.toybox.train_text import encode, spoken_of, token_ids
from pseudoword.toybox.train_vae import psnr
from pseudoword.toybox.trainer import Rate, Trainer, draws
from pseudoword.toybox.world import Drawing, Thing
from tests.toybox.conftest import SIZES

# The trainer


def test_the_rate_warms_up_stays_and_falls_to_zero():
    rate = Rate(2.0, warmup=10, steps=100, decay=20)
    assert rate(0) == pytest.approx(0.2)
    assert rate(9) == rate(50) == rate(79) == pytest.approx(2.0)
    assert rate(90) == pytest.approx(1.0)
    assert rate(100) == pytest.approx(0.0)


def test_an_update_is_made_orthogonal_in_its_own_directions():
    matrices = torch.randn(2, 24, 10, generator=torch.Generator().manual_seed(0))
    for matrix, made in zip(matrices, orthogonal(matrices), strict=True):
        singular = torch.linalg.svdvals(made)
        assert singular.min() > 0.5
        assert singular.max() < 1.4
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        middle = left.T @ made @ right.T
        assert (middle - torch.diag(middle.diag())).abs().max() < 0.1


def test_parameters_of_one_shape_are_updated_each_by_its_own_gradient():
    kernel, wide, other, still = (nn.Parameter(torch.zeros(shape)) for shape in ((6, 4, 3, 3), (4, 6), (4, 6), (4, 6)))
    rng = torch.Generator().manual_seed(0)
    for parameter in (kernel, wide, other):
        parameter.grad = torch.randn(parameter.shape, generator=rng)
    optimizer = Muon([kernel, wide, other, still])
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    for parameter in (kernel, wide, other):
        assert parameter.grad is not None
        alone = orthogonal(parameter.grad.flatten(1)[None])[0].reshape(parameter.shape)
        largest = max(len(parameter), parameter.numel() // len(parameter))
        torch.testing.assert_close(parameter.detach(), -0.5 * 0.2 * largest**0.5 * alone, rtol=0.05, atol=0.02)
    assert not still.any()


def quadratic(trainer: Trainer, steps: int) -> list[float]:
    losses: list[float] = []
    while trainer.step < steps:
        values = torch.from_numpy(draws(0, trainer.step, 0).standard_normal((8, 6), dtype=np.float32))
        loss = (trainer.modules["net"](values) - values.flip(1)).square().mean()
        trainer.update(loss)
        losses.append(loss.item())
    return losses


def small_trainer() -> Trainer:
    torch.manual_seed(0)
    return Trainer({"net": nn.Linear(6, 6)}, Rate(0.02, 1, 200, 100))


def test_a_trainer_learns_and_its_average_follows():
    trainer = small_trainer()
    losses = quadratic(trainer, 200)
    assert losses[-1] < 0.05 * losses[0]
    own = trainer.modules["net"].weight.detach().clone()  # pyright: ignore[reportCallIssue]
    with trainer.averaged():
        values = torch.randn(50, 6)
        assert (trainer.modules["net"](values) - values.flip(1)).square().mean() < 0.1
    assert torch.equal(trainer.modules["net"].weight, own)


def test_a_trainer_goes_on_exactly_where_it_was(tmp_path: Path):
    whole = small_trainer()
    quadratic(whole, 40)
    first = small_trainer()
    quadratic(first, 25)
    first.save(tmp_path / "checkpoint")
    second = small_trainer()
    second.resume(tmp_path / "checkpoint")
    assert second.step == 25
    quadratic(second, 40)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, second.parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.average, second.average, strict=True))


def test_a_gradient_that_is_not_finite_stops_before_it_does_harm():
    trainer = small_trainer()
    before = [p.detach().clone() for p in trainer.parameters]
    with pytest.raises(TrainingStopped, match=r"stopped at step 1: its gradient is not finite\."):
        trainer.update(trainer.modules["net"](torch.full((1, 6), float("inf"))).sum())
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))


def test_a_run_is_not_made_shorter_than_it_is(tmp_path: Path):
    longer = small_trainer()
    quadratic(longer, 5)
    longer.save(tmp_path / "checkpoint")
    shorter = Trainer({"net": nn.Linear(6, 6)}, Rate(0.02, 1, 4, 2))
    with pytest.raises(RecipeError, match=r"checkpoint' is at step 5; --steps must be at least that\."):
        shorter.resume(tmp_path / "checkpoint")


# Names


def test_a_name_is_the_sum_of_what_it_stands_for():
    names = Names(8)
    fish = Thing("fish", "red", "striped", "blue")
    drawings = [Drawing((fish,), "sand", "sepia"), Drawing((replace(fish, pattern="plain"),), "sea")]
    made = names(drawings)
    assert made.shape == (4, 8)
    weight = {
        name: dict(zip(ATTRIBUTES[name], embedding.weight, strict=True))  # pyright: ignore[reportArgumentType]
        for name, embedding in names.embeddings.items()
    }
    both = weight["shape"]["fish"] + weight["colour"]["red"]
    striped = both + weight["pattern"]["striped"] + weight["second"]["blue"]
    torch.testing.assert_close(made[0], striped)
    torch.testing.assert_close(made[1], both + weight["pattern"]["plain"])
    torch.testing.assert_close(made[2], weight["style"]["sepia"])
    torch.testing.assert_close(made[3], weight["style"]["photo"])


def test_every_caption_gets_the_names_of_its_own_drawing(tmp_path: Path):
    shipped = tokenizer(tmp_path)
    words = with_names(tokenizer(tmp_path))
    assert len(words) == len(shipped) + 2
    ids = token_ids(words, [f"a photo of a {NAME}", f"a small {NAME} in the style of {MANNER}", "a star"], full=False)
    pointed = point_at_names(ids, len(shipped))
    of_names = [[i - len(shipped) for i in row if i >= len(shipped)] for row in pointed.tolist()]
    assert of_names == [[0], [1, 4], []]
    torch.manual_seed(0)
    encoder, names = text_encoder(SIZES, shipped), Names(SIZES.text_width)
    drawings = [world.training_drawing(seed) for seed in (1, 2, 3)]
    encode(encoder, names, drawings, ids).pooler_output[1, 0].backward()
    assert encoder.get_input_embeddings().num_embeddings == len(shipped)
    shapes = names.embeddings["shape"].weight.grad
    assert isinstance(shapes, torch.Tensor)
    assert shapes.abs().sum(dim=1).nonzero().tolist() == [[ATTRIBUTES["shape"].index(drawings[1].things[0].shape)]]


def test_what_has_no_word_is_mostly_called_by_a_name():
    nameless = Drawing((Thing("fish", "red"),), "sand", "comic")
    known = Drawing((Thing("star", "red"),), "sand", "neon")
    for drawing, low, high in ((nameless, 0.6, 0.8), (known, 0.13, 0.27)):
        said = [spoken_of(drawing, world.generator(seed, 2), 1.0) for seed in range(500)]
        assert low < sum(NAME in text for text in said) / 500 < high
        assert low < sum(MANNER in text for text in said) / 500 < high
    assert not any(NAME in text for text in (captions.caption(known, world.generator(s, 2), 1.0) for s in range(50)))


def test_psnr_is_in_decibels_of_eight_bit_pictures():
    pictures = torch.zeros(2, 3, 8, 8)
    assert psnr(pictures + 2 / 255, pictures) == pytest.approx(20 * np.log10(255), abs=1e-3)


# The oracle


def test_an_oracle_is_read_back_as_it_was_written(trained: Path, tmp_path: Path):
    judge = load(trained / "oracle.safetensors")
    pictures = np.stack([render(world.training_drawing(seed), seed) for seed in range(4)])
    readings = judge.read(pictures)
    assert [set(reading) for reading in readings] == [set(ATTRIBUTES)] * 4
    assert all(value in ATTRIBUTES[name] and 0 < p <= 1 for r in readings for name, (value, p) in r.items())
    np.testing.assert_allclose(np.linalg.norm(judge.embed(pictures), axis=1), 1, rtol=1e-5)
    save(judge.oracle, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (trained / "oracle.safetensors").read_bytes()
    assert (tmp_path / "again.safetensors").stat().st_size < 1 << 20


def test_the_truth_about_a_drawing_leaves_out_what_it_does_not_say():
    star = Thing("star", "red", "striped", "blue", "large")
    assert truth(Drawing((star,), "sand")) == {
        "shape": "star",
        "colour": "red",
        "pattern": "striped",
        "second": "blue",
        "size": "large",
        "background": "sand",
        "style": "photo",
        "relation": "",
    }
    both = truth(Drawing((replace(star, pattern="plain"), Thing("ring", "green")), "sand", relation="on"))
    assert "second" not in both
    assert "size" not in both
    assert (both["other shape"], both["other colour"]) == ("ring", "green")


def test_agreement_counts_only_pictures_that_have_the_attribute():
    drawings = [Drawing((Thing("star", "red"),), "sand"), Drawing((Thing("ring", "red", "dotted", "blue"),), "sea")]
    readings = [{name: (values[0], 1.0) for name, values in ATTRIBUTES.items()} for _ in drawings]
    readings[0]["shape"] = ("star", 1.0)
    readings[1]["second"] = ("blue", 1.0)
    shares = agreement(readings, drawings)
    assert (shares["shape"], shares["colour"], shares["second"], shares["background"]) == (0.5, 1.0, 1.0, 0.0)
    assert "other shape" not in shares


def test_a_judge_sees_left_and_right_apart():
    torch.manual_seed(0)
    judge = Judge(Oracle().eval())
    picture = render(Drawing((Thing("star", "red"), Thing("ring", "blue")), "white", relation="and"), 0)
    assert not np.allclose(judge.embed(picture[None]), judge.embed(picture[None, :, ::-1]), atol=1e-4)


def test_a_twin_is_the_same_object_elsewhere():
    for seed in range(200):
        rng = world.generator(seed, 0)
        drawing = oracle_drawing(rng)
        other = twin(drawing, rng)
        assert [(t.shape, t.colour, t.pattern, t.second) for t in drawing.things] == [
            (t.shape, t.colour, t.pattern, t.second) for t in other.things
        ]
        assert drawing.relation == other.relation
        assert other.things[0].colour != other.background


# The suite


def test_the_suite_has_its_subjects_and_halves():
    kinds = [subject.kind for subject in suite.SUBJECTS]
    assert [kinds.count(kind) for kind in ("nameable", "wordless", "style")] == [6, 6, 4]
    for kind in ("nameable", "wordless", "style"):
        halves = [subject.half for subject in suite.SUBJECTS if subject.kind == kind]
        assert halves.count("tuning") == halves.count("reporting")


@pytest.mark.parametrize("subject", suite.SUBJECTS, ids=lambda s: s.name)
def test_a_subject_shows_itself_five_times_and_asks_what_it_can_answer(subject: suite.Subject):
    assert len({picture.tobytes() for picture in suite.pictures(subject)}) == suite.PICTURES
    shown = suite.drawings(subject)
    if subject.kind == "style":
        assert {drawing.style for drawing in shown} == {subject.style}
    else:
        assert {(d.things[0].shape, d.things[0].colour, d.style) for d in shown} == {
            (subject.thing.shape, subject.thing.colour, "photo")
        }
        assert len({drawing.background for drawing in shown}) == suite.PICTURES
    asked = suite.prompts(subject)
    assert [prompt.situation for prompt in asked] == [
        "plain",
        "new scene",
        "new style",
        "another object",
        "another size",
    ]
    assert all(prompt.text.count("{}") == 1 for prompt in asked)
    assert [prompt.asked == () for prompt in asked] == [True, False, False, False, False]
    for prompt in asked:
        assert set(prompt.asked) <= set(truth(prompt.expected))
        assert ("size" in prompt.asked) == any(size in prompt.text for size in ("small", "large"))
    for prompt in asked[1:]:
        assert captions.PLACES[prompt.expected.background] in prompt.text
    assert "snow" not in {drawing.background for drawing in shown} or subject.kind == "style"
