"""Where a base is: in a folder, inside the package, on the Hub, or there under another name."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pseudoword import families, toybox
from pseudoword.errors import RecipeError
from pseudoword.families import locate as locating
from pseudoword.families.locate import locate
from pseudoword.recipe import BaseModel

LOCATE = """
import logging, os, sys
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
from pseudoword.errors import RecipeError
from pseudoword.families.locate import locate
from pseudoword.families import locate as locating
from pseudoword.recipe import BaseModel
locating.ANSWER = float(os.environ.get("ANSWER", locating.ANSWER))
try:
    print("found", locate(BaseModel(sys.argv[1], revision=sys.argv[2] or None), {}))
except RecipeError as error:
    print("refused", error)
"""


def test_a_folder_in_diffusers_layout_is_itself(base: Path):
    wanted = BaseModel(str(base), clip_skip=1)
    assert locate(wanted, {}) == dataclasses.replace(wanted, family="sd")


def test_a_folder_of_something_else_is_refused_with_what_to_do(tmp_path: Path):
    with pytest.raises(
        RecipeError, match=r"^The folder '.*' is not a model in diffusers layout: it has no model_index"
    ):
        locate(BaseModel(str(tmp_path)), {})
    with pytest.raises(RecipeError, match=r"name that \.safetensors or \.ckpt file itself\.$"):
        locate(BaseModel(str(tmp_path)), {})


def test_a_name_inside_the_package_means_its_folder_unless_there_is_one_here(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert locate(BaseModel("toybox", revision="x"), {"toybox": base}) == BaseModel(str(base), "sd", "x")
    (tmp_path / "toybox").mkdir()
    with pytest.raises(RecipeError, match=r"^The folder 'toybox' is not a model"):
        locate(BaseModel("toybox"), {"toybox": base})


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/folder", "a/b/c", "my model", "owner/", ".hidden"])
def test_what_is_neither_folder_nor_hub_id_is_refused(model: str):
    with pytest.raises(RecipeError, match=r"^There is no folder '.*', and a Hub id looks like 'owner/name'\.$"):
        locate(BaseModel(model), {})


def test_an_unknown_family_is_refused_naming_those_there_are():
    with pytest.raises(RecipeError, match=r"^There is no family 'sdxxl'; the families are sd, sdxl\.$"):
        families.part("sdxxl", "torch")


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_a_base_says_which_family_it_is_of(family: str, tmp_path: Path):
    folder = families.part(family, "miniature").write(tmp_path / "base")
    assert locate(BaseModel(str(folder)), {}).family == family
    assert locate(BaseModel(str(folder), family), {}).family == family
    other = next(name for name in families.FAMILIES if name != family)
    kind = families.part(family, "facts").KIND
    with pytest.raises(RecipeError, match=rf"is {kind}, of the family '{family}', but family is '{other}'; leave"):
        locate(BaseModel(str(folder), other), {})


def test_a_base_of_no_family_is_refused_by_its_class(base: Path, tmp_path: Path):
    index = json.loads((base / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(
        json.dumps({**index, "_class_name": "StableDiffusion3Pipeline", "text_encoder_2": ["a", "b"], "unet": None})
    )
    with pytest.raises(RecipeError, match=r"is a StableDiffusion3Pipeline, for which no word can be learned here; "):
        locate(BaseModel(str(tmp_path)), {})


# A Hub that says what we want it to say

INDEX = b'{"text_encoder": ["transformers", "CLIPTextModel"], "unet": ["diffusers", "UNet2DConditionModel"]}'
OLD, NEW = "runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers every request with the server's one answer: a status and the Hub's own error code."""

    server: Any

    def do_HEAD(self) -> None:
        self.server.asked.append(self.path)
        status, code = self.server.answer
        headers = {"ETag": '"0"', "X-Repo-Commit": "0" * 40} if status == 200 else {"X-Error-Code": code}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(INDEX)) if status == 200 else "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.server.answer[0] == 200:
            self.wfile.write(INDEX)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.answer = [], (404, "RepoNotFound")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def located(base: BaseModel, port: int, home: Path, **settings: str) -> str:
    """Return what a fresh process says, for which the Hub listens on `port`."""
    others = ("HF_", "HTTP", "ALL_PROXY", "NO_PROXY")
    env = {name: value for name, value in os.environ.items() if not name.upper().startswith(others)}
    env |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **settings}
    words = [sys.executable, "-c", LOCATE, base.model, base.revision or ""]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_model_that_is_gone_from_the_hub_is_found_under_its_new_name(hub: Any, tmp_path: Path):
    warning, found = located(BaseModel(OLD), hub.server_port, tmp_path).splitlines()
    assert warning == f"WARNING {OLD!r} is no longer on the Hub; using {NEW!r} instead."
    assert found == f"found {BaseModel(NEW, 'sd')}"
    assert [path for path in hub.asked if "/resolve/" in path] == [f"/{OLD}/resolve/main/model_index.json"]


