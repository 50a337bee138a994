"""Where a base model is: a folder, one file, a Hub id, one that has moved, or the one inside this package."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from pseudoword import families
from pseudoword.errors import RecipeError
from pseudoword.families import configurations, single_file
from pseudoword.families.single_file import is_single_file
from pseudoword.recipe import BaseModel

log = logging.getLogger(__name__)

INDEX = "model_index.json"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
MOVED = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
"""Hub repositories that were deleted and where their files are now."""
FILES = ["*.json", "*.txt"]
"""What of a model on the Hub is its configuration."""
ANSWER = 4.0
"""Seconds that the Hub has to answer; its client by itself tries for more than a minute."""


def locate(base: BaseModel, built_in: Mapping[str, Path]) -> BaseModel:
    """Return the base with a `model` that can be loaded and its family; RecipeError with what to try if there is none.

    `built_in` maps names such as 'toybox' to folders inside the package. The Hub is asked once, here, before loaders
    ask it for every file. The `config` of a base in one file becomes a folder on this machine.
    """
    found = _found(base, built_in)
    if is_single_file(found.model):
        return _with_config(_with_family(found, _family_of_file(Path(found.model))), built_in)
    return _with_family(found, _family_of_index(found))


def _with_family(base: BaseModel, found: str | None) -> BaseModel:
    """Return the base with the family that it was found to be of; RecipeError if it was given another."""
    if base.family is not None:
        families.part(base.family, "facts")  # or there is no such family
    if found is None:  # loading it says what is wrong
        return dataclasses.replace(base, family=base.family or next(iter(families.FAMILIES)))
    if base.family not in (None, found):
        kind = families.part(found, "facts").KIND
        raise RecipeError(
            f"The base {base.model!r} is {kind}, of the family {found!r}, but family is {base.family!r}; "
            "leave --family out."
        )
    return dataclasses.replace(base, family=found)


def _family_of_file(path: Path) -> str | None:
    """Return which family a checkpoint in one file is of; None if it is of none, or cannot be read."""
    try:
        names = single_file.names(path)
    except RecipeError:
        return None
    return next((name for name in families.FAMILIES if families.part(name, "single_file").owns(names)), None)


def _family_of_index(base: BaseModel) -> str | None:
    """Return which family a base in diffusers layout is of; RecipeError if it is of none."""
    from huggingface_hub import try_to_load_from_cache

    is_folder = Path(base.model).is_dir()
    if not is_folder and not isinstance(try_to_load_from_cache(base.model, INDEX, revision=base.revision), str):
        return base.family or _family_of_cached_parts(base)
    index = configurations.index(base)
    for name in families.FAMILIES:
        if families.part(name, "facts").owns(index):
            return name
    kinds = " and ".join(families.part(name, "facts").KIND for name in families.FAMILIES)
    raise RecipeError(
        f"The base {base.model!r} is a {index.get('_class_name', 'model of no known class')}, for which no word can be "
        f"learned here; {kinds} can be taken."
    )


def _family_of_cached_parts(base: BaseModel) -> str | None:
    """Return the family whose text encoders are all in the Hub's cache, of several that with the most of them."""
    from huggingface_hub import try_to_load_from_cache

    needed = {
        name: [file for file in families.part(name, "facts").CONFIG if file.startswith("text_encoder")]
        for name in families.FAMILIES
    }
    there = {
        name: files
        for name, files in needed.items()
        if all(isinstance(try_to_load_from_cache(base.model, file, revision=base.revision), str) for file in files)
    }
    return max(there, key=lambda name: len(there[name]), default=None)


def _found(base: BaseModel, built_in: Mapping[str, Path]) -> BaseModel:
    """Return the base with a `model` that is there: a folder, a file, or an id that the Hub knows."""
    if base.model.startswith("~"):
        base = dataclasses.replace(base, model=str(Path(base.model).expanduser()))
    is_built_in = base.model in built_in and not Path(base.model).is_dir()
    if not is_built_in and is_single_file(base.model):
        if not Path(base.model).is_file():
            raise RecipeError(f"There is no file {base.model!r}.")
        return base
    if base.config is not None:
        raise RecipeError(
            f"config is {base.config!r}, but {base.model!r} is not a checkpoint in one file: a folder or a model on "
            "the Hub has its own configuration, so leave --config out."
        )
    if is_built_in:
        return dataclasses.replace(base, model=str(built_in[base.model]))
    if Path(base.model).is_dir():
        if not (Path(base.model) / INDEX).is_file():
            raise RecipeError(
                f"The folder {base.model!r} is not a model in diffusers layout: it has no model_index.json. "
                "If there is a checkpoint in one file in it, name that .safetensors or .ckpt file itself."
            )
        return base
    _refuse_a_typo(base, built_in)
    if not HUB_ID.fullmatch(base.model):
        raise RecipeError(f"There is no folder {base.model!r}, and a Hub id looks like 'owner/name'.")
    refusal = _refused_by_hub(base)
    if refusal is None:
        return base
    if base.model in MOVED and isinstance(refusal, LookupError):
        log.warning("%r is no longer on the Hub; using %r instead.", base.model, MOVED[base.model])
        return dataclasses.replace(base, model=MOVED[base.model])
    raise RecipeError(str(refusal))


