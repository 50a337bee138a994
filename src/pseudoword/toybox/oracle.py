"""The oracle: a small network that reads a picture's attributes back, each with its confidence.

It knows what the base has no words for as well (fish, sepia, …), and embeds a picture so that pictures of one object
are close, whatever is behind it and however it is painted.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import Tensor, nn

from pseudoword import disk
from pseudoword.errors import RecipeError, first_line
from pseudoword.toybox import world
from pseudoword.toybox.render import SIDE
from pseudoword.toybox.world import Drawing

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": (*world.SHAPES, *world.NAMELESS_SHAPES, *world.UNSEEN_SHAPES),
    "colour": tuple(world.COLOURS),
    "pattern": (*world.PATTERNS, *world.NAMELESS_PATTERNS),
    "second": tuple(world.COLOURS),
    "size": world.SIZES,
    "background": world.BACKGROUNDS,
    "style": (*world.STYLES, *world.NAMELESS_STYLES),
    "relation": ("", "and", "on"),
    "other shape": (*world.SHAPES, *world.NAMELESS_SHAPES, *world.UNSEEN_SHAPES),
    "other colour": tuple(world.COLOURS),
}
"""What the oracle reads, and the values each attribute can have."""
EMBEDDING = 64
WIDTHS = (32, 48, 80, 112)
FILE = Path(__file__).parent / "oracle" / "oracle.safetensors"

Reading = dict[str, tuple[str, float]]
"""For each attribute the likeliest value and its probability."""


def truth(drawing: Drawing) -> dict[str, str]:
    """Return the attributes that a drawing has; those that say nothing about it are left out."""
    first = drawing.things[0]
    known = {
        "shape": first.shape,
        "colour": first.colour,
        "pattern": first.pattern,
        "background": drawing.background,
        "style": drawing.style,
        "relation": drawing.relation,
    }
    if first.pattern != "plain":
        known["second"] = first.second
    if drawing.relation:
        return known | {"other shape": drawing.things[1].shape, "other colour": drawing.things[1].colour}
    return known | {"size": first.size}


def attribute_heads(width: int) -> nn.ModuleDict:
    """Return a layer for each attribute, from features to logits."""
    return nn.ModuleDict({_key(name): nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})


def logits_of(heads: nn.ModuleDict, features: Float[Tensor, "batch width"]) -> dict[str, Tensor]:
    """Return each attribute's logits."""
    return {name: heads[_key(name)](features) for name in ATTRIBUTES}


def _key(attribute: str) -> str:
    return attribute.replace(" ", "_")


def readings_of(logits: Mapping[str, Tensor]) -> list[Reading]:
    """Return for each of a batch what every attribute's logits say."""
    readings: list[Reading] = [{} for _ in next(iter(logits.values()))]
    for name, values in logits.items():
        best = values.softmax(dim=1).max(dim=1)
        for reading, value, index in zip(readings, best.values.tolist(), best.indices.tolist(), strict=True):
            reading[name] = (ATTRIBUTES[name][index], value)
    return readings


class Oracle(nn.Module):
    """Convolutions down to 4×4, pooled over the whole and over each half, so that left and right stay apart."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Block(5, WIDTHS[0], 2)]
        for before, width in itertools.pairwise(WIDTHS):
            layers += [_Block(before, before, 1), _Block(before, width, 2)]
        self.blocks = nn.Sequential(*layers)
        self.mix = nn.Linear(6 * WIDTHS[-1], 160)
        self.heads = attribute_heads(160)
        self.embed_head = nn.Linear(160, EMBEDDING)
        line = torch.linspace(-1, 1, SIDE)
        self.register_buffer("where", torch.stack(torch.meshgrid(line, line, indexing="ij")), persistent=False)

    def features(self, pictures: Float[Tensor, "batch 3 64 64"]) -> Float[Tensor, "batch 160"]:
        """Return what all heads read."""
        where = self.where.expand(len(pictures), -1, -1, -1)  # pyright: ignore[reportCallIssue]
        seen = self.blocks(torch.cat([pictures, where], dim=1))
        half = seen.shape[-1] // 2
        parts = [seen[..., :half], seen[..., half:], seen[..., :half, :], seen[..., half:, :], seen]
        pooled = [part.mean(dim=(2, 3)) for part in parts] + [seen.amax(dim=(2, 3))]
        return nn.functional.silu(self.mix(torch.cat(pooled, dim=1)))

    def forward(self, pictures: Float[Tensor, "batch 3 64 64"]) -> tuple[dict[str, Tensor], Float[Tensor, "batch 64"]]:
        """Return each attribute's logits, and embeddings of length 1."""
        features = self.features(pictures)
        return logits_of(self.heads, features), nn.functional.normalize(self.embed_head(features), dim=1)


class _Block(nn.Module):
    """A convolution, its norm and its nonlinearity."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, 3, stride, 1)
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.norm(self.conv(x)))


@dataclass(frozen=True)
class Judge:
    """A trained oracle, ready to read pictures."""

    oracle: Oracle

    def read(self, pictures: UInt8[np.ndarray, "batch 64 64 3"]) -> list[Reading]:
        """Read every attribute of every picture."""
        return readings_of(self._run(pictures)[0])

    def embed(self, pictures: UInt8[np.ndarray, "batch 64 64 3"]) -> Float[np.ndarray, "batch 64"]:
        """Embed pictures; the product of two embeddings is the similarity of what is on them, at most 1."""
        return self._run(pictures)[1].numpy()

    @torch.no_grad()
    def _run(self, pictures: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        values = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts = [self.oracle(part) for part in values.split(100)]
        return {name: torch.cat([p[0][name] for p in parts]) for name in ATTRIBUTES}, torch.cat([p[1] for p in parts])


def save(oracle: Oracle, path: Path) -> None:
    """Write the oracle's weights as fp16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write(path, serialised({name: value.half().contiguous() for name, value in oracle.state_dict().items()}))


def load(path: Path = FILE) -> Judge:
    """Return the oracle inside this package, or another."""
    oracle = Oracle()
    try:
        oracle.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RecipeError(
            f"The oracle {str(path)!r} cannot be read ({first_line(error)}); pseudoword toybox train-oracle makes one."
        ) from error
    return Judge(oracle.eval())


def agreement(readings: Sequence[Reading], drawings: Sequence[Drawing]) -> dict[str, float]:
    """Return for each attribute how many of the pictures that have it were read right, as a share."""
    right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for reading, drawing in zip(readings, drawings, strict=True):
        for name, value in truth(drawing).items():
            right[name].append(reading[name][0] == value)
    return {name: sum(hits) / len(hits) for name, hits in right.items() if hits}
