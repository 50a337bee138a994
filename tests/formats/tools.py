"""Tools' published rules for loading a word, restated as small emulators that read files with torch and safetensors.

Each says what the tool would have: the trigger, and rows by what they are loaded into. NotLoaded says that it refuses
or skips the file. Nothing of the tools is imported, nothing of ours either.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from tests.formats.a1111_check import Refused, checked_by_a1111

Rows = dict[str, np.ndarray]
Loaded = tuple[str, Rows]


class NotLoaded(Exception):
    """What a tool does not load."""


def demand(condition: object, why: str) -> None:
    if not condition:
        raise NotLoaded(why)


def by_ending(path: Path, *classes: type) -> dict[str, Any]:
    """Read a file as most tools do: safetensors by its ending, anything else with torch's safe unpickler.

    `classes` are those that a tool allows besides torch's.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise NotLoaded(str(error)) from error


CLIP_WIDTHS = {"clip_l": 768, "clip_h": 1024, "clip_g": 1280}


def demand_widths(data: dict[str, Any]) -> None:
    """Raise NotLoaded where rows cannot be put into the table of the text encoder under whose key they are."""
    for key, width in CLIP_WIDTHS.items():
        demand(key not in data or data[key].shape[-1] == width, f"the table of {key} is not as wide")


def numpy(value: Any) -> np.ndarray:
    return value.detach().float().numpy()


# A1111 and Forge: modules/textual_inversion/textual_inversion.py load_from_file, image_embedding.py


A1111_WIDTHS = (768, 1024, 768 + 1280)
"""What `get_expected_shape` is for Stable Diffusion 1.x, 2.x and XL; for SD 3 it is 1."""
FORGE_WIDTHS = (768, 1024, 1280, 768 + 1280)
"""Forge's `embedding_expected_shape`: 768 also for CLIP-L of FLUX.1 and SD 3.5, 1280 for CLIP-G of SD 3.5."""
OTHER_ENCODERS = {
    *("llama", "gemma", "gemma2_2b", "gemma3_4b", "gemma3_12b", "gemma4", "qwen3_4b", "qwen3_8b", "qwen3_06b"),
    *("qwen3_2b", "qwen25_3b", "qwen25_7b", "qwen35_08b", "qwen35_2b", "qwen35_4b", "qwen35_9b", "qwen35_27b"),
    *("qwen3vl_4b", "qwen3vl_8b", "mistral3_24b", "ministral3_3b", "umt5xxl", "umt5base", "mt5xl", "pile_t5xl"),
    *("t5base", "t5gemma", "byt5_small", "chinese_roberta", "jina_clip_2", "lyrics", "sam3_clip", "gpt_oss"),
    "hidream_o1",
}
"""Keys of text encoders that no base of A1111, InvokeAI or kohya's gen_img has."""


def forge(path: Path) -> Loaded:
    return a1111(path, checks=False, widths=FORGE_WIDTHS)


def a1111(path: Path, *, checks: bool = True, widths: tuple[int, ...] = A1111_WIDTHS) -> Loaded:
    ending, name = path.suffix.upper(), path.stem
    if ending in {".PNG", ".WEBP", ".JXL", ".AVIF"}:
        data = picture(path)
        demand(data, "just a preview")
        name = data.get("name", name)
    else:
        demand(ending in {".BIN", ".PT", ".SAFETENSORS"}, "another ending")
        if checks and ending != ".SAFETENSORS":
            try:
                checked_by_a1111(path)
            except (Refused, pickle.UnpicklingError, ValueError, IndexError, EOFError) as error:
                raise NotLoaded(str(error)) from error
        data = by_ending(path, torch.nn.ParameterDict, set)  # as its own unpickler, modules/safe.py
    demand(type(data) is dict, "unidentified")
    demand(not data.keys() & OTHER_ENCODERS, "it would be taken for a word of another text encoder")
    if "string_to_param" in data:
        terms = data["string_to_param"]
        terms = getattr(terms, "_parameters", terms)
        demand(len(terms) == 1, "multiple terms")
        rows = {"": numpy(next(iter(terms.values())))}
        width = rows[""].shape[-1]
    elif "clip_g" in data and "clip_l" in data:
        demand(not data.keys() & {"t5", "t5xxl"}, "a word for SD 3, for which it expects a width of 1")
        demand(all(torch.is_tensor(v) for v in data.values()), "a text has no detach")
        demand_widths(data)
        rows = {k: numpy(v) for k, v in data.items()}
        demand(len(rows["clip_l"]) == len(rows["clip_g"]), "room is made for as many vectors as clip_g has")
        width = rows["clip_g"].shape[-1] + rows["clip_l"].shape[-1]
    else:
        demand(torch.is_tensor(next(iter(data.values()))), "unidentified")
        demand(len(data) == 1, "multiple terms")
        rows = {"": np.atleast_2d(numpy(next(iter(data.values()))))}
        width = rows[""].shape[-1]
    demand(width in widths, "skipped for its width, whatever model is loaded")
    return name, rows


