"""Experiment trackers, by Accelerate's names and through its classes: losses, learning rate and pictures of a run."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pseudoword.errors import RecipeError, first_line
from pseudoword.progress import Progress, mean
from pseudoword.recipe import Recipe, Tracker
from pseudoword.settings import flat

log = logging.getLogger(__name__)

PROJECT = "textual_inversion"
"""What trackers call the project, as in the guide's script."""
PICTURES = "validation"
PACKAGES: Mapping[str, str] = {"comet_ml": "comet-ml"}
"""Names of packages on the registry where they are not the tracker's."""


class Trackers:
    """The trackers that a recipe asks for; one that fails on the way is left out with a warning."""

    def __init__(self, recipe: Recipe, logging_dir: Path, step: int) -> None:
        self.recipe, self.logging_dir, self.step = recipe, logging_dir, step
        self.open: list[Any] = []

    def start(self) -> None:
        """Open them; RecipeError if the one that was asked for does not start."""
        asked: Tracker = self.recipe.output.report_to
        _stay_alone()
        for name in _names(asked):
            try:
                tracker = self._made(name)
                tracker.start()
                self.open.append(tracker)
                tracker.store_init_configuration(flat(self.recipe.to_dict()))
            except Exception as error:  # each fails in its own way: no login, no network, no disk
                self._leave_out(name)
                if asked != "all":
                    raise RecipeError(
                        f"The tracker {name!r} does not start ({first_line(error)}). Set it up, or choose another with "
                        "report_to, such as 'none'."
                    ) from error
                log.warning("The tracker %r does not start (%s); going on without it.", name, first_line(error))

    def _leave_out(self, name: str) -> None:
        """Close one that failed halfway."""
        for tracker in [tracker for tracker in self.open if tracker.name == name]:
            self.open.remove(tracker)
            with contextlib.suppress(Exception):
                tracker.finish()

    def close(self) -> None:
        """Let them write what they still hold."""
        self._each(lambda tracker: tracker.finish())

    def report(self, progress: Progress) -> None:
        """Log a step's numbers, and its pictures if it has any."""
        values = {"lr": progress.lr} if progress.loss else {}
        for name, by_token in (("loss", progress.loss), ("fixed_draw_loss", progress.fixed_draw_loss)):
            if by_token:
                values[name] = mean(by_token)
            if len(by_token) > 1:
                values |= {f"{name}/{token}": loss for token, loss in by_token.items()}
        if values:
            self._each(lambda tracker: tracker.log(values, step=progress.step))

    def show(self, step: int, lines: Sequence[tuple[str, Sequence[Image.Image]]]) -> None:
        """Log the pictures of each prompt."""
        for i, (prompt, pictures) in enumerate(lines):
            key = PICTURES if len(lines) == 1 else f"{PICTURES}-{i + 1}"
            captions = [f"{j}: {prompt}" for j in range(len(pictures))]

            def send(tracker: Any, key: str = key, own: Any = pictures, captions: list[str] = captions) -> None:
                PICTURE_LOGS.get(tracker.name, _any_pictures)(tracker, key, own, captions, step)

            self._each(send)

    def _made(self, name: str) -> Any:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind, options = LOGGER_TYPE_TO_CLASS[name], {}
        if kind.requires_logging_directory:
            options["logging_dir"] = str(self.logging_dir)
        if name == "tensorboard" and self.step:
            options["purge_step"] = self.step + 1  # what an interrupted run wrote beyond its checkpoint
        return kind(PROJECT, **options)

    def _each(self, act: Callable[[Any], None]) -> None:
        for tracker in list(self.open):
            try:
                act(tracker)
            except Exception as error:
                self.open.remove(tracker)
                log.warning("The tracker %r failed (%s); going on without it.", tracker.name, first_line(error))


LAUNCHERS = "WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"


def _stay_alone() -> None:
    """Let Accelerate's state, which trackers ask, not connect processes that an engine has connected without it."""
    with contextlib.suppress(ModuleNotFoundError):
        from accelerate import PartialState

        if "WORLD_SIZE" in os.environ and not PartialState._shared_state:  # one of the torch engine's is shared
            hidden = {name: os.environ.pop(name) for name in LAUNCHERS if name in os.environ}
            try:
                PartialState()
            finally:
                os.environ.update(hidden)


def check(asked: Tracker) -> None:
    """Raise RecipeError if a tracker is not installed; before anything is loaded."""
    _names(asked)
    if asked != "none" and _installed() is None:
        log.warning("Nothing is tracked: trackers need pip install 'pseudoword[torch]'; report_to 'none' says so too.")


def _installed() -> list[str] | None:
    """Return the trackers that are installed; None without Accelerate, whose they are."""
    try:
        from accelerate.tracking import get_available_trackers
    except ModuleNotFoundError:
        return None
    return [str(getattr(name, "value", name)) for name in get_available_trackers()]


def _names(asked: Tracker) -> list[str]:
    """Return the trackers to open; RecipeError names what to install for one that is not there."""
    if asked == "none":
        return []
    available = _installed()
    if available is None:
        if asked in ("tensorboard", "all"):  # the default, or whatever there is
            return []
        raise RecipeError(f"The tracker {asked!r} needs pip install 'pseudoword[torch]'; or set report_to to 'none'.")
    if asked == "all":
        return available
    if asked not in available:
        raise RecipeError(
            f"The tracker {asked!r} is not installed: pip install {PACKAGES.get(asked, asked)}, "
            "or choose another with report_to, such as 'none'."
        )
    return [asked]


# How trackers take pictures; Accelerate gives only some of them a way


def _tensorboard(tracker: Any, key: str, pictures: Sequence[Image.Image], captions: list[str], step: int) -> None:
    del captions
    stack = np.stack([np.asarray(picture) for picture in pictures])
    tracker.log_images({key: stack}, step=step, dataformats="NHWC")


def _wandb(tracker: Any, key: str, pictures: Sequence[Image.Image], captions: list[str], step: int) -> None:
    import wandb  # pyright: ignore[reportMissingImports]

    images = [wandb.Image(picture, caption=caption) for picture, caption in zip(pictures, captions, strict=True)]
    tracker.log({key: images}, step=step)


def _trackio(tracker: Any, key: str, pictures: Sequence[Image.Image], captions: list[str], step: int) -> None:
    import trackio  # pyright: ignore[reportMissingImports]

    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        tracker.log({f"{key}/{i}": trackio.Image(picture, caption=caption)}, step=step)


def _comet(tracker: Any, key: str, pictures: Sequence[Image.Image], captions: list[str], step: int) -> None:
    for picture, caption in zip(pictures, captions, strict=True):
        tracker.tracker.log_image(picture, name=f"{key} {caption}", step=step)


def _any_pictures(tracker: Any, key: str, pictures: Sequence[Image.Image], captions: list[str], step: int) -> None:
    del captions
    if hasattr(tracker, "log_images"):
        tracker.log_images({key: [np.asarray(picture) for picture in pictures]}, step=step)


PICTURE_LOGS: dict[str, Callable[[Any, str, Sequence[Image.Image], list[str], int], None]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "comet_ml": _comet,
}
