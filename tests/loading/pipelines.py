"""Small pipelines, words for them, and their pictures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler

from pseudoword import Concept
from pseudoword.families.sdxl import miniature as xl

QUICK = {"num_inference_steps": 2, "height": 16, "width": 16}


def made(kind: Any, folder: Path, **more: Any) -> Any:
    pipeline = kind.from_pretrained(folder, **more)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def word(token: str = "<cat-toy>", vectors: int = 2, *, seed: int = 0, family: str = "sd", **more: Any) -> Concept:
    numbers = np.random.default_rng(seed)
    widths = {"clip_l": 32} if family == "sd" else dict(zip(("clip_l", "clip_g"), xl.WIDTHS, strict=True))
    rows = {encoder: numbers.standard_normal((vectors, width)).astype(np.float32) for encoder, width in widths.items()}
    return Concept(token, rows, **more)


def picture(pipeline: Any, prompt: str, *, seed: int = 0, **more: Any) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    return pipeline(prompt, generator=generator, **{**QUICK, **more}).images[0].tobytes()


def state(pipeline: Any) -> dict[str, Any]:
    """Everything of a pipeline that lending could touch."""
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    found: dict[str, Any] = {name: id(part) for name, part in pipeline.components.items()}
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            found[f"{name}.{key}"] = hashlib.sha256(value.numpy().tobytes()).hexdigest()
        for path, inner in module.named_modules():
            hooks = (inner._forward_hooks, inner._forward_pre_hooks, inner._forward_hooks_always_called)
            found[f"{name}.{path}"] = (id(inner), *map(len, hooks))
    found["config"] = str(pipeline.config)
    found["tokens"] = [len(t) for name, t in pipeline.components.items() if name.startswith("tokenizer") and t]
    return found
