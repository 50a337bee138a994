"""The guide's script: every flag has a test that starts with its name and shows its effect; here on what is learned."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_scheduler

from pseudoword import Concept
from pseudoword.families.sd import miniature
from tests.examples.guide import GUIDE, REQUIRED, Argv, Learn, Refused


def test_flags_and_defaults_are_the_guides(script: ModuleType, argv: Argv):
    args = script.parse_args(argv())
    assert vars(args).keys() == {*GUIDE, "only_save_embeds", "config", "pretrained_vae_model_name_or_path"}
    assert {name: vars(args)[name] for name in GUIDE if name not in REQUIRED} == {
        name: default for name, default in GUIDE.items() if name not in REQUIRED
    }


def test_every_flag_has_a_test():
    sources = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_textual_inversion*.py")]
    tests = [name for source in sources for name in re.findall(r"^def test_(\w+)", source, re.MULTILINE)]
    assert [flag for flag in GUIDE if not any(t.startswith(flag) for t in tests)] == []


@pytest.mark.parametrize("missing", REQUIRED)
def test_required_flags_are_asked_for(script: ModuleType, argv: Argv, missing: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        script.main(argv(**{missing: None}))
    assert f"the following arguments are required: --{missing}" in capsys.readouterr().err


# The word and its pictures


def test_placeholder_token_is_the_word_that_files_name(learn: Learn):
    run = learn(placeholder_token="<other>")
    assert Concept.load(run.folder).token == "<other>"
    assert (run.folder / "token_identifier.txt").read_text() == "<other>"


def test_placeholder_token_that_is_a_word_already_is_refused(refused: Refused):
    assert "The token 'cat' is already in the vocabulary" in refused(placeholder_token="cat")


def test_train_data_dir_is_what_is_learned_from(learn: Learn, tmp_path: Path, pictures: Path):
    (tmp_path / "one.png").write_bytes((pictures / "1.png").read_bytes())
    assert not np.array_equal(learn().rows, learn(train_data_dir=tmp_path).rows)


def test_train_data_dir_that_is_not_there_is_refused(refused: Refused):
    assert "There is no folder 'nowhere'" in refused(train_data_dir="nowhere")


def test_initializer_token_is_where_the_rows_start(learn: Learn, base: Path):
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    for words, vectors in (("toy", 1), ("red cat", 2)):
        ids = pipeline.tokenizer(words, add_special_tokens=False).input_ids
        table = pipeline.text_encoder.get_input_embeddings().weight.detach().numpy()
        run = learn(initializer_token=words, num_vectors=vectors, learning_rate=0)
        np.testing.assert_array_equal(run.rows, table[ids])


def test_initializer_token_is_a_word_beside_a_folder_of_that_name(
    learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()
    np.testing.assert_array_equal(learn(output_dir=tmp_path / "run").rows, learn().rows)


@pytest.mark.parametrize("property_", ["object", "style"])
def test_learnable_property_chooses_the_captions(learn: Learn, property_: str):
    run = learn(learnable_property=property_)
    assert (run.folder / "type_of_concept.txt").read_text() == property_
    assert np.array_equal(run.rows, learn().rows) == (property_ == "object")


def test_num_vectors_is_how_many_rows_there_are(learn: Learn, refused: Refused):
    assert learn(num_vectors=3).rows.shape == (3, 32)
    assert "num_vectors must be at least 1" in refused(num_vectors=0)


def test_resolution_is_the_size_of_the_pictures(learn: Learn, refused: Refused):
    assert not np.array_equal(learn(resolution=32).rows, learn().rows)
    assert "resolution must be a multiple of 2" in refused(resolution=17)


def test_center_crop_keeps_the_shape_of_what_is_not_square(learn: Learn):
    assert not np.array_equal(learn(center_crop=True).rows, learn().rows)


def test_repeats_lengthen_an_epoch(learn: Learn):
    assert len(learn(max_train_steps=None, num_train_epochs=1, repeats=1).log) == 2
    assert len(learn(max_train_steps=None, num_train_epochs=1, repeats=2).log) == 3


# The base model


def test_pretrained_model_name_or_path_is_the_base(learn: Learn, refused: Refused, tmp_path: Path):
    other = miniature.write(tmp_path / "other", seed=1)
    assert not np.allclose(learn(pretrained_model_name_or_path=other).rows, learn().rows)
    assert "has no model_index.json" in refused(pretrained_model_name_or_path=tmp_path)


def test_variant_is_which_weight_files_are_read(learn: Learn, refused: Refused, base: Path, tmp_path: Path):
    pipeline = StableDiffusionPipeline.from_pretrained(base).to(torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    assert "Cannot load" in refused(pretrained_model_name_or_path=tmp_path / "half")
    run = learn(pretrained_model_name_or_path=tmp_path / "half", variant="fp16")
    np.testing.assert_allclose(run.rows, learn().rows, atol=0.05)  # Adam's sign of a tiny gradient may turn
    assert run.recipe.base.variant == "fp16"


def test_tokenizer_name_is_another_tokenizer(learn: Learn, tmp_path: Path):
    miniature.clip_tokenizer(max_length=40).save_pretrained(tmp_path)
    assert not np.array_equal(learn(tokenizer_name=tmp_path).rows, learn().rows)  # captions have less padding


# How long, and in what portions


def test_max_train_steps_is_the_length_and_comes_before_epochs(learn: Learn):
    assert len(learn().log) == len(learn(num_train_epochs=1).log) == 3


def test_num_train_epochs_is_the_length_where_steps_are_not_given(learn: Learn):
    assert len(learn(max_train_steps=None, num_train_epochs=2, repeats=2).log) == 2 * 3
    accumulated = learn(max_train_steps=None, num_train_epochs=2, repeats=2, gradient_accumulation_steps=2)
    assert len(accumulated.log) == 2 * 2


def test_train_batch_size_is_the_pictures_of_a_step(learn: Learn):
    assert not np.array_equal(learn(train_batch_size=1).rows, learn().rows)


def test_gradient_accumulation_steps_make_the_same_batch_of_smaller_ones(learn: Learn):
    run = learn(train_batch_size=1, gradient_accumulation_steps=2)
    np.testing.assert_allclose(run.rows, learn().rows, atol=1e-5)
    assert len(run.log) == 3


def test_seed_decides_every_choice(learn: Learn, tmp_path: Path):
    again = learn(output_dir=tmp_path / "again")
    assert np.array_equal(again.rows, learn().rows)
    assert not np.array_equal(learn(seed=8).rows, learn().rows)


def test_seed_is_recorded_where_it_was_drawn(learn: Learn, tmp_path: Path):
    drawn = learn(seed=None)
    again = learn(seed=drawn.recipe.training.seed, output_dir=tmp_path / "again")
    assert np.array_equal(drawn.rows, again.rows)


# Learning rate and AdamW


def test_learning_rate_is_that_of_every_step(learn: Learn):
    assert learn(learning_rate=3e-3).rates == [3e-3] * 3


def test_scale_lr_multiplies_by_batch_and_accumulation(learn: Learn):
    assert learn(scale_lr=True, gradient_accumulation_steps=3).rates == pytest.approx([1e-2 * 2 * 3] * 3)


def reference(kind: str, **numbers: int) -> list[float]:
    """Return the learning rates of diffusers' own scheduler over six steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-2)
    scheduler, rates = get_scheduler(kind, optimizer, num_training_steps=6, **numbers), []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    "kind", ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
)
def test_lr_scheduler_follows_diffusers(learn: Learn, kind: str):
    run = learn(lr_scheduler=kind, lr_warmup_steps=2, max_train_steps=6)
    assert run.rates == pytest.approx(reference(kind, num_warmup_steps=2), abs=1e-12)


