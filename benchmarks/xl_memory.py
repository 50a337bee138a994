"""What a training step of Stable Diffusion XL keeps in memory, with and without gradient checkpointing.

    python benchmarks/xl_memory.py --resolution 256

At real sizes with random weights (UNet in bf16, text encoders in fp32), each in a process of its own; on a CPU the peak
is the process', less what it held before the step. Results: benchmarks/results/xl_memory.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pseudoword import disk
from pseudoword.evaluate.machine import machine
from pseudoword.families.sdxl.torch import StableDiffusionXL

UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""stabilityai/stable-diffusion-xl-base-1.0's unet/config.json."""
L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SMALL = {**UNET, "block_out_channels": (32, 64, 64), "attention_head_dim": (2, 4, 4)}
SMALL |= {"transformer_layers_per_block": (1, 1, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--resolution", type=int, default=256, help="side of the picture in pixels")
    parser.add_argument("--small", action="store_true", help="a narrow UNet and shallow encoders, to try it out")
    parser.add_argument("--output", type=Path, help="where to keep results")
    parser.add_argument("--arm", choices=("kept", "checkpointed"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(step(args)))
        return
    own = [f"--resolution={args.resolution}", *(["--small"] if args.small else [])]
    arms = {arm: measured([*own, f"--arm={arm}"]) for arm in ("kept", "checkpointed")}
    ratio = arms["kept"]["activations_mib"] / max(1, arms["checkpointed"]["activations_mib"])
    given = shlex.join(["python", "benchmarks/xl_memory.py", *own])
    results = {"command": given, **machine(), **arms, "activations_ratio": round(ratio, 2)}
    print(json.dumps(results, indent=1))
    if args.output:
        disk.write(args.output, json.dumps(results, indent=1) + "\n")


def measured(words: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def step(args: argparse.Namespace) -> dict[str, Any]:
    """Carry out one step, forward and backward to the rows, and return what it took."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet = filled(UNet2DConditionModel, SMALL if args.small else UNET, torch.bfloat16, device)
    depth = {"num_hidden_layers": 1} if args.small else {}
    texts = [
        filled(CLIPTextModel, CLIPTextConfig(**{**L, **depth}), torch.float32, device),
        filled(
            CLIPTextModelWithProjection, CLIPTextConfig(**{**G, **depth}, projection_dim=1280), torch.float32, device
        ),
    ]
    if args.arm == "checkpointed":
        texts_by_name = {f"text_encoder{suffix}": text for suffix, text in zip(("", "_2"), texts, strict=True)}
        StableDiffusionXL.checkpoint_gradients(cast(Any, SimpleNamespace(unet=unet, text_encoders=texts_by_name)))
    rows = [torch.zeros(1, text.config.hidden_size, device=device, requires_grad=True) for text in texts]
    held = memory(device)
    began = time.perf_counter()
    hidden, pooled = [], None
    for text, row in zip(texts, rows, strict=True):
        hook = text.get_input_embeddings().register_forward_hook(lambda module, given, found, row=row: found + row)
        output = text(torch.zeros(1, 77, dtype=torch.long, device=device), output_hidden_states=True)
        hook.remove()
        hidden.append(output.hidden_states[-2])
        pooled = output[0]
    assert pooled is not None
    side = args.resolution // 8
    told = {"text_embeds": pooled.bfloat16(), "time_ids": torch.zeros(1, 6, dtype=torch.bfloat16, device=device)}
    latents = torch.randn(1, 4, side, side, dtype=torch.bfloat16, device=device)
    found = unet(latents, torch.tensor([500], device=device), torch.cat(hidden, -1).bfloat16(), added_cond_kwargs=told)
    found.sample.float().square().mean().backward()
    return {
        "held_mib": held,
        "activations_mib": memory(device) - held,
        "seconds": round(time.perf_counter() - began, 1),
        "gradient": [round(row.grad.norm().item(), 8) if row.grad is not None else None for row in rows],
        "parameters": {"unet": count(unet), "texts": [count(text) for text in texts]},
    }


def filled(kind: Any, config: Any, dtype: torch.dtype, device: str) -> Any:
    """Return a module of random weights, made without ever holding it in another precision."""
    with torch.device("meta"):
        made = kind.from_config(config) if isinstance(config, dict) else kind(config)
    made = made.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    for name, parameter in made.named_parameters():
        parameter.fill_(1.0) if "norm" in name and name.endswith("weight") else parameter.normal_(std=0.02)
    for name, buffer in made.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.numel()).reshape(buffer.shape))
    return made


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def memory(device: str) -> int:
    """Return the most that was held so far, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
