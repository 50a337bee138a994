"""Pushing a learned word to the Hub: its files, its card and the pictures that the card shows, nothing else."""

from __future__ import annotations

import io
import logging
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, HfApi, RepoUrl

from pseudoword import __version__, card, formats, layout
from pseudoword.concept import Concept
from pseudoword.errors import FormatError, HubError, HubUnreachable
from pseudoword.hub_client import Target, asked
from pseudoword.recipe import Output, Recipe

log = logging.getLogger(__name__)

WHOLE = 300.0
"""Seconds after which a push is given up, with all that it tried."""
SHORT = 60.0
"""The same for what a later push makes up for: the check before training, and pushes on the way."""


def push(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    token: str | None = None,
    private: bool = False,
    branch: str | None = None,
) -> str:
    """Upload the word in a folder in one commit and return its URL; the folder is only read.

    Without `repo_id` the folder's name is the repository's, and without an owner it is the token's user's. The
    repository and the branch are made if they are missing. HubError says what is in the way, and what to try.
    """
    folder = Path(folder).expanduser()
    files = files_of(folder)
    target = Target(repo_id or folder.resolve().name, token, private, branch)
    try:
        return asked(target, WHOLE, lambda api: _upload(api, target, files))
    except HubError as error:
        later = f"Nothing is lost: `pseudoword push {shlex.quote(str(folder))}` pushes it later."
        raise type(error)(f"{error} {later}") from None


def files_of(folder: Path) -> dict[str, bytes]:
    """Return what a push of a folder uploads, by its path in the repository; HubError if there is no word."""
    if not folder.is_dir():
        raise HubError(f"There is no folder {str(folder)!r} to push; name the folder of a finished run.")
    try:
        if not formats.files_in(folder):
            raise FormatError(
                f"The folder {str(folder)!r} holds no {' or '.join(formats.IN_FOLDER)}; name the file itself."
            )
        concept = Concept.load(folder)
    except FormatError as error:
        raise HubError(
            f"There is no learned word to push in {str(folder)!r} ({str(error).rstrip('.')}); "
            "name the folder of a finished run."
        ) from error
    names = formats.files_in(folder) + [name for name in formats.TOLD_IN_FOLDER if (folder / name).is_file()]
    names += [f"exports/{path.name}" for path in formats.exports_in(folder)]
    written = folder / card.NAME
    text = written.read_bytes() if written.is_file() else card.card(concept, folder, recipe_in(folder)).encode()
    names += [name for name in card.pictures_shown(text.decode(errors="replace")) if (folder / name).is_file()]
    return {card.NAME: text, **{name: (folder / name).read_bytes() for name in names}}


def recipe_in(folder: Path) -> Recipe | None:
    """Return the recipe of the run in a folder, if it is one."""
    file = folder / "recipe.toml"
    return Recipe.read(file) if file.is_file() else None


class Pushes:
    """The pushes of a run, if its recipe wants any: looked into before it, in the background during it, at its end."""

    def __init__(self, output: Output, token: str | None) -> None:
        self.output = output
        self._token = token
        self._upload: threading.Thread | None = None
        self._warned = ""

    def check(self) -> None:
        """Make the repository and see that the token may write to it; HubError if not, a warning if nobody can say."""
        if not self.output.push_to_hub:
            return
        target = self._target()
        try:
            asked(target, SHORT, lambda api: _look(api, target))
        except HubUnreachable as error:
            log.warning("%s Training goes on; the push is tried at the end.", error)

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the word as of this step is pushed; the last step's is, once everything is written."""
        every = self.output.push_steps
        return self.output.push_to_hub and every is not None and step % every == 0 and step < steps

    def begin(self, write: Callable[[Path], None]) -> None:
        """Upload in the background what `write` puts into a folder; passed over while the upload before goes on."""
        if self._upload and self._upload.is_alive():
            return
        try:
            with tempfile.TemporaryDirectory() as scratch:
                self._copy_picture(Path(scratch))
                write(Path(scratch))
                files = files_of(Path(scratch))
        except OSError as error:
            self._warn(f"Cannot write the word to push it on the way: {error.strerror}.")
            return
        self._upload = threading.Thread(target=self._along, args=(files,), daemon=True)  # an ending run leaves it
        self._upload.start()

    def wait(self) -> None:
        """Let the push under way come to its end; it gives up by itself."""
        if self._upload:
            self._upload.join()

    def finish(self) -> None:
        """Upload the finished word. HubError says why not and how to do it later."""
        if not self.output.push_to_hub:
            return
        self.wait()
        target = self._target()
        url = push(self.output.folder, target.repo_id, token=self._token, private=target.private, branch=target.branch)
        log.info("The word is on the Hub: %s", url)

    def _target(self) -> Target:
        output = self.output
        name = output.hub_model_id or Path(output.folder).expanduser().resolve().name
        return Target(name, self._token, output.hub_private, output.hub_branch)

    def _copy_picture(self, scratch: Path) -> None:
        """Copy the newest picture under the strip's name, which each push replaces: old ones do not pile up."""
        folder = Path(self.output.folder).expanduser()
        if picture := card.picture_in(folder):
            shown = scratch / layout.SAMPLES / layout.STRIP
            shown.parent.mkdir()
            shutil.copyfile(folder / picture, shown)

    def _along(self, files: Mapping[str, bytes]) -> None:
        target = self._target()
        try:
            asked(target, SHORT, lambda api: _upload(api, target, files))
        except HubError as error:
            self._warn(f"{error} Training goes on.")

    def _warn(self, sentence: str) -> None:
        if sentence != self._warned:  # once, not at every push of a night without a network
            log.warning("%s", sentence)
        self._warned = sentence


# What is asked of the Hub


def _look(api: HfApi, target: Target) -> None:
    """Make sure of the repository, its branch and the right to write."""
    repo_id = _prepare(api, target).repo_id
    probe = CommitOperationAdd(card.NAME, b"# a word")  # to ask about it takes the right to write; nothing is uploaded
    api.preupload_lfs_files(repo_id, [probe], revision=target.branch)


def _upload(api: HfApi, target: Target, files: Mapping[str, bytes]) -> str:
    """Upload files in one commit and return where they are."""
    url = _prepare(api, target)
    # Buffers go by plain HTTP, with `hub_client`'s time limits; paths and bytes by a library with limits of its own.
    additions = [CommitOperationAdd(name, io.BytesIO(content)) for name, content in sorted(files.items())]
    message = f"Push a word with pseudoword {__version__}"
    api.create_commit(url.repo_id, additions, commit_message=message, revision=target.branch)
    return f"{url}/tree/{quote(target.branch, safe='')}" if target.branch else str(url)


def _prepare(api: HfApi, target: Target) -> RepoUrl:
    """Make the repository and its branch if they are missing, and return where it is."""
    url = api.create_repo(target.repo_id, private=target.private or None, exist_ok=True)
    if target.private and not api.model_info(url.repo_id).private:
        raise HubError(
            f"Cannot push to {url.repo_id}: it is on the Hub already and public, but private was asked for; "
            "make it private in its settings there, or choose another name."
        )
    if target.branch:
        api.create_branch(url.repo_id, branch=target.branch, exist_ok=True)
    return url