def test_lr_scheduler_with_rules_is_refused(refused: Refused):
    assert "needs rules that no flag here can give" in refused(lr_scheduler="piecewise_constant")


def test_lr_warmup_steps_are_optimizer_steps_of_rising(learn: Learn):
    run = learn(lr_scheduler="constant_with_warmup", lr_warmup_steps=4, gradient_accumulation_steps=2)
    assert run.rates == pytest.approx([0, 0.25e-2, 0.5e-2])


def test_lr_num_cycles_are_restarts(learn: Learn):
    run = learn(lr_scheduler="cosine_with_restarts", lr_num_cycles=2, lr_warmup_steps=0, max_train_steps=6)
    assert run.rates == pytest.approx(reference("cosine_with_restarts", num_warmup_steps=0, num_cycles=2), abs=1e-12)
    assert run.rates[3] == pytest.approx(1e-2)


def test_adam_beta1_decays_the_mean(learn: Learn):
    assert not np.allclose(learn(adam_beta1=0.5).rows, learn().rows)


def test_adam_beta2_decays_the_mean_square(learn: Learn):
    assert not np.allclose(learn(adam_beta2=0.5).rows, learn().rows)


def test_adam_epsilon_shortens_steps(learn: Learn):
    start = learn(learning_rate=0).rows
    assert np.abs(learn(adam_epsilon=1.0).rows - start).max() < 0.1 * np.abs(learn().rows - start).max()


def test_adam_weight_decay_shrinks_the_rows(learn: Learn):
    start = learn(learning_rate=0).rows
    without, pulled = (learn(adam_weight_decay=decay, max_train_steps=1).rows for decay in (0, 0.5))
    np.testing.assert_allclose(without - pulled, start * 1e-2 * 0.5, atol=1e-6)
    assert not np.array_equal(learn(adam_weight_decay=0).rows, learn().rows)  # 0.01 by default, as the guide's
