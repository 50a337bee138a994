"""Several processes split a step's batch and come to the same word as one."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pseudoword import Recipe, train
from pseudoword.errors import PseudowordError
from pseudoword.recipe import ConceptRecipe
from tests.miniatures import PROCESSES, MakeRecipe, in_folder, rows_of

MakeStop = Callable[[], Callable[[], bool]]
"""Makes, in a process of its own, what `train` asks whether to stop."""


def rank(
    recipe: Recipe, number: int, processes: int, port: int, said: str, stop: MakeStop | None, resume: str | None
) -> None:
    """Train as one of several processes, and write what went wrong to a file."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    try:
        for _ in train(recipe, stop=stop() if stop else None, resume=resume):
            pass
    except PseudowordError as error:
        Path(f"{said}-{number}").write_text(str(error))


def together(
    recipe: Recipe, processes: int, said: Path, stop: MakeStop | None = None, resume: str | None = None
) -> None:
    """Train in several processes connected by gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        PROCESSES.Process(target=rank, args=(recipe, n, processes, port, str(said), stop, resume))
        for n in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * processes


@pytest.mark.parametrize("accumulated", [1, 2])
def test_two_processes_equal_one(make_recipe: MakeRecipe, tmp_path: Path, accumulated: int) -> None:
    common = {"steps": "20", "learning_rate": 5e-4, "save_steps": 10, "gradient_accumulation_steps": accumulated}
    list(train(make_recipe(batch_size=4, folder=str(tmp_path / "one"), **common)))
    together(make_recipe(batch_size=2, folder=str(tmp_path / "two"), **common), 2, tmp_path / "said")
    assert not list(tmp_path.glob("said-*"))
    assert np.abs(rows_of(tmp_path / "one") - rows_of(tmp_path / "two")).max() < 1e-5
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == 20, "one process writes the log"


def test_two_processes_learn_several_words_and_leave_out_the_same(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path
) -> None:
    """One concept has no pictures; the other two are what one process learns."""
    recipe = make_recipe(batch_size=4, folder=str(tmp_path / "one"))
    concepts = tuple(
        ConceptRecipe(token, str(folder), "toy")
        for token, folder in (("<a>", pictures), ("<gone>", tmp_path / "gone"), ("<b>", pictures))
    )
    list(train(dataclasses.replace(recipe, concepts=concepts)))
    two = make_recipe(batch_size=2, folder=str(tmp_path / "two"))
    together(dataclasses.replace(two, concepts=concepts), 2, tmp_path / "said")
    assert not list(tmp_path.glob("said-*"))
    for name in ("a", "b"):
        one, other = (rows_of(tmp_path / run / "words" / name) for run in ("one", "two"))
        assert np.abs(one - other).max() < 1e-5
    # Repaired, the third is learned too.
    repaired = tuple(dataclasses.replace(own, pictures=str(pictures)) for own in concepts)
    together(dataclasses.replace(two, concepts=repaired), 2, tmp_path / "said", resume="latest")
    assert not list(tmp_path.glob("said-*"))
    list(train(in_folder(recipe.alone(repaired[1]), tmp_path / "alone")))
    assert np.abs(rows_of(tmp_path / "alone") - rows_of(tmp_path / "two" / "words" / "gone")).max() < 1e-5


def test_a_run_of_two_processes_goes_on_in_one(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    together(make_recipe(steps="4", lr_scheduler="constant", batch_size=1), 2, tmp_path / "said")
    longer = make_recipe(steps="6", lr_scheduler="constant", batch_size=2)
    assert [p.step for p in train(longer, resume="latest")] == [5, 6]


def test_without_a_seed_all_processes_take_the_same(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    together(make_recipe(seed=None, batch_size=2, steps="2"), 2, tmp_path / "said")
    seed = Recipe.read(tmp_path / "run" / "recipe.toml").training.seed
    list(train(make_recipe(seed=seed, batch_size=4, steps="2", folder=str(tmp_path / "one"))))
    assert np.abs(rows_of(tmp_path / "one") - rows_of(tmp_path / "run")).max() < 1e-5


def test_what_the_main_process_refuses_ends_all_of_them(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    together(make_recipe(), 2, tmp_path / "said")
    said = [(tmp_path / f"said-{n}").read_text() for n in range(2)]
    assert said[0] == said[1]
    assert said[0].startswith("The run's folder ")