@pytest.mark.parametrize("model", [OLD, "owner/name", "gpt2"])
def test_a_model_that_is_on_the_hub_keeps_its_name(hub: Any, tmp_path: Path, model: str):
    hub.answer = (200, "")
    base = BaseModel(model, "sd", "main")
    assert located(base, hub.server_port, tmp_path) == f"found {base}"


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        (
            "RepoNotFound",
            "There is no model 'owner/name' on the Hub, nor a folder of that name here; "
            "check the spelling, or if it is private or gated, log in first (hf auth login).",
        ),
        ("RevisionNotFound", "The model 'owner/name' has no revision 'v9' on the Hub."),
        (
            "EntryNotFound",
            "The model 'owner/name' on the Hub is not in diffusers layout: no model_index.json.",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_refused_with_the_reason(hub: Any, tmp_path: Path, code: str, refusal: str):
    hub.answer = (404, code)
    assert located(BaseModel("owner/name", revision="v9"), hub.server_port, tmp_path) == f"refused {refusal}"


def test_a_hub_that_cannot_be_asked_is_said_unless_the_model_was_loaded_before(hub: Any, tmp_path: Path):
    offline = {"HF_HUB_OFFLINE": "1"}
    said = located(BaseModel(OLD), hub.server_port, tmp_path, **offline)
    assert said.startswith(f"refused There is no folder {OLD!r} here, and it is ")
    assert said.endswith("; check the connection, or give a local folder.")
    cache = tmp_path / "hub" / f"models--{OLD.replace('/', '--')}"
    (cache / "snapshots" / "1" / "unet").mkdir(parents=True)
    (cache / "snapshots" / "1" / "unet" / "config.json").write_text("{}")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("1")
    assert located(BaseModel(OLD), hub.server_port, tmp_path, **offline) == f"found {BaseModel(OLD, 'sd')}"
    for folder in ("text_encoder", "text_encoder_2"):
        (cache / "snapshots" / "1" / folder).mkdir()
        (cache / "snapshots" / "1" / folder / "config.json").write_text("{}")
    assert located(BaseModel(OLD), hub.server_port, tmp_path, **offline) == f"found {BaseModel(OLD, 'sdxl')}"
    assert hub.asked == []


# A name that is almost one, and a Hub that does not answer


@pytest.mark.parametrize(("model", "meant"), [("toybx", "toybox"), ("Toybox", "toybox"), ("my-sd-1", "my-sd-15")])
def test_a_name_that_is_almost_one_here_is_said_without_asking_the_hub(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, meant: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-sd-15").symlink_to(base, target_is_directory=True)
    monkeypatch.setattr(locating, "_ask_hub", lambda *_: pytest.fail("the Hub was asked"))
    message = f"^There is no model and no folder '{model}' here; did you mean '{meant}'\\?$"
    with pytest.raises(RecipeError, match=message):
        locate(BaseModel(model), toybox.BASES)
    with pytest.raises(RecipeError, match=r"did you mean '.*my-sd-15'\?$"):
        locate(BaseModel(str(tmp_path / "my-sd-51")), toybox.BASES)


@pytest.mark.parametrize("model", ["gpt2", "owner/toybx"])
def test_a_name_that_is_like_none_here_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str):
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def ask(name: str, _: str | None) -> None:
        asked.append(name)
        raise ConnectionError

    monkeypatch.setattr(locating, "_ask_hub", ask)
    with pytest.raises(RecipeError, match="check the connection, or give a local folder"):
        locate(BaseModel(model), toybox.BASES)
    assert asked == [model]


@pytest.fixture
def silent() -> Iterator[int]:
    """Return the port of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield server.getsockname()[1]


def test_a_hub_that_never_answers_is_one_sentence_and_asked_once(silent: int, tmp_path: Path):
    said = located(BaseModel("owner/name"), silent, tmp_path, ANSWER="0.5")
    assert said.startswith("refused There is no folder 'owner/name' here, and it is neither")
    assert "Timeout" in said
    assert len(said.splitlines()) == 1, "no line of the client's about trying again"
