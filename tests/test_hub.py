"""Pushing through the real client to a Hub on this machine: what arrives, and what a Hub that fails leaves behind."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from pseudoword import Concept, cli, formats, hub_client
from pseudoword import hub as pushing
from pseudoword.errors import HubError, HubUnreachable
from tests.hub_server import FILES, TOKEN, USER, Fault, Hub, contents
from tests.miniatures import TOKEN as WORD


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run's folder with all that may lie in one."""
    folder = tmp_path / "my-cat"
    word = Concept(WORD, {"clip_l": np.ones((1, 768))}, steps=5)
    formats.write_folder(word, folder)
    (folder / "README.md").write_bytes(b"---\r\ntags: [x]\r\n---\r\n![](samples/strip.png)\r\n")
    others = (
        "samples/strip.png",
        "samples/step-000005.png",
        "checkpoint-5/state.safetensors",
        "earlier-1/learned_embeds.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "exports/notes.txt",
        "exports/cat-toy.safetensors",
        "model_index.json",
        "log.jsonl",
        ".lock",
        "logs/events.out",
        "learned_embeds-best.safetensors",
        "learned_embeds-steps-3.safetensors",
    )
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x89" + name.encode())
    return folder


# What arrives


def test_exactly_the_words_files_its_card_and_the_picture_it_shows_arrive(hub: Hub, folder: Path) -> None:
    before = contents(folder)
    assert pushing.push(folder) == f"{hub.url}/{USER}/my-cat"
    arrived = hub.files(f"{USER}/my-cat")
    assert set(arrived) == FILES | {"samples/strip.png"}
    assert arrived == {name: before[name] for name in arrived}
    assert contents(folder) == before
    assert len(hub.repositories[f"{USER}/my-cat"].commits) == 1
    assert hub.large, "some of them go by git LFS"


def test_nothing_changed_is_no_commit(hub: Hub, folder: Path) -> None:
    for _ in range(2):
        pushing.push(folder, "other-name")
    assert len(hub.repositories[f"{USER}/other-name"].commits) == 1


def test_private_and_branch(hub: Hub, folder: Path) -> None:
    url = pushing.push(folder, f"{USER}/secret", private=True, branch="tries/1")
    assert url == f"{hub.url}/{USER}/secret/tree/tries%2F1"
    assert hub.repositories[f"{USER}/secret"].private
    assert set(hub.files(f"{USER}/secret", "tries/1")) == FILES | {"samples/strip.png"}
    assert hub.files(f"{USER}/secret") == {}
    pushing.push(folder, f"{USER}/open")
    assert not hub.repositories[f"{USER}/open"].private


def test_private_is_not_pushed_to_what_is_public_already(hub: Hub, folder: Path) -> None:
    pushing.push(folder)
    files = dict(hub.files(f"{USER}/my-cat"))
    (folder / "token_identifier.txt").write_text("changed")
    with pytest.raises(HubError, match="on the Hub already and public, but private was asked for"):
        pushing.push(folder, private=True)
    assert hub.files(f"{USER}/my-cat") == files


def test_a_folder_of_the_word_alone_gets_a_card_on_the_hub_and_stays_as_it_is(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "word"
    Concept("<t>", {"clip_l": np.ones((2, 768))}).save(folder)
    before = contents(folder)
    pushing.push(folder)
    arrived = dict(hub.files(f"{USER}/word"))
    assert "instance_prompt: a photo of <t>" in arrived.pop("README.md").decode()
    assert arrived == before == contents(folder)


def test_a_folder_without_a_word_is_refused_before_anything_is_asked(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "learned_embeds-steps-5.safetensors").write_bytes(b"x")
    with pytest.raises(HubError, match=r"There is no learned word to push in .*; name the folder of a finished run\."):
        pushing.push(tmp_path)
    with pytest.raises(HubError, match=r"There is no folder .*steps-5\.safetensors' to push; name the folder of a"):
        pushing.push(tmp_path / "learned_embeds-steps-5.safetensors")
    (tmp_path / "learned_embeds.safetensors").write_bytes(b"")
    with pytest.raises(HubError, match="is empty"):
        pushing.push(tmp_path)
    assert hub.asked == []


# A Hub that fails

REFUSED = [
    (Fault("create", 401), "the Hub does not know the token (401); log in again with `hf auth login`"),
    (Fault("preupload", 403, said="read only"), "the token may not write there (403: read only); use one that may"),
    (Fault("create", 404), "there is no such owner, or the token may not see it (404: it went wrong)"),
    (Fault("commit", 400, said="bad\nmetadata"), "the Hub refuses it (400: bad)"),
    (Fault("validate-yaml", 400), "the Hub's client failed (ValueError: Invalid metadata in README.md)"),
]
FAILING = [
    (Fault("create", 429), "the Hub has had too many requests (429)."),
    (
        Fault("preupload", 429, {"Retry-After": "9999"}),
        "the Hub has had too many requests (429) and asks to wait 9999 seconds",
    ),
    (
        Fault("batch", 429, {"RateLimit": '"api";r=0;t=9998'}),
        "the Hub has had too many requests (429) and asks to wait 9998 seconds",
    ),
    (Fault("commit", 500), "the Hub fails at the moment (500)."),
    (Fault("PUT", 503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), "the Hub fails at the moment (503)."),
    (Fault("commit", 412), "the Hub refuses it (412: it went wrong)"),
    (Fault("create"), "the Hub cannot be reached (RemoteProtocolError); check the connection"),
    (Fault("PUT"), "the Hub cannot be reached ("),
    (Fault("commit"), "the Hub cannot be reached (RemoteProtocolError); check the connection"),
]


@pytest.mark.parametrize(("fault", "reason"), [*REFUSED, *FAILING])
def test_a_push_that_fails_says_why_and_a_later_one_passes(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str], fault: Fault, reason: str
) -> None:
    hub.faults = [fault]
    before = contents(folder)
    with pytest.raises(HubError) as refused:
        pushing.push(folder)
    told = str(refused.value)
    assert told.startswith(f"Cannot push to my-cat: {reason}")
    assert told.endswith(f" Nothing is lost: `pseudoword push {folder}` pushes it later.")
    assert isinstance(refused.value, HubUnreachable) == ((fault, reason) in FAILING)
    assert contents(folder) == before
    assert not any(repository.commits for repository in hub.repositories.values())
    assert capsys.readouterr() == ("", "")
    hub.faults = []
    assert cli.main(["push", str(folder)]) == 0
    assert capsys.readouterr().out == f"The word is on the Hub: {hub.url}/{USER}/my-cat\n"
    assert set(hub.files(f"{USER}/my-cat")) == FILES | {"samples/strip.png"}


