"""Asking the Hub through its own client: with limits, again where that helps, and a refusal in one sentence."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import (
    _http,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from huggingface_hub.utils import logging as client_logging

from pseudoword import __version__
from pseudoword.errors import HubError, HubUnreachable

ANSWER = 30.0
"""Seconds that each answer of the Hub may take."""
TRIES = 5
FIRST_WAIT = 1.0
"""Seconds before the second try; doubled before each further one, unless the Hub says how long to wait."""

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """A repository on the Hub, and who pushes to it."""

    repo_id: str
    token: str | None = field(default=None, repr=False)
    """By default the environment's, or that of the Hub login."""
    private: bool = False
    branch: str | None = None


def asked(target: Target, patience: float, ask: Callable[[HfApi], T]) -> T:
    """Return what the Hub answers within `patience` seconds, asking again where that may help.

    HubError says why there is no answer; neither it nor anything chained to it holds the token.
    """
    ends, token, tries = time.monotonic() + patience, "", 0
    with _within_limits(ends), _silent():
        while True:
            tries += 1
            try:
                token = _token(target)
                return ask(HfApi(token=token, library_name="pseudoword", library_version=__version__))
            except Exception as error:  # whatever the client raises becomes one sentence
                cause = _cause(error)
                refusal = _refusal(cause, target.repo_id, token)
                wait = cause.wait if isinstance(cause, _Busy) else None
            wait = FIRST_WAIT * 2 ** (tries - 1) if wait is None else wait
            if not isinstance(refusal, HubUnreachable) or tries == TRIES or time.monotonic() + wait > ends:
                raise refusal
            time.sleep(wait)


def _token(target: Target) -> str:
    token = (target.token or huggingface_hub.get_token() or "").strip()
    if not token:
        raise LocalTokenNotFoundError
    if not re.fullmatch(r"[\w.~+/=-]+", token, re.ASCII):  # RFC 6750; other tokens the client would show in its error
        raise HubError("The token for the Hub holds characters that no token has; copy it again.")
    return token


class _Busy(Exception):
    """An answer that asks to come back later, and when, if it says."""

    def __init__(self, status: int, wait: int | None) -> None:
        super().__init__(status, wait)
        self.status, self.wait = status, wait


class _TooLong(Exception):
    """A push that has had its time."""


@contextmanager
def _within_limits(ends: float) -> Iterator[None]:
    """Have the Hub's client stop at a time: by itself it waits for ever, for answers and for as long as it is told."""

    def before(request: Any) -> None:
        left = ends - time.monotonic()
        if left <= 0:
            raise _TooLong
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), min(ANSWER, left))

    def after(response: Any) -> None:
        if response.status_code in (408, 429) or response.status_code >= 500:
            raise _Busy(response.status_code, _seconds_to_wait(response.headers))

    def limited() -> Any:
        client = usual()
        hooks = client.event_hooks
        client.event_hooks = {"request": [*hooks["request"], before], "response": [*hooks["response"], after]}
        return client

    usual = _http._GLOBAL_CLIENT_FACTORY  # what the program around us may have set; there is no public way to ask
    huggingface_hub.set_client_factory(limited)
    try:
        yield
    finally:
        huggingface_hub.set_client_factory(usual)


def _seconds_to_wait(headers: Mapping[str, str]) -> int | None:
    """Return what `Retry-After` says in seconds, or the Hub's own `RateLimit` header (`"api";r=0;t=55`)."""
    told = re.fullmatch(r"\s*(\d+)\s*", headers.get("retry-after", ""))
    told = told or re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    return int(told[1]) if told else None


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the client's warnings on its own tries, and its bars, out of a run's output."""
    level, bars = client_logging.get_verbosity(), not are_progress_bars_disabled()
    client_logging.set_verbosity_error()
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        client_logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


# What the Hub refuses, in a sentence


def _cause(error: Exception) -> Exception:
    """Return what went wrong where the client wraps it: `Error while uploading …`."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _refusal(error: Exception, repo_id: str, token: str) -> HubError:
    """Return the error to raise, without the token in it, whatever the Hub or its client said."""
    if isinstance(error, HubError):
        return error
    passing, reason = _reason(error)
    sentence = f"Cannot push to {repo_id}: {reason}."
    return (HubUnreachable if passing else HubError)(sentence.replace(token, "***") if token else sentence)


def _reason(error: Exception) -> tuple[bool, str]:
    """Return whether an error may pass, and its reason."""
    name = type(error).__name__
    if isinstance(error, _Busy):
        asks = "" if error.wait is None else f" and asks to wait {error.wait} seconds"
        if error.status == 429:
            return True, f"the Hub has had too many requests (429){asks}"
        return True, f"the Hub fails at the moment ({error.status}){asks}"
    if isinstance(error, _TooLong) or (isinstance(error, HTTPError) and "Timeout" in name):
        return True, "the Hub does not answer in time"
    if isinstance(error, OfflineModeIsEnabled):
        return False, "HF_HUB_OFFLINE is set, which forbids it; unset it"
    if isinstance(error, LocalTokenNotFoundError):
        return False, "there is no token; log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, HFValidationError):
        return False, f"that is no name for a repository ({_first_line(str(error))}); choose one with hub_model_id"
    if isinstance(error, HfHubHTTPError):
        return _answered(error)
    if isinstance(error, HTTPError):
        return True, f"the Hub cannot be reached ({name}); check the connection"
    return False, f"the Hub's client failed ({name}: {_first_line(str(error))})"


def _answered(error: HfHubHTTPError) -> tuple[bool, str]:
    status = error.response.status_code
    said = f"{status}: {_first_line(error.server_message)}" if error.server_message else str(status)
    if status == 401:
        return False, "the Hub does not know the token (401); log in again with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return False, f"the token may not write there ({said}); use one that may, or a repository of your own"
    if status == 404:
        return False, f"there is no such owner, or the token may not see it ({said}); check the name"
    return status in (409, 412), f"the Hub refuses it ({said})"  # those two: another commit came between


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0].rstrip(".")
