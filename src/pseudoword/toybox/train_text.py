"""Teach the toybox's text encoder to read captions before it is asked to draw, for `pseudoword toybox train-text`.

As CLIP's text encoder knew what captions mean before Stable Diffusion was trained on it: which of two objects a colour
is of, and which colour is that of the stripes. It costs minutes, and the UNet then has only drawing to learn.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn
from transformers import CLIPTokenizer

from pseudoword import disk
from pseudoword.families.lookup import lent
from pseudoword.progress import Progress
from pseudoword.toybox import captions, world
from pseudoword.toybox.base import Sizes, text_encoder, tokenizer
from pseudoword.toybox.names import Names, point_at_names, with_names
from pseudoword.toybox.oracle import agreement, attribute_heads, logits_of, readings_of
from pseudoword.toybox.train_oracle import attribute_loss
from pseudoword.toybox.trainer import Rate, Trainer, check, device, draws
from pseudoword.toybox.words import POSITIONS
from pseudoword.toybox.world import Drawing

log = logging.getLogger(__name__)

FILE = "text.safetensors"
NAMED = 0.2
"""Share of captions that call the first object by a name, and share that call the style by one."""
NAMELESS_NAMED = 0.7
"""The same where no word says it."""


@dataclass(frozen=True)
class TextOptions:
    """How the text encoder is taught to read."""

    folder: Path = Path(".training")
    """Where checkpoints and the result (`text.safetensors`) are kept."""
    seed: int = 0
    """What batches and first weights depend on."""
    steps: int = 1000
    """Length of the run."""
    batch_size: int = 192
    """Captions per step."""
    learning_rate: float = 2e-3
    """Peak of the rate; it falls to zero over the second half."""
    sizes: Sizes = field(default_factory=Sizes)


class Reader(nn.Module):
    """Reads every attribute from what the text encoder says at the end of a caption; not shipped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = attribute_heads(width)

    def forward(self, pooled: Float[Tensor, "batch width"]) -> dict[str, Tensor]:
        """Return each attribute's logits."""
        return logits_of(self.heads, pooled)


def spoken_of(drawing: Drawing, rng: np.random.Generator, keep: float) -> str:
    """Return a caption of a drawing, now and then with a name for its object or its manner."""
    chances = rng.random(2)
    named = set[str]()
    if chances[0] < (NAMELESS_NAMED if drawing.nameless else NAMED):
        named.add(captions.NAME)
    if chances[1] < (NAMED if drawing.style in world.STYLES else NAMELESS_NAMED):
        named.add(captions.MANNER)
    return captions.caption(drawing, rng, keep, named)


def token_ids(words: CLIPTokenizer, texts: Sequence[str], full: bool) -> Int[Tensor, "batch tokens"]:
    """Tokenise as the pipeline does, to all positions, or else to the longest text's length and a few."""
    if full:
        made = words(list(texts), padding="max_length", max_length=POSITIONS)
    else:
        made = words(list(texts), padding=True, pad_to_multiple_of=4)
    return torch.tensor(made.input_ids)


def encode(encoder: Any, names: Names, drawings: Sequence[Drawing], ids: Tensor) -> Any:
    """Run the text encoder with the names of these drawings lent to it."""
    size = encoder.get_input_embeddings().num_embeddings
    where = encoder.device
    with lent(encoder, names(drawings)):
        return encoder(point_at_names(ids, size).to(where))


def train_text(options: TextOptions) -> Generator[Progress]:
    """Teach a text encoder and names, and write them to `text.safetensors` in the folder."""
    check(options)
    where = device()
    words = with_names(tokenizer(options.folder / "tokenizer"))
    torch.manual_seed(options.seed)
    text: Any = text_encoder(options.sizes, tokenizer(options.folder / "tokenizer"))
    modules: dict[str, nn.Module] = {"text_encoder": text, "names": Names(options.sizes.text_width)}
    reader = Reader(options.sizes.text_width)
    for module in (*modules.values(), reader):
        module.to(where)
    rate = Rate(options.learning_rate, 50, options.steps, options.steps // 2)
    trainer = Trainer({**modules, "reader": reader}, rate)

    def loss(step: int) -> Tensor:
        return attribute_loss(*_read(trainer, words, draws(options.seed, step, 4), options.batch_size))

    yield from trainer.follow(options.folder / "text.checkpoint", loss)
    with trainer.averaged():
        state = {f"{part}.{n}": v for part, module in modules.items() for n, v in module.state_dict().items()}
        disk.write(options.folder / FILE, save({name: value.cpu().contiguous() for name, value in state.items()}))
        logits, drawings = _read(trainer, words, draws(options.seed, options.steps, 4), 1000)
        worded = [i for i, d in enumerate(drawings) if not d.nameless and d.style in world.STYLES]
        readings = readings_of(logits)
        shares = agreement([readings[i] for i in worded], [drawings[i] for i in worded])
        for name, right in shares.items():
            log.info("read from captions that say all: %s %.1f%%", name, 100 * right)


def _read(
    trainer: Trainer, words: CLIPTokenizer, rng: np.random.Generator, count: int
) -> tuple[dict[str, Tensor], list[Drawing]]:
    """Read captions of some drawings, and return what was read with the drawings."""
    text, names, reader = (trainer.modules[part] for part in ("text_encoder", "names", "reader"))
    drawings = [world.training_drawing(int(seed)) for seed in rng.integers(1 << 32, size=count)]
    training = trainer.modules.training
    said = [spoken_of(d, rng, 0.75 if training and rng.random() < 0.3 else 1.0) for d in drawings]
    ids = token_ids(words, said, full=False)
    assert isinstance(names, Names)
    return reader(encode(text, names, drawings, ids).pooler_output), drawings
