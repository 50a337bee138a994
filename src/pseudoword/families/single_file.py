"""Checkpoints in one file, .safetensors or .ckpt: their tensors, read without ever running code from the file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from pseudoword.errors import RecipeError

SUFFIXES = (".safetensors", ".ckpt")
OTHERS = {
    "conditioner.embedders.1.": "Stable Diffusion XL",
    "cond_stage_model.": "Stable Diffusion 1.x or 2.x",
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "control_model.": "a ControlNet",
    "lora_": "a LoRA",
    "emb_params": "an embedding",
    "down_blocks.": "one part of a model in diffusers' layout",
}
"""What comes in files like these, by a piece of its tensors' names."""


def is_single_file(model: str) -> bool:
    """Whether a base model's name means one file: because it is there, or because it ends like one."""
    path = Path(model).expanduser()
    return path.is_file() or (path.suffix.lower() in SUFFIXES and not path.is_dir())


def names(path: Path) -> list[str]:
    """Return the names of all tensors; of a safetensors file nothing but the header is read."""
    if _is_safetensors(path):
        return _from_safetensors(path, "np", lambda file: list(file.keys()))
    return list(_unpickled(path))


def read(path: Path) -> dict[str, Any]:
    """Return all tensors as torch tensors on the CPU, mapped into memory rather than read where the file allows it."""
    if _is_safetensors(path):
        return _from_safetensors(path, "pt", lambda file: {name: file.get_tensor(name) for name in list(file.keys())})
    return _unpickled(path)


def array(path: Path, name: str) -> np.ndarray:
    """Return one tensor in fp32; a kind that NumPy does not have, such as bfloat16, is read with torch."""
    if _is_safetensors(path):
        try:
            return _from_safetensors(path, "np", lambda file: file.get_tensor(name)).astype(np.float32)
        except (TypeError, AttributeError):
            return _from_safetensors(path, "pt", lambda file: file.get_tensor(name)).float().numpy()
    return _unpickled(path)[name].float().numpy()


def check_parts(path: Path, names: Collection[str], parts: Mapping[str, str], kind: str) -> None:
    """Refuse a file that lacks a part of a kind of base, saying what it is or which parts those are.

    `parts` are what the names of each part's tensors start with.
    """
    lacking = {part: start for part, start in parts.items() if not any(name.startswith(start) for name in names)}
    if not lacking:
        return
    for piece, other in OTHERS.items():
        if other != kind and any(piece in name for name in names):
            raise RecipeError(f"{str(path)!r} is {other}; expected {kind} in one file.")
    described = " and ".join(f"{part} (tensors named {start}…)" for part, start in lacking.items())
    raise RecipeError(f"{str(path)!r} is not a whole {kind} checkpoint: it has no {described}.")


def of_parts(tensors: Mapping[str, Any], parts: Mapping[str, str]) -> dict[str, Any]:
    """Return those of a file's tensors that belong to the parts, floats in fp32."""
    starts = tuple(parts.values())
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if name.startswith(starts)
    }


def _is_safetensors(path: Path) -> bool:
    """Whether it is a safetensors file rather than a PyTorch file; its content decides, not its name."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise RecipeError(f"Cannot read {str(path)!r}: {error.strerror}.") from error
    if start[8:9] == b"{":
        return True
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return False
    what = "is empty" if not start else "is neither a safetensors nor a PyTorch file"
    raise RecipeError(f"{str(path)!r} {what}; a checkpoint in one file is a .safetensors or .ckpt. Download it again.")


def _from_safetensors(path: Path, framework: str, take: Callable[[Any], Any]) -> Any:
    try:
        with safe_open(path, framework=framework) as file:
            return take(file)
    except SafetensorError as error:
        raise RecipeError(f"{str(path)!r} is a damaged safetensors file ({error}); download it again.") from error


def _unpickled(path: Path) -> dict[str, Any]:
    """Return the named tensors of a PyTorch file."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{str(path)!r} is a PyTorch file; reading it needs pip install 'pseudoword[torch]'."
        ) from error
    try:
        with torch.serialization.safe_globals(_harmless()), path.open("rb") as file:
            is_mapped = file.read(2) == b"PK" and path.suffix.lower() != ".safetensors"  # torch goes by that
            file.seek(0)
            source: Any = str(path) if is_mapped else file
            loaded: Any = torch.load(source, map_location="cpu", weights_only=True, mmap=is_mapped)
    except Exception as error:  # the unpickler raises whatever the broken or refused content leads to
        raise RecipeError(
            f"{str(path)!r} cannot be read safely as tensors only: it is damaged or holds code. "
            "Download it again, or get it as .safetensors."
        ) from error
    while isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise RecipeError(f"{str(path)!r} holds a {type(loaded).__name__}, not named tensors.")
    return {str(key): value for key, value in loaded.items() if torch.is_tensor(value)}


def _harmless() -> list[Any]:
    """Return what Lightning put beside the weights of the first .ckpt files: a class, and NumPy's numbers.

    The class is replaced by an empty one, so Lightning need not be installed and none of its code runs.
    """
    callback = type("ModelCheckpoint", (), {})
    scalar = np.float64(0).__reduce__()[0]
    return [
        (callback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")},
    ]
