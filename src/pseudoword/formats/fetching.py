"""Words on the Hub, fetched to where they can be read."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath

from pseudoword.errors import FormatError
from pseudoword.families.locate import HUB_ID

FILES = ("learned_embeds*.safetensors", "learned_embeds*.bin", "token_identifier.txt", "type_of_concept.txt")
"""What a repository's word is in."""


def name_of_encoder(name: str, number: int) -> str:
    """Return what the guide calls the file of the second or a further text encoder's rows beside one of the first's."""
    return name.replace("learned_embeds", f"learned_embeds_{number}", 1)


def fetched(source: str | Path) -> Path:
    """Return the file or folder that a path means, or one in the Hub's cache for 'owner/name' or 'owner/name/file'.

    FormatError says why there is none. What is on this machine comes first.
    """
    path, (owner, *rest) = Path(source).expanduser(), PurePosixPath(str(source)).parts or ("",)
    if path.exists() or isinstance(source, Path) or not rest or not HUB_ID.fullmatch(f"{owner}/{rest[0]}"):
        return path
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    repository, file = f"{owner}/{rest[0]}", "/".join(rest[1:])
    try:
        if file:
            first = Path(hf_hub_download(repository, file))
            if first.name.startswith("learned_embeds") and not first.name.startswith("learned_embeds_"):
                with contextlib.suppress(EntryNotFoundError):  # a word of one text encoder has no second
                    hf_hub_download(repository, str(PurePosixPath(file).with_name(name_of_encoder(first.name, 2))))
            return first
        return Path(snapshot_download(repository, allow_patterns=list(FILES)))
    except RepositoryNotFoundError as error:
        raise FormatError(
            f"There is no file or folder {str(source)!r}, nor a repository {repository!r} on the Hub; check the "
            "spelling, or if it is private or gated, log in first (hf auth login)."
        ) from error
    except Exception as error:  # whatever a client raises that cannot get through, by itself or by a proxy
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise FormatError(f"The repository {repository!r} on the Hub has no file {file!r}.") from error
        raise FormatError(
            f"There is no file or folder {str(source)!r}, and the Hub cannot be asked for it "
            f"({type(error.__cause__ or error).__name__}); check the path, or the connection."
        ) from error
