"""Weights into models: names and layouts of torch's tensors to those of flax's layers, one tensor at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from safetensors import SafetensorError, safe_open

from pseudoword.errors import RecipeError, first_line
from pseudoword.flax_models.layers import Layers

Model = TypeVar("Model", bound=nnx.Module)
Readers = dict[str, Callable[[], Any]]
"""What reads each tensor, by its name in the file."""

STEMS = "diffusion_pytorch_model", "model"
"""What diffusers and transformers call files of weights."""
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
"""flax's names of parameters, and torch's."""
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def from_folder(
    kind: Callable[[Mapping[str, Any], Layers | None], Model],
    folder: Path,
    layers: Layers | None = None,
    *,
    variant: str | None = None,
    sharding: Sharding | None = None,
) -> Model:
    """Return a model of a folder that holds its config.json and weights, or raise RecipeError; see `load`."""
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(f"The folder {str(folder)!r} has no config.json that can be read ({error}).") from error
    try:
        model = kind(config, layers)
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise RecipeError(
            f"The config.json in {str(folder)!r} describes no model that can be made ({first_line(error)})."
        ) from error
    return load(model, folder, variant=variant, sharding=sharding)


def load(
    model: Model,
    source: Path | Mapping[str, Any],
    *,
    variant: str | None = None,
    sharding: Sharding | None = None,
) -> Model:
    """Fill a model from a folder of safetensors files or from named tensors in torch's layout, and return it.

    Values are cast to the dtype that the model was made for. Files of a variant ("fp16") are taken where there are
    any, else the plain ones. RecipeError names tensors that are missing, left over, or of another shape.
    """
    with ExitStack() as opened:
        readers = _of_folder(source, variant, opened) if isinstance(source, Path) else _of_tensors(source)
        parameters, named = dict(_parameters(model)), {_current(name): name for name in readers if _is_weight(name)}
        _check_names(model, parameters.keys() - named.keys(), named.keys() - parameters.keys())
        for name, (leaf, parameter) in parameters.items():
            value = _laid_out(_read(readers, named[name]), leaf, parameter.ndim)
            if value.shape != parameter.shape:
                raise RecipeError(
                    f"The tensor {named[name]!r} of the {type(model).__name__} has the shape {value.shape} in JAX's "
                    f"layout; its configuration asks for {parameter.shape}."
                )
            # Copied tensor by tensor, so that there are never two models in memory.
            parameter.set_value(jax.device_put(np.ascontiguousarray(value, dtype=parameter.dtype), sharding))
    return model


def _parameters(model: nnx.Module) -> Iterator[tuple[str, tuple[str, nnx.Param[Any]]]]:
    """Yield a model's parameters, with flax's names of them alone, by the names that torch has for them."""
    for path, value in nnx.iter_graph(model):
        if isinstance(value, nnx.Param):
            *modules, leaf = map(str, path)
            yield ".".join([*modules, LEAVES[leaf]]), (leaf, value)


def _read(readers: Readers, name: str) -> np.ndarray:
    try:
        return np.asarray(readers[name]())
    except (TypeError, AttributeError) as error:
        raise RecipeError(
            f"The tensor {name!r} holds numbers of a kind that is not read in JAX ({first_line(error)}); take weights "
            "in fp32, fp16 or bf16."
        ) from error


# Names


def _is_weight(name: str) -> bool:
    # Earlier versions of transformers saved where each token stands, 0 to 76, with the weights.
    return not name.endswith("embeddings.position_ids")


def _current(name: str) -> str:
    """Return what a tensor is called today, without the prefix that text encoders have or have not.

    transformers: `conversion_mapping.py`, "CLIPTextModel", which version 5 saves without `text_model.`.
    diffusers: `ModelMixin._fix_state_dict_keys_on_load`, for VAEs that were saved before their attention was renamed.
    """
    old = r"(?<=\.attentions\.\d\.)(query|key|value|proj_attn)(?=\.(?:weight|bias)$)"
    return re.sub(old, lambda found: OLD_ATTENTION[found[0]], name.removeprefix("text_model."))


def _check_names(model: nnx.Module, missing: Collection[str], unused: Collection[str]) -> None:
    kind = type(model).__name__
    if missing and unused:
        raise RecipeError(
            f"The weights are not those of this {kind}: they lack {_some(missing)}, and hold {_some(unused)}, "
            "which it does not have."
        )
    if missing:
        raise RecipeError(f"The weights of the {kind} lack {_some(missing)}.")
    if unused:
        raise RecipeError(f"The weights of the {kind} hold {_some(unused)}, which its configuration does not have.")


def _some(names: Collection[str], most: int = 10) -> str:
    first = ", ".join(sorted(names)[:most])
    return f"{first} and {len(names) - most} more" if len(names) > most else first


# Layouts


def _laid_out(tensor: np.ndarray, leaf: str, dimensions: int) -> np.ndarray:
    """Return a tensor in flax's layout: kernels have their inputs before their outputs, and places before both.

    A 1×1 convolution becomes a linear layer. diffusers drops such places from the attention of old VAEs alone, when
    it converts checkpoints in one file (`single_file_utils.conv_attn_to_linear`).
    """
    if leaf != "kernel":
        return tensor
    if dimensions == 4 and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    if dimensions == 2 and tensor.shape[2:] in ((), (1, 1)):
        return tensor.reshape(tensor.shape[:2]).T
    return tensor


# Files


def _of_tensors(tensors: Mapping[str, Any]) -> Readers:
    return {name: partial(tensors.__getitem__, name) for name in tensors}


def _of_folder(folder: Path, variant: str | None, opened: ExitStack) -> Readers:
    readers: Readers = {}
    for path in _files(folder, variant):
        try:
            file = opened.enter_context(safe_open(path, framework="np"))
            readers |= {name: partial(file.get_tensor, name) for name in list(file.keys())}
        except (OSError, SafetensorError) as error:
            raise RecipeError(f"{str(path)!r} is a damaged safetensors file ({error}); download it again.") from error
    return readers


def _files(folder: Path, variant: str | None) -> list[Path]:
    """Return a folder's files of weights, those of a variant if it has any; RecipeError if it has none."""
    for suffix in (f".{variant}", "") if variant else ("",):
        for stem in STEMS:
            whole, index = folder / f"{stem}{suffix}.safetensors", folder / f"{stem}.safetensors.index{suffix}.json"
            if whole.is_file():
                return [whole]
            if index.is_file():
                return _of_index(index)
    raise RecipeError(
        f"The folder {str(folder)!r} has no weights that can be read: no diffusion_pytorch_model.safetensors and no "
        "model.safetensors."
    )


def _of_index(index: Path) -> list[Path]:
    """Return the files among which weights are divided."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [index.parent / Path(name).name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{str(index)!r} does not say in which files the weights are ({error!r}).") from error
    if lost := [path.name for path in paths if not path.is_file()]:
        raise RecipeError(f"The folder {str(index.parent)!r} lacks {', '.join(lost)}, a part of its weights.")
    return paths
