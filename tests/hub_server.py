"""A Hub on this machine: what `huggingface_hub` asks for to make a repository and push to it, and ways to fail."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.repocard import REGEX_YAML_BLOCK

TOKEN = "hf_PlantedTokenThatMustAppearNowhere"
USER = "someone"
FILES = {
    "README.md",
    "learned_embeds.safetensors",
    "learned_embeds.bin",
    "token_identifier.txt",
    "type_of_concept.txt",
    "exports/cat-toy.safetensors",
}
"""What a push of the miniature's word uploads, besides pictures."""
MODELS = "/api/models/(?P<repo>[^/]+/[^/]+)"


@dataclass
class Repository:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[dict[str, bytes]] = field(default_factory=list)
    """The files after each commit."""


@dataclass
class Fault:
    """What goes wrong with requests whose path matches, so many times."""

    path: str
    status: int = 0
    """What is answered; 0 for a connection that is cut."""
    headers: dict[str, str] = field(default_factory=dict)
    said: str = "it went wrong"
    seconds: float = 0.0
    """How long nothing is said before that; with status 200 the right answer follows."""
    late: bool = False
    """Whether what was asked for is done before that."""
    times: int = 10**6


class Hub:
    """Repositories, the files of git LFS, and all that was asked, in the order of asking."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.bodies: list[bytes] = []
        self.faults: list[Fault] = []
        self.tokens_may_write = True
        self.watch: Callable[[], None] = lambda: None
        """Called at every request."""
        self.url = ""

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.repositories[repo].branches[branch]

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.search(fault.path, f"{method} {path}"):
                fault.times -= 1
                return fault
        return None


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Bound", (Handler,), {"hub": hub})
    server = Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file in a folder by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def point_at(url: str, patch: pytest.MonkeyPatch) -> None:
    """Have the Hub's client, which read the environment when it was imported, ask at an address, with a token."""
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setenv("HF_TOKEN", TOKEN)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that hang up, nor of connections that a fault has cut."""


class Refused(Exception):
    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: of two, the second would wait for the first to be acknowledged

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        self.hub.watch()
        fault = self.hub.fault(self.command, path)
        if fault and fault.seconds:
            time.sleep(fault.seconds)
        body = b"" if fault and not fault.late else self._body()
        if fault and fault.late:
            self._act(path, body)
        if fault and fault.status == 0:
            self.close_connection = True
            self.connection.close()
            return
        body = body or self._body()
        if fault and fault.status != 200:
            self._send(fault.status, {"error": fault.said}, fault.headers)
            return
        try:
            self._send(200, self._act(path, body))
        except Refused as refused:
            self._send(refused.status, refused.body)

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.hub.bodies.append(body)
        return body

    def _send(self, status: int, answer: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    # What is asked

    def _act(self, path: str, body: bytes) -> dict[str, Any]:
        if self.command == "PUT" and (match := re.fullmatch("/lfs/([0-9a-f]{64})", path)):
            return self._keep_large(match[1], body)  # as on the Hub: the address is the permission
        self._authorise()
        for pattern, act in ROUTES.items():
            method, _, route = pattern.partition(" ")
            if self.command == method and (match := re.fullmatch(route, path)):
                return act(self, body, **{name: unquote(value) for name, value in match.groupdict().items()})
        raise Refused(404, {"error": f"nothing at {self.command} {path}"})

    def _authorise(self) -> None:
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        self.hub.tokens.add(token)
        if token != TOKEN:
            raise Refused(401, {"error": "Invalid username or password."})

    def _create(self, body: bytes) -> dict[str, Any]:
        wanted = json.loads(body)
        owner = wanted["organization"] or USER
        repo = f"{owner}/{wanted['name']}"
        if repo in self.hub.repositories:
            raise Refused(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"})
        if owner != USER or not self.hub.tokens_may_write:
            raise Refused(403, {"error": f"You don't have the rights to create a model under the namespace {owner!r}."})
        self.hub.repositories[repo] = Repository(wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return {"url": f"{self.hub.url}/{repo}", "name": repo}

    def _repository(self, repo: str) -> Repository:
        if repo not in self.hub.repositories:
            raise Refused(404, {"error": "Repository not found"})
        return self.hub.repositories[repo]

    def _writable(self, repo: str, branch: str) -> dict[str, bytes]:
        repository = self._repository(repo)
        if not self.hub.tokens_may_write:
            raise Refused(403, {"error": "you must use a write token to upload to a repository."})
        if branch not in repository.branches:
            raise Refused(404, {"error": f"Invalid rev id: {branch}"})
        return repository.branches[branch]

    def _info(self, body: bytes, repo: str, branch: str = "main") -> dict[str, Any]:
        return {"id": repo, "private": self._repository(repo).private, "sha": "0" * 40, "tags": [], "downloads": 0}

    def _branch(self, body: bytes, repo: str, branch: str) -> dict[str, Any]:
        branches = self._repository(repo).branches
        if branch in branches:
            raise Refused(409, {"error": "Reference already exists"})
        branches[branch] = dict(branches["main"])
        return {}

    def _validate(self, body: bytes) -> dict[str, Any]:
        found = REGEX_YAML_BLOCK.match(json.loads(body)["content"])
        if not found or not isinstance(yaml.safe_load(found[2]), dict):
            raise Refused(400, {"errors": [{"message": "the metadata is no table"}]})
        return {"errors": [], "warnings": []}

    def _preupload(self, body: bytes, repo: str, branch: str) -> dict[str, Any]:
        have = self._writable(repo, branch)
        told = []
        for file in json.loads(body)["files"]:
            large = not _is_text(base64.b64decode(file["sample"]))
            before = have.get(file["path"])
            oid = None if before is None else hashlib.sha256(before).hexdigest() if large else _git_hash(before)
            mode = "lfs" if large else "regular"
            told.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": told}

    def _batch(self, body: bytes, repo: str) -> dict[str, Any]:
        asked = json.loads(body)
        self._writable(repo, asked["ref"]["name"])
        objects = []
        for wanted in asked["objects"]:
            upload = {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}
            verify = {"href": f"{self.hub.url}/lfs/verify"}
            actions = {} if wanted["oid"] in self.hub.large else {"actions": {"upload": upload, "verify": verify}}
            objects.append({**wanted, **actions})
        return {"transfer": "basic", "objects": objects}

    def _keep_large(self, oid: str, body: bytes) -> dict[str, Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, {"error": "these are other bytes"})
        self.hub.large[oid] = body
        return {}

    def _verify(self, body: bytes) -> dict[str, Any]:
        wanted = json.loads(body)
        if len(self.hub.large.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(404, {"error": "not there, or of another size"})
        return {}

    def _commit(self, body: bytes, repo: str, branch: str) -> dict[str, Any]:
        files = self._writable(repo, branch)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert line["key"] == "header", f"a push only adds files, but this is {line}"
        self.hub.repositories[repo].commits.append(dict(files))
        return {"commitUrl": f"{self.hub.url}/{repo}/commit/1", "commitOid": "1" * 40}


ROUTES: dict[str, Callable[..., dict[str, Any]]] = {
    "POST /api/repos/create": Handler._create,
    f"GET {MODELS}": Handler._info,
    f"GET {MODELS}/revision/(?P<branch>[^/]+)": Handler._info,
    f"POST {MODELS}/branch/(?P<branch>[^/]+)": Handler._branch,
    "POST /api/validate-yaml": Handler._validate,
    f"POST {MODELS}/preupload/(?P<branch>[^/]+)": Handler._preupload,
    r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch": Handler._batch,
    "POST /lfs/verify": Handler._verify,
    f"POST {MODELS}/commit/(?P<branch>[^/]+)": Handler._commit,
}


def _is_text(sample: bytes) -> bool:
    try:
        sample.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in sample


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
