"""The JAX engine on several devices and processes, and where there is no torch."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from pseudoword import train
from pseudoword.contracts import NonFiniteLoss
from pseudoword.engines.jax_places import _packed
from pseudoword.errors import RunError
from pseudoword.recipe import Recipe
from tests.miniatures import TOKEN, MakeRecipe, rows_of

ROOT = Path(__file__).parents[2]
TRAIN = """
import sys
from pseudoword import train
from pseudoword.recipe import Recipe
for recipe in sys.argv[1:]:
    for progress in train(Recipe.read(recipe)):
        print(progress.step, progress.loss, flush=True)
"""
DIVIDED = """
from pseudoword.engines.jax_places import Place
divide = Place.divide
def told(self, arrays, devices):
    given = divide(self, arrays, devices)
    print("pictures on each device:", [len(part.data) for part in given["noise"].addressable_shards])
    return given
Place.divide = told
"""
COMMAND = """
import sys
from pseudoword.cli import main
sys.exit(main(["train", "--recipe", sys.argv[1]]))
"""
WITHOUT_TORCH = """
import sys
finders = list(sys.meta_path)
class NoTorch:  # as if they were not installed: transformers asks whether torch can be found
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "diffusers", "accelerate"):
            return None
        return next((spec for finder in finders if (spec := finder.find_spec(name, path, target))), None)
    def find_distributions(self, context):
        return (own for f in finders if hasattr(f, "find_distributions") for own in f.find_distributions(context))
sys.meta_path[:] = [NoTorch()]
from pseudoword.cli import main
recipe, folder, model = sys.argv[1:]
assert main(["train", "--recipe", recipe]) == 0
sample = ["--num-inference-steps", "2", "--prompt", "a <cat-toy>", "--output", folder + "/picture.png"]
assert main(["generate", "--engine", "jax", "--model", model, "--embeds", folder, *sample]) == 0
from pseudoword import train
from pseudoword.recipe import Recipe
import dataclasses, numpy
from transformers import CLIPTokenizer
class Changing:  # a dataset whose items differ each time
    tokenizer = CLIPTokenizer.from_pretrained(model + "/tokenizer")
    tokenizer.add_tokens("<cat-toy>")
    placeholder_token = "<cat-toy>"
    ids = tokenizer("a photo of <cat-toy>", padding="max_length", max_length=tokenizer.model_max_length).input_ids
    def __len__(self): return 3
    def __getitem__(self, i):
        pixels = numpy.random.standard_normal((3, 16, 16)).astype("float32").clip(-1, 1)
        return {"pixel_values": pixels, "input_ids": self.ids}
own = Recipe.read(recipe)
own = dataclasses.replace(own, output=dataclasses.replace(own.output, folder=folder + "-own"))
print([progress.step for progress in train(own, dataset=Changing())])
workers = dataclasses.replace(own.data, workers=1)
moved = dataclasses.replace(own.output, folder=folder + "-workers")
try:
    list(train(dataclasses.replace(own, data=workers, output=moved), dataset=Changing()))
except Exception as error:
    print(error)
print(sorted(name for name in ("torch", "diffusers", "accelerate") if name in sys.modules))
"""


def written(recipe: Recipe, path: Path) -> Path:
    path.write_text(tomli_w.dumps(recipe.to_dict()))
    return path


def python(code: str, *words: Any, **env: str) -> subprocess.Popen[str]:
    """Start code in an interpreter of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, words)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, **env}, text=True, cwd=ROOT, **pipes)


