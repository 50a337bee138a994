"""The guide's script: how flags change the computing and what is written, what is refused, and how it ends."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from pseudoword import Concept, watch
from pseudoword.families.sd.torch import StableDiffusion
from tests.examples.guide import Argv, Learn, Learned, Refused
from tests.miniatures import TOKEN

# Computing


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_near_full_precision(learn: Learn, precision: str):
    rows, full, start = learn(mixed_precision=precision).rows, learn().rows, learn(learning_rate=0).rows
    assert not np.array_equal(rows, full)
    assert np.abs(rows - full).mean() < 0.2 * np.abs(full - start).mean()


def test_mixed_precision_not_given_is_what_accelerate_says(
    script: ModuleType, argv: Argv, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert script.recipe_of(script.parse_args(argv())).engine.mixed_precision == "bf16"
    assert script.recipe_of(script.parse_args(argv(mixed_precision="no"))).engine.mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    assert "mixed precision 'fp8', which this cannot train in; say --mixed_precision no, fp16 or bf16." in refused()


def test_allow_tf32_lets_torch_use_it(learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    allowed: set[bool] = set()
    denoise = StableDiffusion.denoise

    def looking(self: StableDiffusion, *inputs: torch.Tensor) -> torch.Tensor:
        allowed.add(torch.backends.cuda.matmul.allow_tf32)
        return denoise(self, *inputs)

    monkeypatch.setattr(StableDiffusion, "denoise", looking)
    learn(allow_tf32=True, output_dir=tmp_path / "with")
    assert allowed == {True}
    learn(output_dir=tmp_path / "without")
    assert allowed == {True, False}
    assert not torch.backends.cuda.matmul.allow_tf32, "only while training"


def test_gradient_checkpointing_computes_the_same(learn: Learn, monkeypatch: pytest.MonkeyPatch):
    plain, calls = learn().rows, []
    enable = UNet2DConditionModel.enable_gradient_checkpointing
    monkeypatch.setattr(UNet2DConditionModel, enable.__name__, lambda unet: (calls.append(unet), enable(unet)))
    np.testing.assert_allclose(learn(gradient_checkpointing=True).rows, plain, atol=1e-5)
    assert calls


def test_enable_xformers_memory_efficient_attention_where_it_is_missing(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "xformers", None)
    assert "xformers is not installed: pip install xformers" in refused(enable_xformers_memory_efficient_attention=True)


def test_dataloader_num_workers_change_no_result(learn: Learn):
    run = learn(dataloader_num_workers=2)
    assert np.array_equal(run.rows, learn().rows)
    assert run.recipe.data.workers == 2


def test_local_rank_is_accepted_and_left_to_the_launcher(script: ModuleType, argv: Argv):
    with_rank, without = (script.recipe_of(script.parse_args(argv(**rank))) for rank in ({"local_rank": 2}, {}))
    assert with_rank == without


# What is written


def test_output_dir_has_the_word_for_every_reader(script: ModuleType, argv: Argv, learn: Learn, tmp_path: Path):
    word = {"learned_embeds.safetensors", "learned_embeds.bin", "token_identifier.txt", "type_of_concept.txt"}
    run = {
        "recipe.toml",
        "log.jsonl",
        "README.md",
        "exports",
        "checkpoint-3",
        "learned_embeds-best.safetensors",
        "logs",
    }
    assert learn(output_dir=tmp_path).files - {".lock"} == word | run
    assert script.recipe_of(script.parse_args(argv())).output.folder == "text-inversion-model"


def test_save_steps_keeps_the_word_on_the_way(learn: Learn):
    run = learn(save_steps=2)
    assert {name for name in run.files if "-steps-" in name} == {"learned_embeds-steps-2.safetensors"}
    kept = Concept.load(run.folder / "learned_embeds-steps-2.safetensors")
    assert np.array_equal(kept.rows["clip_l"], learn(max_train_steps=2).rows)


def checkpoints(run: Learned) -> set[str]:
    return {name for name in run.files if name.startswith("checkpoint")}


def test_checkpointing_steps_keeps_checkpoints_and_the_last(learn: Learn):
    assert checkpoints(learn(checkpointing_steps=2)) == {"checkpoint-2", "checkpoint-3"}


def test_checkpoints_total_limit_keeps_the_newest(learn: Learn):
    assert checkpoints(learn(checkpointing_steps=1, checkpoints_total_limit=2)) == {"checkpoint-2", "checkpoint-3"}


@pytest.mark.parametrize("checkpoint", ["latest", "checkpoint-2", "{}/checkpoint-2"])
def test_resume_from_checkpoint_goes_on_as_if_never_stopped(learn: Learn, tmp_path: Path, checkpoint: str):
    learn(max_train_steps=2, output_dir=tmp_path)
    run = learn(resume_from_checkpoint=checkpoint.format(tmp_path), output_dir=tmp_path)
    assert np.array_equal(run.rows, learn().rows)
    assert [line["step"] for line in run.log] == [1, 2, 3]


def test_resume_from_checkpoint_where_there_is_none(learn: Learn, refused: Refused, capsys: pytest.CaptureFixture[str]):
    assert np.array_equal(learn(resume_from_checkpoint="latest").rows, learn().rows)
    assert "to resume from; starting from the beginning." in capsys.readouterr().err
    assert "There is no checkpoint 'checkpoint-9'" in refused(resume_from_checkpoint="checkpoint-9")


def test_save_as_full_pipeline_writes_a_pipeline_that_knows_the_word(learn: Learn):
    run = learn(save_as_full_pipeline=True, num_vectors=2)
    pipeline = StableDiffusionPipeline.from_pretrained(run.folder)
    ids = pipeline.tokenizer(f"{TOKEN} {TOKEN}_1", add_special_tokens=False).input_ids
    table = pipeline.text_encoder.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(table[ids], run.rows)


def test_only_save_embeds_is_what_happens_anyway(learn: Learn, refused: Refused):
    assert learn(only_save_embeds=True).files == learn().files
    assert "--only_save_embeds and --save_as_full_pipeline contradict" in refused(
        only_save_embeds=True, save_as_full_pipeline=True
    )


@pytest.mark.parametrize("no_safetensors", [None, True])
def test_no_safe_serialization_writes_bin_alone(learn: Learn, base: Path, no_safetensors: bool | None):
    run = learn(no_safe_serialization=no_safetensors, save_steps=2)
    suffix = "bin" if no_safetensors else "safetensors"
    assert {f"learned_embeds-steps-2.{suffix}", "learned_embeds.bin"} <= run.files
    assert any(name.endswith(".safetensors") for name in run.files) != bool(no_safetensors)
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.load_textual_inversion(str(run.folder))
    row = pipeline.text_encoder.get_input_embeddings().weight[pipeline.tokenizer.convert_tokens_to_ids(TOKEN)]
    assert np.array_equal(row.detach().numpy()[None], run.rows)


# What is looked at along the way

SEEN = {"validation_prompt": f"a {TOKEN}", "num_validation_images": 2, "validation_steps": 2}


def pictures_of(run: Learned) -> list[str]:
    return sorted(path.name for path in (run.folder / "samples").glob("step-*"))


def test_validation_prompt_is_sampled_before_on_the_way_and_after(learn: Learn):
    run = learn(**SEEN)
    assert pictures_of(run) == ["step-000000.png", "step-000002.png", "step-000003.png"]
    assert np.array_equal(run.rows, learn().rows)
    assert not (learn().folder / "samples").exists()
    with Image.open(run.folder / "samples" / "step-000000.png") as grid:
        assert grid.info["prompt"] == f"a {TOKEN}"
        assert grid.info["seed"] == "7", "the run's own"


def test_num_validation_images_is_how_many(learn: Learn):
    with Image.open(learn(**SEEN).folder / "samples" / "step-000000.png") as grid:
        assert grid.size == (2 * 20 - 4, 16)


def test_validation_steps_is_how_often(learn: Learn, refused: Refused):
    assert pictures_of(learn(**{**SEEN, "validation_steps": 1})) == [f"step-00000{i}.png" for i in range(4)]
    assert "validation_steps must be a positive number" in refused(validation_steps=0)


def test_validation_epochs_counts_epochs(learn: Learn):
    # Three pictures once in batches of two are two steps an epoch.
    run = learn(**{**SEEN, "validation_steps": 100}, validation_epochs=1, repeats=1)
    assert pictures_of(run) == ["step-000000.png", "step-000002.png", "step-000003.png"]


def test_report_to_and_logging_dir_are_the_trackers(learn: Learn, refused: Refused):
    [events] = (learn().folder / "logs" / "textual_inversion").glob("events.out.tfevents.*")
    assert b"fixed_draw_loss" in events.read_bytes()
    assert "logs" not in learn(report_to="none").files
    assert "The tracker 'mlflow' is not installed: pip install mlflow" in refused(report_to="mlflow")


def test_logging_dir_is_inside_the_output_folder(learn: Learn):
    assert "boards" in learn(logging_dir="boards").files


# What is refused, and how it ends


def test_an_end_says_where_the_word_is(learn: Learn, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    learn(output_dir=tmp_path / "plain")
    assert f"The word {TOKEN} is in {tmp_path / 'plain'}." in (told := capsys.readouterr().out)
    assert f"pipeline.load_textual_inversion('{tmp_path / 'plain'}')" in told
    learn(output_dir=tmp_path / "whole", save_as_full_pipeline=True)
    assert f"StableDiffusionPipeline.from_pretrained('{tmp_path / 'whole'}')" in capsys.readouterr().out


def test_an_interruption_says_how_to_go_on(
    script: ModuleType, argv: Argv, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "follow", interrupt)
    assert script.main(argv()) == 130
    assert "--resume_from_checkpoint latest" in capsys.readouterr().err