def _refuse_a_typo(base: BaseModel, built_in: Mapping[str, Path]) -> None:
    """Raise RecipeError for a name that is almost one of this package's, or a folder's, without asking the Hub.

    A name with one slash may be a Hub id, and so may one without; but few have no owner, and hardly any is so like.
    """
    path = Path(base.model)
    if HUB_ID.fullmatch(base.model) and ("/" in base.model or _is_cached(base.model, INDEX, base.revision)):
        return
    near = path.parent
    folders = [str(near / other.name) for other in near.iterdir() if other.is_dir()] if near.is_dir() else []
    close = difflib.get_close_matches(str(path), [*built_in, *sorted(folders)], n=1, cutoff=0.75)
    if close:
        raise RecipeError(f"There is no model and no folder {base.model!r} here; did you mean {close[0]!r}?")


def _is_cached(model: str, name: str, revision: str | None) -> bool:
    """Whether the Hub's cache on this machine has a model's file."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, name, revision=revision), str)


def _ask_hub(model: str, revision: str | None) -> None:
    """Ask the Hub whether it has a model, within `ANSWER` seconds; raises what the client does, or a ConnectionError.

    On a thread, as nothing else ends a name server that does not answer.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    errors: list[Exception] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(model, INDEX, revision=revision), timeout=ANSWER)
        except Exception as error:
            errors.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER)
    if asking.is_alive():
        errors = [TimeoutError()]
    if errors and isinstance(errors[0], OSError):
        raise errors[0]
    if errors:  # the client's transport has errors of its own
        raise ConnectionError from errors[0]


def _refused_by_hub(base: BaseModel) -> Exception | None:
    """Return why the Hub, or its cache on this machine, does not have the model; a LookupError if it is not there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        if not _is_cached(base.model, INDEX, base.revision):
            _ask_hub(base.model, base.revision)
        hf_hub_download(base.model, INDEX, revision=base.revision, etag_timeout=ANSWER)
    except RepositoryNotFoundError:
        return LookupError(
            f"There is no model {base.model!r} on the Hub, nor a folder of that name here; "
            "check the spelling, or if it is private or gated, log in first (hf auth login)."
        )
    except RevisionNotFoundError:
        return ValueError(f"The model {base.model!r} has no revision {base.revision!r} on the Hub.")
    except OSError as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return ValueError(f"The model {base.model!r} on the Hub is not in diffusers layout: no model_index.json.")
        if _is_cached(base.model, "unet/config.json", base.revision):
            return None  # loaded before, part by part
        return ConnectionError(
            f"There is no folder {base.model!r} here, and it is neither in the Hub's cache nor can the Hub be asked "
            f"for it ({type(error.__cause__ or error).__name__}); check the connection, or give a local folder."
        )
    return None


# One file, and the configuration that goes with it


def _with_config(base: BaseModel, built_in: Mapping[str, Path]) -> BaseModel:
    """Return a base in one file with the folder of its configuration: the one given, or the usual one from the Hub."""
    path = Path(base.model)
    if base.variant is not None:
        raise RecipeError(f"variant is {base.variant!r}, but {base.model!r} is one file; leave --variant out.")
    if base.revision is not None and base.config is None:
        raise RecipeError(f"revision is {base.revision!r}, but {base.model!r} is one file; leave --revision out.")
    config = base.config or families.part(base.family, "single_file").usual_config(base)
    if base.config is None:
        log.info("No config given: %s is taken to be configured as %r.", path.name, config)
    folder = Path(config).expanduser()
    if config in built_in and not folder.is_dir():
        folder = built_in[config]
    if not folder.is_dir():
        folder = _config_from_hub(base, config)
    lacking = [name for name in families.part(base.family, "facts").CONFIG if not (folder / name).is_file()]
    if lacking:
        raise RecipeError(
            f"The configuration {config!r} for {base.model!r} lacks {', '.join(lacking)}; "
            "give --config a folder in diffusers layout, which may do without the weights."
        )
    return dataclasses.replace(base, config=str(folder))


def _config_from_hub(base: BaseModel, config: str) -> Path:
    """Return a folder in the Hub's cache with every file of a model but its weights, or RecipeError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if not HUB_ID.fullmatch(config) or Path(config).is_file():
        raise RecipeError(f"There is no folder {config!r} for --config, and a Hub id looks like 'owner/name'.")
    try:
        if not _is_cached(config, INDEX, base.revision):
            with contextlib.suppress(HfHubHTTPError):  # it answers; whether it has the files is asked below
                _ask_hub(config, base.revision)
        return Path(snapshot_download(config, revision=base.revision, allow_patterns=FILES, etag_timeout=ANSWER))
    except RepositoryNotFoundError as error:
        if config in MOVED:
            log.warning("%r is no longer on the Hub; using %r instead.", config, MOVED[config])
            return _config_from_hub(base, MOVED[config])
        raise RecipeError(
            f"There is no model {config!r} on the Hub, nor a folder of that name here, to configure {base.model!r}; "
            "give --config a folder in diffusers layout."
        ) from error
    except RevisionNotFoundError as error:
        raise RecipeError(f"The model {config!r} has no revision {base.revision!r} on the Hub.") from error
    except Exception as error:  # whatever a client raises that cannot get through, by itself or by a proxy
        raise RecipeError(
            f"The checkpoint {base.model!r} needs the configuration of {config!r}, which is neither in the Hub's cache "
            f"nor can the Hub be asked for it ({type(error.__cause__ or error).__name__}); check the connection, or "
            "give --config a folder in diffusers layout, which may do without the weights."
        ) from error
