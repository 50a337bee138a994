"""What people and disks do to a run, each held to one sentence and nothing lost."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from pseudoword import Concept, cli, disk, train
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.errors import RecipeError, RunError, TokenError, TrainingStopped
from pseudoword.families.locate import locate
from pseudoword.families.sd import miniature
from pseudoword.recipe import BaseModel, EngineRecipe
from tests.miniatures import TOKEN, MakeRecipe, rows_of


@pytest.mark.parametrize("piece", ["ph", "phot"])
def test_a_piece_of_words_is_no_token_as_diffusers_could_not_load_it(make_recipe: MakeRecipe, piece: str) -> None:
    assert piece in miniature.clip_tokenizer().get_vocab()
    with pytest.raises(TokenError, match=f"'{piece}' is a piece that this tokenizer makes words of"):
        list(train(make_recipe(token=piece)))


def test_a_token_too_long_for_a_files_name_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(TokenError, match="has 101 characters; choose one of at most 100"):
        make_recipe(token="x" * 101)
    list(train(make_recipe(token="x" * 100)))


def test_more_vectors_than_any_prompt_has_are_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="num_vectors must be at most 510, but is 100000000"):
        make_recipe(num_vectors=10**8)


def test_a_new_runs_folder_has_no_pipeline_of_an_earlier_word(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(full_pipeline=True)))
    list(train(make_recipe(token="<other>")))
    assert not (tmp_path / "run" / "model_index.json").exists()
    assert not (tmp_path / "run" / "unet").exists()
    kept = StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "earlier-1")
    assert TOKEN in kept.tokenizer.get_added_vocab()


def test_two_threads_may_train_at_once(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipes = [make_recipe(folder=str(tmp_path / str(i))) for i in range(2)]
    failed: list[Exception] = []

    def learn(i: int) -> None:
        try:
            list(train(recipes[i]))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=learn, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert rows_of(tmp_path / "0").tobytes() == rows_of(tmp_path / "1").tobytes()


def test_an_update_that_is_not_finite_is_never_kept(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    wild = make_recipe(learning_rate=1e300, checkpointing_steps=1, lr_scheduler="constant")
    with pytest.raises(TrainingStopped, match=r"the update of step 1 is not finite\. No checkpoint had been kept"):
        list(train(wild))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_launcher_that_accelerate_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="started 2 processes, but Accelerate runs 1"):
        TorchEngine(EngineRecipe())


@pytest.mark.parametrize("damage", ['{"step": 9}', '{"step": 9, "recipe": {}, "pictures": [], "batch": 2}', "", "[]"])
def test_a_checkpoint_that_says_too_little_gives_way_to_the_one_before(
    make_recipe: MakeRecipe, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    list(train(make_recipe(checkpointing_steps=2)))
    (tmp_path / "run" / "checkpoint-4" / "checkpoint.json").write_text(damage)
    with caplog.at_level(logging.WARNING, logger="pseudoword"):
        assert [p.step for p in train(make_recipe(), resume="latest")] == [3, 4]
    assert "cannot be read" in caplog.text


def test_a_checkpoint_of_other_arrays_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe()))
    list(train(make_recipe(num_vectors=2, folder=str(tmp_path / "two"))))
    shutil.copy(tmp_path / "two" / "checkpoint-4" / "state.safetensors", tmp_path / "run" / "checkpoint-4")
    with pytest.raises(RunError, match=r"damaged or of another run: see params\.0\.clip_l"):
        list(train(make_recipe(), resume="latest"))


def test_junk_in_the_log_does_not_keep_a_run_from_going_on(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe()))
    log = tmp_path / "run" / "log.jsonl"
    log.write_bytes(b'\xff\xfe\n5\n{}\n{"step": "x"}\n' + log.read_bytes() + b'{"step": 3, "lo')
    list(train(make_recipe(steps="6"), resume="latest"))
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays_whole(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(make_recipe(checkpointing_steps=1))
    next(run)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", full)
        with pytest.raises(RunError, match=r"No space left on device\. checkpoint-1 is whole and can be resumed from"):
            next(run)
    assert [p.step for p in train(make_recipe(), resume="latest")] == [2, 3, 4]


def test_odd_pictures_are_named_and_left_out(
    make_recipe: MakeRecipe, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(pictures, folder)
    Image.new("RGB", (64, 64)).save(folder / "bad-exif.png", exif=b"garbage")
    Image.new("F", (8, 8), float("nan")).save(folder / "nan.tiff")
    (folder / "broken.png").symlink_to(folder / "nowhere.png")
    with caplog.at_level(logging.WARNING, logger="pseudoword"):
        list(train(make_recipe(pictures=str(folder))))
    [record] = [r.getMessage() for r in caplog.records if "Not used" in r.getMessage()]
    assert "bad-exif.png (" in record
    assert "nan.tiff (no pixel has a finite value)" in record
    assert "broken.png (broken link)" in record


def test_a_base_that_moved_or_has_a_slash_is_the_same_base(make_recipe: MakeRecipe, base: Path, tmp_path: Path) -> None:
    list(train(make_recipe()))
    moved = tmp_path / "elsewhere" / base.name
    shutil.copytree(base, moved)
    assert [p.step for p in train(make_recipe(model=f"{moved}/", steps="5"), resume="latest")] == [5]


def test_a_tilde_is_home(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    assert locate(BaseModel(f"~/{base.name}"), {}).model == str(base)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [("file/x.png", "Cannot write pictures to"), ("file", "must be a folder, but")],
)
def test_an_output_that_cannot_be_is_refused_before_sampling(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, sentence: str
) -> None:
    (tmp_path / "file").write_text("")
    words = ["generate", "--model", str(base), "--prompt", "a toy", "--output", str(tmp_path / output)]
    assert cli.main(words) == 1
    assert sentence in capsys.readouterr().err


def test_metadata_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Concept(TOKEN, {"clip_l": np.ones((1, 32))}, metadata={"note": "\x1b[31mred"}).save(
        tmp_path / "w.safetensors"
    )
    assert cli.main(["inspect", str(file)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"\x1b[31mred" in said