def picture(path: Path) -> Any:
    """Return what a picture holds: its text chunk, or else its pixels."""
    image: Any = Image.open(path)
    if "sd-ti-embedding" in getattr(image, "text", {}):
        return json.loads(base64.b64decode(image.text["sd-ti-embedding"]), object_hook=_tensor)
    return pixels(image)


def pixels(image: Image.Image) -> Any:
    """Return what the pixels hide (`extract_image_data_embed`), number after number as it is published."""
    whole = np.array(image.convert("RGB"))
    bright = (whole > 0).all(2)
    columns, lines = bright.any(0), bright.any(1)
    left, right = columns.argmax(), len(columns) - columns[::-1].argmax()
    top, bottom = lines.argmax(), len(lines) - lines[::-1].argmax()
    halves = whole[top:bottom, left:right] & 0x0F
    black = np.where(halves.sum(axis=(0, 2)) == 0)[0]
    if len(black) < 2:
        return None
    low, high = halves[:, : black.min()], halves[:, black.max() + 1 :]
    content = (_unmixed(high) << 4 | _unmixed(low)).flatten().tobytes()
    return json.loads(zlib.decompress(content), object_hook=_tensor)


def _unmixed(block: np.ndarray) -> np.ndarray:
    seed, sequence = 0, []
    for _ in range(block.size):
        seed = (1664525 * seed + 1013904223) % 2**32
        sequence.append(seed % 255)
    return block ^ np.array(sequence).astype(np.uint8).reshape(block.shape) & 0x0F


def _tensor(value: dict[str, Any]) -> Any:
    return torch.tensor(np.array(value["TORCHTENSOR"])) if "TORCHTENSOR" in value else value


# A1111's LoRA extension: extensions-builtin/Lora/networks.py load_network


