"""Tensors in files, as NumPy arrays, read without ever running code from the file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from pseudoword.errors import FormatError

LARGEST = 256 * 2**20
"""Bytes above which a file is no embedding."""
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a file's content as named fp32 arrays, and its metadata. What it is decides, not its extension."""
    if not path.is_file():
        raise FormatError(f"There is no file {str(path)!r}.")
    size = path.stat().st_size
    if size == 0:
        raise FormatError(f"{path} is empty; an embedding has kilobytes. Download or copy it again.")
    if size > LARGEST:
        raise FormatError(f"{path} has {size / 2**20:.0f} MiB; an embedding has kilobytes. Is it a model?")
    content = path.read_bytes()
    if content[8:9] == b"{":
        return _read_safetensors(path, content)
    if content[:2] == b"PK" or content[:1] == b"\x80":
        return _read_pickle(path, content), {}
    raise FormatError(f"{path} is neither a safetensors nor a PyTorch file; an embedding is one of them.")


def _read_safetensors(path: Path, content: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        tensors = dict(safetensors.deserialize(content))
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (safetensors.SafetensorError, ValueError) as error:
        raise FormatError(f"{path} is a damaged safetensors file ({error}); download or copy it again.") from error
    metadata = {str(k): str(v) for k, v in (header.get("__metadata__") or {}).items()}
    return {name: _array(path, name, tensor) for name, tensor in tensors.items()}, metadata


def _array(path: Path, name: str, tensor: Mapping[str, Any]) -> np.ndarray:
    if tensor["dtype"] not in DTYPES:
        raise FormatError(f"{path} holds {name!r} as {tensor['dtype']}; expected one of {', '.join(DTYPES)}.")
    values = np.frombuffer(tensor["data"], dtype=DTYPES[tensor["dtype"]])
    if tensor["dtype"] == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32).reshape(tensor["shape"])


def _read_pickle(path: Path, content: bytes) -> dict[str, Any]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise FormatError(f"{path} is a PyTorch file; reading it needs pip install 'pseudoword[torch]'.") from error
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if isinstance(loaded, dict):
            return {str(k): v.detach().float().numpy() if torch.is_tensor(v) else v for k, v in loaded.items()}
    except Exception as error:  # the unpickler raises whatever the broken or refused content leads to
        raise FormatError(
            f"{path} cannot be read safely as tensors only: it is damaged or holds code. "
            "Download it again, or get it as .safetensors."
        ) from error
    raise FormatError(f"{path} holds a {type(loaded).__name__}, not named tensors.")


def to_safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file; equal words give equal bytes (the library shuffles the metadata)."""
    content = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata=dict(metadata))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of 8
    return len(header).to_bytes(8, "little") + header + content[end:]


def to_bin(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the content of a PyTorch .bin file."""
    import torch

    content = io.BytesIO()
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, content)
    return content.getvalue()