@pytest.mark.parametrize("where", ["create", "validate-yaml", "preupload", "batch", "PUT", "verify", "commit"])
@pytest.mark.parametrize("status", [0, 429, 500])
def test_what_passes_is_tried_again(hub: Hub, folder: Path, where: str, status: int) -> None:
    hub.faults = [Fault(where, status, times=2)]
    pushing.push(folder)
    assert len(hub.repositories[f"{USER}/my-cat"].commits) == 1


def test_tries_are_counted_and_wait_ever_longer_or_as_long_as_the_hub_says(
    hub: Hub, folder: Path, slept: list[float]
) -> None:
    hub.faults = [Fault("create", 500)]
    with pytest.raises(HubUnreachable):
        pushing.push(folder)
    assert (slept, hub.asked.count("POST /api/repos/create")) == ([1, 2], hub_client.TRIES)
    slept.clear()
    hub.faults = [Fault("preupload", 429, {"Retry-After": "33"}, times=2)]
    pushing.push(folder)
    assert slept == [33, 33]


def test_an_answer_that_was_lost_on_the_way_makes_no_second_commit(hub: Hub, folder: Path) -> None:
    hub.faults = [Fault("commit", times=1, late=True)]
    pushing.push(folder)
    assert len(hub.repositories[f"{USER}/my-cat"].commits) == 1


def test_a_slow_hub_is_given_up(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "ANSWER", 0.05)
    monkeypatch.setattr(hub_client, "TRIES", 2)
    hub.faults = [Fault("commit", 200, seconds=0.4)]
    with pytest.raises(HubUnreachable, match="the Hub does not answer in time"):
        pushing.push(folder)
    monkeypatch.setattr(pushing, "WHOLE", 0.0)
    hub.asked.clear()
    with pytest.raises(HubUnreachable, match="the Hub does not answer in time"):
        pushing.push(folder)
    assert hub.asked == []


def test_what_the_client_was_told_before_holds_during_a_push_and_after_it(hub: Hub, folder: Path) -> None:
    made = []

    def own() -> Any:
        made.append(_http.default_client_factory())
        return made[-1]

    huggingface_hub.set_client_factory(own)
    try:
        level = huggingface_hub.logging.get_verbosity()
        pushing.push(folder)
        assert len(made) == 1
        assert huggingface_hub.logging.get_verbosity() == level
        huggingface_hub.get_session()
        assert len(made) == 2
        assert made[1].event_hooks == _http.default_client_factory().event_hooks
    finally:
        huggingface_hub.set_client_factory(_http.default_client_factory)


# Without a Hub


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"HF_TOKEN": ""}, "there is no token; log in with `hf auth login`, or set HF_TOKEN."),
        ({"HF_TOKEN": "two words"}, "The token for the Hub holds characters that no token has; copy it again."),
        ({"HF_HUB_OFFLINE": True}, "HF_HUB_OFFLINE is set, which forbids it; unset it."),
        ({"ENDPOINT": "http://127.0.0.1:1"}, "the Hub cannot be reached (ConnectError); check the connection."),
    ],
)
def test_what_is_missing_here_is_said(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    for name, value in setting.items():
        if isinstance(value, str) and name == "HF_TOKEN":
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.setattr(constants, name, value)
    with pytest.raises(HubError) as refused:
        pushing.push(folder)
    assert reason in str(refused.value)
    assert hub.tokens <= {None, ""}


def test_a_name_that_no_repository_can_have(hub: Hub, folder: Path, tmp_path: Path) -> None:
    named = folder.rename(tmp_path / "my cat")
    with pytest.raises(HubError, match=r"Cannot push to my cat: that is no name for a repository .*with hub_model_id"):
        pushing.push(named)
    assert pushing.push(named, "my-cat")


def test_the_token_of_the_argument_comes_before_the_environments(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert pushing.push(folder, token=f" {TOKEN}\n")
    assert hub.tokens <= {TOKEN, None, ""}


@pytest.mark.parametrize("fault", [Fault("commit", 400, said=f"{TOKEN} is bad"), Fault("create", 403, said=TOKEN)])
def test_no_error_tells_the_token_nor_hangs_on_one_that_does(hub: Hub, folder: Path, fault: Fault) -> None:
    hub.faults = [fault]
    with pytest.raises(HubError) as refused:
        pushing.push(folder)
    assert "***" in str(refused.value)
    assert TOKEN not in "".join(traceback.format_exception(refused.value))
    error: BaseException | None = refused.value
    while error := error.__cause__ or error.__context__:
        assert TOKEN not in str(error)
