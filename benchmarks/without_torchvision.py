"""Run a script that imports torchvision.transforms on a machine that has no torchvision.

    python benchmarks/without_torchvision.py SCRIPT ARGUMENT…

The script is run as it is. It finds a stand-in with the one transform that the guide's script uses; libraries that
ask for torchvision have been imported by then, and know that there is none. Where torchvision is installed, it is used.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import runpy
import sys
import types

import torch
from diffusers import StableDiffusionPipeline  # noqa: F401  # imports what asks for torchvision
from PIL import Image, ImageOps


class RandomHorizontalFlip:
    """Mirrors a picture with probability p, drawn as torchvision draws it."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.mirror(image) if torch.rand(1) < self.p else image


def stand_in() -> None:
    """Let `from torchvision import transforms` find the stand-in."""
    for name in ("torchvision", "torchvision.transforms"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["torchvision.transforms"].RandomHorizontalFlip = RandomHorizontalFlip  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    if importlib.util.find_spec("torchvision") is None:
        stand_in()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
