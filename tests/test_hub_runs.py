"""Runs that push: looked into before anything is loaded, on the way without changing anything, and at the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pseudoword import Concept, Recipe, cli, train
from pseudoword import hub as pushing
from pseudoword.errors import HubError, RecipeError
from tests.hub_server import FILES, TOKEN, USER, Fault, Hub, contents, point_at
from tests.miniatures import TOKEN as WORD
from tests.miniatures import MakeRecipe, rows_of
from tests.test_processes import together


def run(recipe: Recipe, **more: Any) -> None:
    list(train(recipe, **more))


def test_a_run_pushes_its_word_card_and_strip(hub: Hub, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.safetensors"
    Concept("<e>", {"clip_l": np.ones((1, 32))}).save(earlier)
    recipe = make_recipe(
        initializer=str(earlier),
        push_to_hub=True,
        hub_model_id="words",
        hub_private=True,
        hub_branch="cats",
        validation_prompts=(f"a red {WORD}",),
        num_validation_images=1,
        validation_steps="4",
        validation_sampling_steps=1,
    )
    run(recipe)
    assert hub.repositories[f"{USER}/words"].private
    arrived = hub.files(f"{USER}/words", "cats")
    assert set(arrived) == FILES | {"samples/strip.png"}
    assert arrived == {name: (tmp_path / "run" / name).read_bytes() for name in arrived}
    assert f"- text: a red {WORD}\n  output:\n    url: samples/strip.png" in arrived["README.md"].decode()
    assert str(tmp_path).encode() not in b"".join(arrived.values()), "paths of this machine are nobody's business"


def words_of(base: Path, pictures: Path, folder: Path, *more: str) -> list[str]:
    own = ["--model", str(base), "--token", WORD, "--pictures", str(pictures), "--initializer", "toy"]
    return ["train", *own, "--steps", "2", "--folder", str(folder), "--push-to-hub", *more]


def test_the_command_pushes_and_the_token_is_nowhere(
    hub: Hub, base: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words_of(base, pictures, tmp_path / "run", "--hub-model-id", f"{USER}/words")) == 0
    said = capfd.readouterr()
    assert f"The word is on the Hub: {hub.url}/{USER}/words" in said.err
    assert hub.tokens <= {TOKEN, None, ""}
    everything = [*contents(tmp_path).values(), *hub.bodies, (said.out + said.err).encode()]
    assert len(everything) > 10
    assert not any(TOKEN.encode() in each for each in everything)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("create", 401), "the Hub does not know the token"),
        (Fault("preupload", 403), "the token may not write there"),
        (Fault("create", 404), "there is no such owner"),
    ],
)
def test_what_the_final_push_would_be_refused_for_is_refused_before_anything_is_loaded(
    hub: Hub, make_recipe: MakeRecipe, tmp_path: Path, fault: Fault, reason: str
) -> None:
    hub.faults = [fault]
    with pytest.raises(HubError, match=reason) as refused:
        run(make_recipe(push_to_hub=True, model="there/is-none"))
    assert "later" not in str(refused.value)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_hub_out_of_reach_stops_no_run_and_the_word_is_pushed_later(
    hub: Hub, base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults = [Fault("", 503)]
    words = words_of(base, pictures, tmp_path / "run", "--hub-model-id", "words", "--hub-branch", "b", "--hub-private")
    assert cli.main(words) == 1
    said = capsys.readouterr().err.splitlines()
    assert (
        "Cannot push to words: the Hub fails at the moment (503). Training goes on; the push is tried at the end."
        in said
    )
    assert said[-1] == (
        "error: Cannot push to words: the Hub fails at the moment (503). "
        f"Nothing is lost: `pseudoword push {tmp_path / 'run'}` pushes it later."
    )
    assert Concept.load(tmp_path / "run").steps == 2
    hub.faults = []
    assert cli.main(["push", str(tmp_path / "run")]) == 0, "where to is in the recipe"
    assert hub.repositories[f"{USER}/words"].private
    assert set(hub.files(f"{USER}/words", "b")) == FILES
    more = ["--hub-model-id", f"{USER}/others", "--branch", "c"]
    assert cli.main(["push", str(tmp_path / "run"), *more]) == 0, "unless it is said"
    assert set(hub.files(f"{USER}/others", "c")) == FILES


def test_pushes_on_the_way_upload_the_word_as_it_is_then_and_change_nothing(
    hub: Hub, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    run(make_recipe(steps="6", save_steps=2, folder=str(tmp_path / "without")))
    run(make_recipe(steps="6", push_to_hub=True, push_steps=2))
    first, *_, last = hub.repositories[f"{USER}/run"].commits
    (tmp_path / "first.bin").write_bytes(first["learned_embeds.bin"])
    (tmp_path / "first.safetensors").write_bytes(first["learned_embeds.safetensors"])
    word = Concept.load(tmp_path / "first.safetensors")
    kept = Concept.load(tmp_path / "without" / "learned_embeds-steps-2.safetensors")
    assert (word.steps, kept.steps) == (2, 2)
    assert word.rows["clip_l"].tobytes() == kept.rows["clip_l"].tobytes()
    assert rows_of(tmp_path / "run").tobytes() == rows_of(tmp_path / "without").tobytes()
    assert set(first) == set(last) == FILES
    assert last["learned_embeds.bin"] == (tmp_path / "run" / "learned_embeds.bin").read_bytes()
    assert "2 steps of 2 pictures" in first["README.md"].decode()
    assert not list((tmp_path / "run").glob("learned_embeds-steps*"))


def test_a_push_on_the_way_shows_the_newest_picture(hub: Hub, make_recipe: MakeRecipe) -> None:
    looking = {"validation_prompts": (WORD,), "num_validation_images": 1, "validation_sampling_steps": 1}
    run(make_recipe(push_to_hub=True, push_steps=2, validation_steps="2", **looking))
    first, *_, last = hub.repositories[f"{USER}/run"].commits
    assert set(first) == set(last) == FILES | {"samples/strip.png"}
    assert first["samples/strip.png"] != last["samples/strip.png"]


def test_pushes_on_the_way_that_fail_are_one_warning(
    hub: Hub, make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    def after_the_check() -> None:
        hub.faults = [Fault("commit", 403)] if len(hub.bodies) > 3 else []

    hub.watch = after_the_check
    with pytest.raises(HubError, match="Nothing is lost"):
        run(make_recipe(push_to_hub=True, push_steps=1))
    warned = [record.message for record in caplog.records if "Cannot push" in record.message]
    assert len(warned) == 1
    assert warned[0].endswith("a repository of your own. Training goes on.")


def test_push_steps_without_push_to_hub_are_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="push_steps is 5, but push_to_hub is off"):
        make_recipe(push_steps=5)
    with pytest.raises(RecipeError, match="push_steps must be at least 1"):
        make_recipe(push_steps=0, push_to_hub=True)
    assert make_recipe(hub_model_id="someone/word").output.hub_model_id, "what `pseudoword push` reads"


def pointed_at(url: str) -> Callable[[], bool]:
    """Have this process push to an address; made where `train` is started, as its question whether to stop."""
    point_at(url, pytest.MonkeyPatch())
    return lambda: False


def test_of_several_processes_one_pushes_and_none_waits_for_a_push_that_fails(
    hub: Hub, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    hub.faults = [Fault("commit", 403)]
    recipe = make_recipe(batch_size=1, steps="2", push_to_hub=True)
    together(recipe, 2, tmp_path / "said", functools.partial(pointed_at, hub.url))
    [said] = tmp_path.glob("said-*")
    assert said.name == "said-0"
    assert said.read_text().startswith("Cannot push to run: the token may not write there (403")
    assert hub.asked.count("POST /api/repos/create") == 2, "before the run and after it"
    hub.faults = []
    assert pushing.push(tmp_path / "run")
