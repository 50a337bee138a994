"""A LoRA to bundle words with."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Return a small LoRA's file, as kohya's scripts write them."""
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"lora_unet_{block}.{part}": torch.randn(4, 8, generator=draw).half()
        for block in ("down_blocks_0", "mid_block")
        for part in ("lora_down.weight", "lora_up.weight")
    }
    safetensors.torch.save_file(tensors, tmp_path / "style-lora.safetensors", {"ss_network_dim": "4"})
    return tmp_path / "style-lora.safetensors"
