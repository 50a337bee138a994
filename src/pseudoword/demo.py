"""The demo: learn `<toy>` on the small model inside this package, and one picture that shows what came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from pseudoword import sheets
from pseudoword.concept import Concept
from pseudoword.contracts import Family
from pseudoword.data.dataset import TextualInversionDataset
from pseudoword.evaluate.fixed_draw import fixed_draw_loss
from pseudoword.generate import Sampling, generate, load
from pseudoword.progress import Progress, clock
from pseudoword.recipe import BaseModel, Recipe
from pseudoword.sheets import Line
from pseudoword.toybox import suite
from pseudoword.toybox.render import SIDE
from pseudoword.training import train

log = logging.getLogger(__name__)

TOKEN = "<toy>"
BASE = BaseModel("toybox")
SCALE = 2
"""Pictures of the toybox have 64 pixels; they are shown twice as large."""
COLUMNS = 5
OBJECT_LINES = {
    "New scenes": {
        "in the grass": "a photo of a {} in the grass",
        "in the sea": "a photo of a {} in the sea",
        "at night": "a photo of a {} at night",
        "in the snow": "a photo of a {} in the snow",
        "on a purple background": "a photo of a {} on a purple background",
    },
    "New manners and company": {
        "mosaic": "a painting of a {} on a white background in the style of mosaic",
        "watercolor": "a painting of a {} in the snow in the style of watercolor",
        "neon": "a painting of a {} at night in the style of neon",
        "and a blue star": "a photo of a {} and a blue star on the sand",
        "on a yellow moon": "a photo of a {} on a yellow moon on a purple background",
    },
}
STYLE_LINES = {
    "New things": {
        "red heart": "a painting of a red heart on a white background in the style of {}",
        "blue house": "a painting of a blue house in the grass in the style of {}",
        "yellow moon": "a painting of a yellow moon at night in the style of {}",
        "striped ring": "a painting of a green striped ring with white stripes on the sand in the style of {}",
        "dotted arrow": "a painting of a purple dotted arrow with yellow dots in the snow in the style of {}",
    },
}
"""What the contact sheet shows beside plain pictures: headings, captions, and prompts with `{}` for the word."""


def recipe(concept: str, folder: Path, *, steps: int = 300, seed: int = 0) -> Recipe:
    """Write the pictures of one of the suite's concepts into a folder, and return the demo's recipe for it."""
    return suite.recipe(suite.NAMED[concept], folder, TOKEN, steps=steps, seed=seed)


def learn(concept: str, folder: Path, *, steps: int = 300, seed: int = 0) -> Iterator[Progress]:
    """Train the demo's word; see `train`."""
    return train(recipe(concept, folder, steps=steps, seed=seed))


def losses(concept: str, folder: Path) -> tuple[float, float]:
    """Return the fixed-draw loss of the word before and after the run in `folder`."""
    family = load(BASE)
    pictures = TextualInversionDataset(folder / "pictures", None, size=family.resolution, placeholder_token=TOKEN)
    return (
        fixed_draw_loss(family, _untrained(concept, family), pictures),
        fixed_draw_loss(family, Concept.load(folder), pictures),
    )


def _untrained(concept: str, family: Family) -> Concept:
    """Return the word as training finds it."""
    rows = {e: v.initial_rows(suite.NAMED[concept].initializer, 1)[0] for e, v in family.vocabularies.items()}
    return Concept(TOKEN, rows)


def contact_sheet(concept: str, folder: Path) -> Path:
    """Write the picture that shows the run in `folder`: given pictures, before, after, new scenes; return its path."""
    began = time.perf_counter()
    subject = suite.NAMED[concept]
    learned = Concept.load(folder)
    family = load(BASE)
    sampling = Sampling(seed=1, steps=20, guidance_scale=4.0)

    def sample(words: list[Concept], prompts: Sequence[str]) -> list[Image.Image]:
        asked = [prompt.format(TOKEN) for prompt in prompts]
        return generate(family, words, asked, sampling=sampling, batch_size=COLUMNS)

    before = _untrained(concept, family)
    plain = suite.prompts(subject)[0].text
    said = plain.format(TOKEN)
    lines = [
        Line("The pictures given", suite.pictures(subject)),
        Line(f"Before: “{said}” ({TOKEN} is still “{subject.initializer}”)", sample([before], [plain] * COLUMNS)),
        Line(f"After: “{said}”", sample([learned], [plain] * COLUMNS)),
    ]
    for heading, prompts in (STYLE_LINES if subject.kind == "style" else OBJECT_LINES).items():
        lines.append(Line(heading, sample([learned], list(prompts.values())), list(prompts)))
    path = sheets.save(sheets.sheet(lines, SIDE * SCALE), folder / "contact-sheet.png", {})
    log.info("Sampled %d pictures in %s", COLUMNS * (len(lines) - 1), clock(time.perf_counter() - began))
    return path
