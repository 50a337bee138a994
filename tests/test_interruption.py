"""Signals, memory and disks that fail in the middle of a run: nothing kept is lost, and the run can go on."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pseudoword import Recipe, cli, train
from pseudoword.checkpoints import read_checkpoint
from pseudoword.errors import RunError, TrainingStopped
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.interruption import Interruption
from tests.miniatures import PROCESSES, TOKEN, MakeRecipe, rows_of
from tests.test_processes import together

# Signals


def command(words: list[str]) -> None:
    """Carry out a command line in a process of its own."""
    torch.set_num_threads(1)
    sys.exit(cli.main(words))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_the_run_goes_on_bit_for_bit(
    make_recipe: MakeRecipe, tmp_path: Path, number: signal.Signals
) -> None:
    recipe = make_recipe(steps="60", checkpointing_steps=1000)
    file = tmp_path / "straight.toml"
    list(train(recipe))
    file.write_text((tmp_path / "run" / "recipe.toml").read_text())
    broken = tmp_path / "broken"
    child = PROCESSES.Process(target=command, args=(["train", "--recipe", str(file), "--folder", str(broken)],))
    child.start()
    log = broken / "log.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < 3:
        assert child.is_alive()
        time.sleep(0.005)
    os.kill(child.pid or 0, number)
    child.join(60)
    assert child.exitcode == 128 + number
    [checkpoint] = broken.glob("checkpoint-*")
    done = log.read_bytes().count(b"\n")
    assert checkpoint.name == f"checkpoint-{done}"
    assert 3 <= done < 60
    resumed = dataclasses.replace(recipe, output=dataclasses.replace(recipe.output, folder=str(broken)))
    steps = [p.step for p in train(resumed, resume="latest")]
    assert steps == list(range(done + 1, 61))
    assert rows_of(broken).tobytes() == rows_of(tmp_path / "run").tobytes()


def test_the_second_ctrl_c_quits_at_once_and_a_second_sigterm_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    with Interruption() as interruption:
        assert not interruption.wanted()
        signal.raise_signal(signal.SIGTERM)
        assert interruption.wanted()
        assert interruption.exit_code == 143
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().err.count("Stopping after this step") == 1


def test_before_the_first_step_a_signal_ends_it_at_once() -> None:
    with Interruption(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with Interruption(), pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def test_handlers_are_put_back_and_train_has_none(make_recipe: MakeRecipe) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGINT) != before[0]
    run = train(make_recipe())
    next(run)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    run.close()


def test_stopping_leaves_a_checkpoint_and_no_word(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    answers = iter([False, True])
    last = list(train(make_recipe(), stop=lambda: next(answers)))[-1]
    assert last.step == 2
    assert [p.name for p in last.saved] == ["checkpoint-2"]
    assert not (tmp_path / "run" / "learned_embeds.safetensors").exists()


def test_at_the_last_step_there_is_nothing_to_stop(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    steps = list(train(make_recipe(steps="1"), stop=lambda: True))
    assert [p.step for p in steps] == [1]
    assert (tmp_path / "run" / "learned_embeds.safetensors").exists()


def says_stop_on_rank_1() -> Callable[[], bool]:
    """Return a `stop` that only the second process ever answers with yes, after its third step."""
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return os.environ["RANK"] == "1" and asked == 3

    return stop


def test_all_processes_agree_on_the_last_step(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    together(make_recipe(batch_size=1, steps="8"), 2, tmp_path / "said", stop=says_stop_on_rank_1)
    assert not list(tmp_path.glob("said-*"))
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]


# Memory


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let the denoiser run out of memory with more than `most` pictures."""
    denoise = StableDiffusion.denoise

    def small(self: StableDiffusion, noised: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if len(noised) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return denoise(self, noised, *rest)

    monkeypatch.setattr(StableDiffusion, "denoise", small)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_out_of_memory_halves_what_is_taken_at_once_and_keeps_the_step(
    make_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    most: int,
) -> None:
    common = {"batch_size": 5, "gradient_accumulation_steps": 2, "learning_rate": 5e-4, "steps": "10"}
    list(train(make_recipe(**common, folder=str(tmp_path / "free"))))
    short_of_memory(monkeypatch, most)
    with caplog.at_level(logging.WARNING, logger="pseudoword"):
        list(train(make_recipe(**common, folder=str(tmp_path / "short"))))
    assert np.abs(rows_of(tmp_path / "free") - rows_of(tmp_path / "short")).max() < 1e-5
    assert "Out of memory with 5 pictures at once; going on with 2, the same step." in caplog.text


def test_out_of_memory_halves_what_the_fixed_draw_loss_takes_at_once_too(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"steps": "2", "batch_size": 1, "loss_steps": 1}
    free = [p.fixed_draw_loss[TOKEN] for p in train(make_recipe(**common, folder=str(tmp_path / "free")))]
    short_of_memory(monkeypatch, 1)
    short = [p.fixed_draw_loss[TOKEN] for p in train(make_recipe(**common, folder=str(tmp_path / "short")))]
    assert short == pytest.approx(free, rel=1e-5)


def test_no_memory_for_one_picture_says_what_to_try(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 0)
    with pytest.raises(TrainingStopped, match=r"not enough memory for one picture\. Try memory 'low'"):
        list(train(make_recipe()))


# Disks


def failing(monkeypatch: pytest.MonkeyPatch, at: int, number: int) -> list[int]:
    """Let the `at`-th opening to write, sync or rename fail; returns a list whose length counts them."""
    calls: list[int] = []
    opened = Path.open

    def wrapped(action: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **options: Any) -> Any:
            if action is opened and (args[1:] or ("r",))[0] in ("r", "rb"):
                return action(*args, **options)
            calls.append(1)
            if len(calls) == at:
                raise OSError(number, os.strerror(number))
            return action(*args, **options)

        return act

    monkeypatch.setattr(os, "fsync", wrapped(os.fsync))
    monkeypatch.setattr(Path, "replace", wrapped(Path.replace))
    monkeypatch.setattr(Path, "rename", wrapped(Path.rename))
    monkeypatch.setattr(Path, "open", wrapped(opened))
    return calls


def learn(recipe: Recipe, resume: str | None = None) -> None:
    for _ in train(recipe, resume=resume):
        pass


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_fault_at_any_write_sync_or_rename_loses_nothing_that_was_kept(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    common: dict[str, Any] = {
        "steps": "3",
        "checkpointing_steps": 1,
        "save_steps": 2,
        "checkpoints_total_limit": 2,
        "validation_prompts": [f"a {TOKEN}"],
        "validation_steps": "2",
        "validation_sampling_steps": 1,
        "num_validation_images": 1,
        "loss_steps": 2,
    }
    with monkeypatch.context() as patch:
        calls = failing(patch, at=0, number=0)
        learn(make_recipe(**common, folder=str(tmp_path / "whole")))
    assert len(calls) > 80
    for at in range(1, len(calls) + 1, every):
        recipe = make_recipe(**common, folder=str(tmp_path / f"at-{at}"))
        number = (errno.ENOSPC, errno.EIO, errno.EROFS)[at % 3]
        with monkeypatch.context() as patch:
            failing(patch, at, number)
            with pytest.raises(RunError, match=os.strerror(number)):
                learn(recipe)
        for path in (tmp_path / f"at-{at}").glob("checkpoint-*"):
            read_checkpoint(path)
        learn(recipe, resume="latest")
        assert rows_of(tmp_path / f"at-{at}").tobytes() == rows_of(tmp_path / "whole").tobytes(), at
        assert (tmp_path / f"at-{at}" / "token_identifier.txt").read_text() == TOKEN
        assert not list((tmp_path / f"at-{at}").rglob(".tmp-*"))


@pytest.mark.parametrize("what", ["run", "run/samples"])
def test_a_folder_that_vanishes_ends_the_run_with_a_sentence(
    make_recipe: MakeRecipe, tmp_path: Path, what: str
) -> None:
    looking = {"validation_prompts": [f"a {TOKEN}"], "validation_steps": "1", "validation_sampling_steps": 1}
    run = train(make_recipe(steps="6", **looking))
    next(run)
    shutil.rmtree(tmp_path / what)
    if what == "run":
        with pytest.raises(RunError, match=r"Cannot write to .*run': No such file or directory\. No checkpoint had"):
            list(run)
    else:  # what is missing is made again
        assert [p.step for p in run] == [2, 3, 4, 5, 6]
        assert (tmp_path / "run" / "samples" / "step-000006.png").is_file()


def test_a_folder_that_turns_read_only_ends_the_run_with_a_sentence(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(make_recipe(steps="6", checkpointing_steps=1))
    next(run)
    opened = Path.open

    def refused(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode not in ("r", "rb"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(RunError, match=r"Permission denied\. checkpoint-1 is whole and can be resumed from\."):
        list(run)