def told(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for it, and return what it said."""
    said, wrong = process.communicate(timeout=300)
    assert process.returncode == 0, wrong
    return said, wrong


def test_four_devices_equal_one(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Of five pictures: each has two, three of which are copies that count for nothing."""
    common: dict[str, Any] = {"engine": "jax", "steps": "3", "learning_rate": 5e-4, "batch_size": 5}
    for count, pictures in (("1", "[5]"), ("4", "[2, 2, 2, 2]")):
        recipe = written(make_recipe(**common, folder=str(tmp_path / count)), tmp_path / f"{count}.toml")
        flags = {"JAX_NUM_CPU_DEVICES": "-1", "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        said, _ = told(python(DIVIDED + TRAIN, recipe, **flags))
        each = [line.partition(": ")[2] for line in said.splitlines() if line.startswith("pictures")]
        assert each[-1] == pictures
    assert np.abs(rows_of(tmp_path / "1") - rows_of(tmp_path / "4")).max() < 1e-5


def test_a_cpu_is_as_many_devices_as_it_has_cores_unless_told_otherwise() -> None:
    code = """
    import os
    from pseudoword.engines.jax_places import Place
    place = Place()
    print(place.count, len(os.sched_getaffinity(0)))
    place.spread(2**60, spare=False)
    print(place.count)
    """
    own = {"JAX_NUM_CPU_DEVICES": "-1"}
    found = told(python(code, **own))[0].split()
    assert found == [found[1], found[1], "1"], "and fewer, where copies of a base have no room"
    three = told(python(code, **own, XLA_FLAGS="--xla_force_host_platform_device_count=3"))[0].split()
    assert three[0] == "3"


def test_on_a_cpu_a_step_has_less_in_memory_at_once() -> None:
    code = """
    import jax, jax.numpy as jnp
    from pseudoword.engines.jax_places import Place
    print(Place().compiler_options(deterministic=True))
    jit = jax.jit
    def older(function, **told):
        options = told.get("compiler_options") or {}
        return jit(function, compiler_options={f"{name}_unknown": value for name, value in options.items()})
    jax.jit = older
    print(Place().compiler_options(deterministic=True))
    """
    known, unknown = told(python(code))[0].splitlines()
    assert known == "{'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}"
    assert unknown == "{}"


@contextmanager
def processes(code: str, *words: Any, taken: bool = False, **env: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Start two that find each other as a launcher's do; their port may be `taken`, as by torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        if taken:
            free.listen()
        else:
            free.close()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        both = [python(code, *words, **place, **env, RANK=str(n)) for n in range(2)]
        try:
            yield both
        finally:
            for process in both:
                process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("taken", [False, True])
def test_two_processes_equal_one(make_recipe: MakeRecipe, tmp_path: Path, taken: bool) -> None:
    common: dict[str, Any] = {"engine": "jax", "steps": "4", "learning_rate": 5e-4, "loss_steps": 2}
    list(train(make_recipe(**common, batch_size=4, folder=str(tmp_path / "one"))))
    tracked = make_recipe(**common, batch_size=2, report_to="tensorboard", folder=str(tmp_path / "two"))
    two = written(tracked, tmp_path / "two.toml")
    launcher = {"TORCHELASTIC_USE_AGENT_STORE": str(taken)}
    with processes(TRAIN, two, taken=taken, **launcher) as both:
        said = [told(process)[0] for process in both]
    first, second = ([line for line in own.splitlines() if line[:1].isdigit()] for own in said)  # not gloo's
    assert first == second
    assert len(first) == 4
    assert np.abs(rows_of(tmp_path / "one") - rows_of(tmp_path / "two")).max() < 1e-5
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == 5, "one process writes the log"
    assert list((tmp_path / "two" / "logs").rglob("events.*")), "the tracker connects no processes of its own"


@pytest.mark.slow
def test_two_processes_that_are_asked_to_stop_keep_a_checkpoint(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(engine="jax", steps="100000", batch_size=2)
    with processes(COMMAND, written(recipe, tmp_path / "two.toml")) as both:
        log = tmp_path / "run" / "log.jsonl"
        deadline = time.monotonic() + 120
        while not (log.is_file() and len(log.read_text().splitlines()) > 3):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        both[1].send_signal(signal.SIGTERM)
        for process in both:
            process.communicate(timeout=60)
    assert list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.slow
def test_what_stops_one_process_stops_both(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    broken = """
    import os
    from pseudoword.engines.jax_engine import JaxEngine
    given = JaxEngine._given
    def full(self, batch, draw, counts):
        if os.environ["RANK"] == "1" and self.step_number == 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return given(self, batch, draw, counts)
    JaxEngine._given = full
    """
    recipe = make_recipe(engine="jax", steps="6", batch_size=2)
    with processes(textwrap.dedent(broken) + COMMAND, written(recipe, tmp_path / "two.toml")) as both:
        said = [process.communicate(timeout=100)[1] for process in both]
    assert "error: Process 1 had to stop, and so do all: The device has not enough memory for one pic" in said[0]
    assert [process.returncode for process in both] == [1, 1]


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_of(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(engine="jax", steps="100000", batch_size=2, checkpointing_steps=2)
    with processes(COMMAND, written(recipe, tmp_path / "two.toml")) as both:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoint-2").is_dir():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        both[1].kill()
        said = both[0].communicate(timeout=60)[1]
    assert "error: Another process has ended or cannot be reached (" in said
    assert "Traceback" not in said.partition("error: ")[0]


def test_errors_and_results_of_the_main_process_can_be_sent() -> None:
    def failing() -> None:
        raise NonFiniteLoss({"<cat>": "the loss of step 3 is not finite"})

    for action in (failing, lambda: threading.Lock()):
        result, error = pickle.loads(_packed(action))
        assert result is None
        assert isinstance(error, RunError)
    assert pickle.loads(_packed(lambda: 3)) == (3, None)


JOINED = """
from pseudoword.engines.jax_places import Place
try:
    Place()
except Exception as error:
    print(error)
"""
PLACE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"MASTER_ADDR": ""},
            "A launcher started 2 processes, but RANK, MASTER_ADDR and MASTER_PORT do not say which ",
        ),
        ({"RANK": "5"}, "A launcher started 2 processes, but RANK, MASTER_ADDR and MASTER_PORT do not say "),
        ({"RANK": ""}, "RANK is set by what launches processes, to a number; here it is ''."),
        ({"RANK": "one"}, "RANK is set by what launches processes, to a number; here it is 'one'."),
    ],
)
def test_a_launcher_that_names_no_place_is_refused(changes: dict[str, str], sentence: str) -> None:
    assert told(python(JOINED, **{**PLACE, **changes}))[0].startswith(sentence)


def test_where_jax_finds_no_device_it_is_said() -> None:
    said = told(python(JOINED, JAX_PLATFORMS="cuda"))[0]
    assert said.startswith("JAX finds no device to compute on (")


def test_a_process_that_cannot_join_says_so() -> None:
    code = "import jax; jax.devices()" + JOINED  # JAX is in use, alone
    assert told(python(code, **PLACE))[0].startswith("Process 0 cannot join the 2 at 127.0.0.1:1 (")


def test_without_torch_it_trains_looks_and_generates(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    looking: dict[str, Any] = {"validation_prompts": [f"a {TOKEN}"], "validation_sampling_steps": 2}
    recipe = make_recipe(
        engine="jax", steps="1", loss_steps=1, num_validation_images=1, report_to="tensorboard", **looking
    )
    path = written(recipe, tmp_path / "recipe.toml")
    said, wrong = told(python(WITHOUT_TORCH, path, tmp_path / "run", recipe.base.model))
    assert said.splitlines()[-3:] == [
        "[1]",
        "workers load ahead with PyTorch, which is not installed; leave workers at 0.",
        "[]",
    ]
    assert "Nothing is tracked: trackers need pip install 'pseudoword[torch]'" in wrong
    assert (tmp_path / "run" / "picture.png").is_file()
    assert (tmp_path / "run" / "samples" / "step-000001.png").is_file()


@pytest.mark.slow
def test_an_environment_without_torch_learns_a_word_of_the_toybox(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(scripts / "python"), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "-e", f"{ROOT}[jax]"], check=True, timeout=900)
    known = subprocess.run([*pip[:3], "list"], check=True, capture_output=True, text=True).stdout.split()
    assert "jax" in known
    assert not {"torch", "diffusers", "accelerate"} & set(known)
    recipe = make_recipe(model="toybox", engine="jax", steps="3", initializer="circle", report_to="tensorboard")
    path = written(recipe, tmp_path / "recipe.toml")
    command = str(scripts / "pseudoword")
    subprocess.run([command, "train", "--recipe", str(path)], check=True, timeout=900)
    own = ["--engine", "jax", "--model", "toybox", "--embeds", str(tmp_path / "run"), "--prompt", f"a {TOKEN}"]
    output = tmp_path / "picture.png"
    subprocess.run([command, "generate", *own, "--output", str(output)], check=True, timeout=900)
    assert output.is_file()
