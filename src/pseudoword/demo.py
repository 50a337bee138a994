"""The demo: learn `<toy>` on the small model inside this package, and one picture that shows what came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pseudoword import sheets, toybox
from pseudoword.concept import Concept
from pseudoword.contracts import Family
from pseudoword.data.dataset import TextualInversionDataset
from pseudoword.evaluate.fixed_draw import fixed_draw_loss
from pseudoword.generate import Sampling, generate, load
from pseudoword.methods.classic import ClassicOptions
from pseudoword.progress import Progress
from pseudoword.recipe import BaseModel, ConceptRecipe, Output, Recipe, Schedule, Training
from pseudoword.sheets import Line
from pseudoword.training import train

log = logging.getLogger(__name__)

TOKEN = "<toy>"
BASE = BaseModel("toybox")
SCALE = 2
"""Pictures of the toybox have 64 pixels; they are shown twice as large."""
SCENES = ("in the grass", "on the sand", "in the sea", "at night", "in the snow")
CONCEPTS = {"star": "circle", "fish": "circle", "key": "ring"}
"""The example concepts, and the words they start from."""


def recipe(concept: str, folder: Path, *, steps: int = 300, seed: int = 0) -> Recipe:
    """Return the demo's recipe for one of the example concepts."""
    return Recipe(
        concepts=(ConceptRecipe(TOKEN, str(toybox.PICTURES / concept), CONCEPTS[concept]),),
        base=BASE,
        method=ClassicOptions(),
        training=Training(seed=seed, batch_size=4),
        schedule=Schedule(steps=str(steps), learning_rate=2e-2, lr_warmup_steps=10),
        output=Output(folder=str(folder), save_steps=steps, checkpointing_steps=100),
    )


def learn(concept: str, folder: Path, *, steps: int = 300, seed: int = 0) -> Iterator[Progress]:
    """Train the demo's word; see `train`."""
    return train(recipe(concept, folder, steps=steps, seed=seed))


def losses(concept: str, folder: Path) -> tuple[float, float]:
    """Return the fixed-draw loss of the word before and after the run in `folder`."""
    family = load(BASE)
    pictures = TextualInversionDataset(toybox.PICTURES / concept, None, size=family.resolution, placeholder_token=TOKEN)
    return (
        fixed_draw_loss(family, _untrained(concept, family), pictures),
        fixed_draw_loss(family, Concept.load(folder), pictures),
    )


def _untrained(concept: str, family: Family) -> Concept:
    """Return the word as training finds it."""
    rows = {e: v.initial_rows(CONCEPTS[concept], 1)[0] for e, v in family.vocabularies.items()}
    return Concept(TOKEN, rows)


def contact_sheet(concept: str, folder: Path) -> Path:
    """Write the picture that shows the run in `folder`: given pictures, before, after, new scenes; return its path."""
    began = time.perf_counter()
    learned = Concept.load(folder)
    family = load(BASE)
    sampling = Sampling(seed=1, steps=20, guidance_scale=4.0)
    columns = 5

    def sample(words: list[Concept], prompts: list[str]) -> list[Image.Image]:
        return generate(family, words, prompts, sampling=sampling, batch_size=columns)

    before = _untrained(concept, family)
    plain = f"a photo of a {TOKEN}"
    given = [Image.open(p).convert("RGB") for p in sorted((toybox.PICTURES / concept).glob("*.png"))]
    lines = [
        Line("The pictures given", given[:columns]),
        Line(f"Before: “{plain}” ({TOKEN} is still “{CONCEPTS[concept]}”)", sample([before], [plain] * columns)),
        Line(f"After: “{plain}”", sample([learned], [plain] * columns)),
        Line(f"New scenes: “{plain} …”", sample([learned], [f"{plain} {scene}" for scene in SCENES]), SCENES),
    ]
    path = sheets.save(sheets.sheet(lines, given[0].width * SCALE), folder / "contact-sheet.png", {})
    log.info("Sampled %d pictures in %.1f s", 3 * columns, time.perf_counter() - began)
    return path