def a1111_bundle(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a LoRA's words are made of, by their triggers; NotLoaded if the LoRA itself is left out for one."""
    bundles: dict[str, dict[str, Any]] = {}
    for key, value in safetensors.torch.load_file(path).items():
        network, _, part = key.partition(".")
        if network == "bundle_emb":
            name, inner = part.split(".", 1)
            own = bundles.setdefault(name, {})
            if inner.split(".")[0] == "string_to_param":
                own["string_to_param"] = {inner.split(".", 1)[1]: value}
            else:
                own[inner] = value
    for data in bundles.values():  # create_embedding_from_data; what it raises, load_networks meets with `continue`
        several = "string_to_param" in data or {"clip_g", "clip_l"} <= data.keys()
        demand(several or len(data) == 1, "embedding file has multiple terms in it")
    return bundles


# Forge's LoRA extension: extensions-builtin/sd_forge_lora/networks.py load_lora_for_models


def forge_loads_lora(path: Path) -> bool:
    """Whether a LoRA is loaded at all; words in it never are."""
    return sum(key.startswith("bundle_emb.") for key in safetensors.torch.load_file(path)) <= 12


# ComfyUI: comfy/sd1_clip.py load_embed, with the keys of its tokenizers

COMFYUI_KEYS = {
    "clip_l": 768,
    "clip_h": 1024,
    "clip_g": 1280,
    "t5xxl": 4096,
    "llama": 4096,
    "qwen3_4b": 2560,
    "qwen3_8b": 4096,
    "qwen3_06b": 1024,
    "mistral3_24b": 5120,
}
COMFYUI_WITHOUT_WORDS = OTHER_ENCODERS - COMFYUI_KEYS.keys()
"""Of their tokenizers none is given the folder of embeddings, or (the rest) no model is tried here."""


def comfyui(path: Path, keys: dict[str, int] | None = None) -> Loaded:
    """Return rows by the key of each text encoder that takes some; `keys` are those of a base, and their widths."""
    name = path.stem if path.suffix in (".safetensors", ".pt", ".bin") else path.name  # it tries these, or the file
    trigger = "embedding:" + re.sub(r"[(){}]", r"\\\g<0>", name)
    demand(not re.search(r"[\s<\[]", name), "the name ends there")
    try:
        data = by_ending(path)
    except NotLoaded:
        if path.suffix == ".safetensors":
            raise
        data = {"": _numbers_of_zip(path)}
    demand(not torch.is_tensor(data), "a tensor has no keys")
    demand(not _is_lora_pti(path), "the first value may be any tensor of the LoRA")
    demand(not data.keys() & COMFYUI_WITHOUT_WORDS, "only another encoder of the width would take it")
    rows = {}
    for key, width in (keys or {"clip_l": 768}).items():
        if "string_to_param" in data:
            block = next(iter(data["string_to_param"].values()))
        elif key in data:
            block = data[key]
        else:
            inside = {k: v for k, v in data.items() if k.startswith("bundle_emb.")}
            bundled = [v for k, v in inside.items() if k.endswith(".string_to_param.*")]
            bundled = bundled or [v for k, v in inside.items() if k.endswith(f".{key}")]
            if inside and not bundled:
                continue  # the file's first tensor, whichever that is
            block = torch.cat(bundled) if bundled else next(iter(data.values()))
        if torch.is_tensor(block) and block.dim() and block.shape[-1] == width:  # else "embedding will be ignored"
            rows[key] = np.atleast_2d(numpy(block))
    demand(rows, "no encoder takes it")
    return trigger, rows


def _is_lora_pti(path: Path) -> bool:
    if path.suffix != ".safetensors" or path.read_bytes()[8:9] != b"{":
        return False
    with safetensors.safe_open(path, "pt") as file:
        return "<embed>" in (file.metadata() or {}).values()


def _numbers_of_zip(path: Path) -> torch.Tensor:
    """Take the bytes of the last storage that is large enough for fp32 numbers (`safe_load_embed_zip`)."""
    demand(zipfile.is_zipfile(path), "error loading embedding")
    with zipfile.ZipFile(path) as file:
        for name in reversed([name for name in file.namelist() if "data/" in name]):
            content = file.read(name)
            count = len(content) // 4
            if count >= 768:
                width = 768 if count % 768 == 0 else 1024
                numbers = torch.frombuffer(bytearray(content), dtype=torch.float32)
                return numbers[: count // width * width].reshape(-1, width)
    raise NotLoaded("no storage")


# InvokeAI: model_manager/configs/textual_inversion.py _get_base_or_raise, backend/textual_inversion.py from_checkpoint


def invokeai(path: Path) -> Loaded:
    data = by_ending(path)
    demand(isinstance(data, dict), "unable to determine token dimension")
    demand(not data.keys() & OTHER_ENCODERS, "it would be taken for a word of another text encoder")
    demand(not _is_lora_pti(path), "the first value may be any tensor of the LoRA")
    if "string_to_token" in data:
        width = next(iter(data["string_to_param"].values())).shape[-1]
    elif "emb_params" in data:
        width = data["emb_params"].shape[-1]
    elif "clip_g" in data:
        width = data["clip_g"].shape[-1]
    else:
        width = next(iter(data.values())).shape[0]
    demand("clip_g" not in data or not data.keys() & {"t5", "t5xxl"}, "a word for SD 3 would be one of SDXL")
    base = {768: "sd-1", 1024: "sd-2", 1280: "sdxl"}.get(width)
    demand(base, f"unrecognized token dimension {width}")
    if "string_to_param" in data:
        rows = {"embedding": numpy(next(iter(data["string_to_param"].values())))}
    elif "emb_params" in data:
        rows = {"embedding": numpy(data["emb_params"])}
    elif "clip_g" in data and "clip_l" in data:
        demand_widths(data)
        rows = {"embedding": numpy(data["clip_g"]), "embedding_2": numpy(data["clip_l"])}
    else:
        rows = {"embedding": np.atleast_2d(numpy(next(iter(data.values()))))}
    demand(re.fullmatch(r"[a-zA-Z0-9., _-]+", path.stem) and "," not in path.stem, "no such trigger")
    return f"<{path.stem}>", rows


# kohya: gen_img.py


def kohya(path: Path, *, is_sdxl: bool | None = None) -> Loaded:
    data = by_ending(path)
    demand(not torch.is_tensor(data), "a tensor has no keys")
    if "string_to_param" in data:
        data = data["string_to_param"]
    demand("clip_g" not in data or not data.keys() & {"t5", "t5xxl"}, "there is no gen_img for SD 3")
    demand(not data.keys() & OTHER_ENCODERS, "there is no gen_img for its base")
    demand(not any(key.startswith("bundle_emb.") for key in data), "the first value may be any tensor of the LoRA")
    is_sdxl = "clip_g" in data if is_sdxl is None else is_sdxl
    if is_sdxl:
        demand("clip_l" in data and "clip_g" in data, "KeyError")
        demand_widths(data)
        demand(len(data["clip_l"]) == len(data["clip_g"]), "it has as many tokens for both as clip_l has rows")
        return path.stem, {"clip_l": numpy(data["clip_l"]), "clip_g": numpy(data["clip_g"])}
    block = next(iter(data.values()))
    demand(block.shape[-1] in (768, 1024), "a row does not fit into the table of SD 1.x or 2.x")
    demand(block.dim() == 2, "the number of vectors is taken from the first dimension")
    return path.stem, {"": numpy(block)}


# OneTrainer: modules/modelLoader/mixin/EmbeddingLoaderMixin.py, and the keys that its setups look for

ONETRAINER_KEYS = {"emp_params", "clip_l", "clip_g", "t5", "llama", "gemma"}


def onetrainer(path: Path) -> Loaded:
    data: Any = None
    for read in (
        lambda: torch.load(io.BytesIO(path.read_bytes()), weights_only=True),
        lambda: safetensors.torch.load_file(path),
    ):
        try:
            data = read()
            break
        except Exception:
            continue
    demand(isinstance(data, dict), "could not load embedding")
    demand_widths(data)
    rows = {key: numpy(value) for key, value in data.items() if key in ONETRAINER_KEYS}
    demand(rows, "none of its keys")
    return "", rows


# The original: ldm/modules/embedding_manager.py load and forward


def original(path: Path) -> Loaded:
    demand(path.suffix == ".pt", "scripts take --embedding_path FILE.pt")
    data = by_ending(path, torch.nn.ParameterDict, set)  # it trusts the file
    demand(isinstance(data, dict) and "string_to_token" in data and "string_to_param" in data, "KeyError")
    ids = data["string_to_token"]
    demand(all(torch.is_tensor(own) for own in ids.values()), "ids are compared on the device of the prompt")
    [(placeholder, block)] = data["string_to_param"].items()
    demand(ids[placeholder].item() == 265, "the prompt has the placeholder's id, which is * for CLIP")
    return placeholder, {"": numpy(block)}


# diffusers: loaders/textual_inversion.py, for the table of rules; elsewhere the real loader is used


def diffusers(path: Path) -> Loaded:
    try:
        data: Any = safetensors.torch.load_file(path)
    except Exception:
        try:
            data = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        except Exception as error:
            raise NotLoaded(str(error)) from error
    if torch.is_tensor(data):
        return "", {"": np.atleast_2d(numpy(data))}
    if len(data) == 1:
        [(token, block)] = data.items()
        demand(torch.is_tensor(block), "no tensor")
        return token, {"": np.atleast_2d(numpy(block))}
    demand("string_to_param" in data and "name" in data, "loaded state dictionary is incorrect")
    return data["name"], {"": numpy(data["string_to_param"]["*"])}


EMULATORS: dict[str, Callable[[Path], Loaded]] = {
    "diffusers": diffusers,
    "a1111": a1111,
    "forge": forge,
    "comfyui": lambda path: comfyui(path, COMFYUI_KEYS),
    "invokeai": invokeai,
    "kohya": kohya,
    "onetrainer": onetrainer,
    "original": original,
}
