"""`pseudoword demo`: learn a word on the small model inside this package and show it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pseudoword import flags
from pseudoword.flags.mistyped import check_choice

EXAMPLES = ("pseudoword demo", "pseudoword demo --concept goldfish --folder goldfish")

Concept = Literal[
    "zebra-star",
    "ladybird",
    "gold-ring",
    "candy-heart",
    "harlequin-diamond",
    "cottage",
    "goldfish",
    "old-key",
    "fir",
    "toadstool",
    "two-tone-heart",
    "badge",
    "neon",
    "sepia",
    "mosaic",
    "comic",
]
"""The toybox's concept suite, named here so that help needs no more than this."""


@dataclass(frozen=True)
class Options:
    """Learn a word on the small model inside this package and show it."""

    concept: Concept = "toadstool"
    """What to learn; the model has no word for a fish, a key, a fir, a toadstool, a split heart, a badge or sepia."""
    folder: Path = field(default_factory=lambda: Path("demo"))
    """Folder for the run and its picture."""
    steps: int = 300
    """Optimizer steps."""
    seed: int = 0
    """Every random choice follows from it."""


def run(arguments: Sequence[str]) -> int:
    """Train, draw the contact sheet, and say how to go on."""
    check_choice("--concept", get_args(Concept), arguments)
    options = flags.parse(
        Options,
        arguments,
        "pseudoword demo",
        "Learn <toy> from five small pictures on the model inside this package: about a minute on a CPU.",
        examples=EXAMPLES,
        earlier=flags.RUN_FOLDER,
    )
    from pseudoword import watch

    watch.show_messages()
    folder = options.folder.expanduser()
    from pseudoword import demo, disk
    from pseudoword.progress import clock

    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    watch.follow(demo.learn(options.concept, folder, steps=options.steps, seed=options.seed))
    print(f"Learned {demo.TOKEN} in {clock(time.perf_counter() - began)}.")
    before, after = demo.losses(options.concept, folder)
    print(f"The fixed-draw loss went from {before:.4f} to {after:.4f}.")
    picture = demo.contact_sheet(options.concept, folder)
    print(f"\nThe picture: {picture.resolve()}")
    print(
        "\nWith your own pictures and a real model:\n"
        "  pseudoword train --model stable-diffusion-v1-5/stable-diffusion-v1-5 --token '<my-cat>' \\\n"
        "    --pictures my-cat/ --initializer cat --folder my-cat-run\n"
        "  pseudoword generate --model stable-diffusion-v1-5/stable-diffusion-v1-5 --embeds my-cat-run \\\n"
        "    --prompt 'a photo of <my-cat> on the beach' --output beach.png"
    )
    return 0
