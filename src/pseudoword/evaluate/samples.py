"""Validation pictures: the same prompts and noise at several steps of a run, and the strip that shows them together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pseudoword import generate, layout, sheets
from pseudoword.contracts import Family
from pseudoword.recipe import Validation
from pseudoword.sheets import Line

GAP = 4
"""Pixels between pictures of a grid."""
COLUMNS = 8
"""Steps that a strip shows at most; of more, some evenly spread."""
TILE = 256
"""Pixels of a side that a picture on a strip has at most."""


class Samples:
    """The folder of a run's validation pictures: a grid for each step, a line of it for each prompt."""

    def __init__(self, folder: Path, options: Validation, resolution: int) -> None:
        self.folder, self.options, self.resolution = folder, options, resolution

    def path(self, step: int) -> Path:
        """Return where the grid of a step is, or would be."""
        return self.folder / f"step-{step:06}.png"

    def take(self, step: int, family: Family, rows: Mapping[str, np.ndarray]) -> Path:
        """Sample every prompt with rows of words that are lent already, and write the grid."""
        options, count = self.options, self.options.num_validation_images
        prompts, seeds = generate.repeated(options.validation_prompts, count, options.validation_seed)
        pictures = generate.sample(
            family,
            rows,
            prompts,
            options.validation_negative_prompt,
            generate.Sampling(
                steps=options.validation_sampling_steps,
                guidance_scale=options.validation_guidance_scale,
                sampler=options.validation_sampler,
                resolution=self.resolution,
            ),
            seeds=seeds,
            batch_size=count,
        )
        told = {
            "prompt": "\n".join(options.validation_prompts),
            "negative_prompt": options.validation_negative_prompt,
            "seed": str(options.validation_seed),
            "step": str(step),
        }
        grid = sheets.grid(pictures, count, GAP)
        return sheets.save(grid, self.path(step), {name: text for name, text in told.items() if text})

    def pictures(self, step: int) -> list[list[Image.Image]]:
        """Return the pictures of a step as they were sampled, a list for each prompt."""
        with Image.open(self.path(step)) as grid:
            image = grid.convert("RGB")
        options = self.options
        return sheets.cut(image, options.num_validation_images, len(options.validation_prompts), self.resolution, GAP)

    def strip(self) -> Path | None:
        """Write the first picture of every prompt at every step, side by side; None if there is but one step."""
        steps = [step for step, _ in layout.grids(self.folder) if self.fits(step)]
        if len(steps) < 2:
            return None
        shown = [steps[i] for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, COLUMNS)})]
        captions = [f"step {step}" if step else "before" for step in shown]
        columns = [[line[0] for line in self.pictures(step)] for step in shown]
        lines = [
            Line(prompt, [column[i] for column in columns], captions)
            for i, prompt in enumerate(self.options.validation_prompts)
        ]
        return sheets.save(sheets.sheet(lines, min(2 * self.resolution, TILE)), self.folder / layout.STRIP, {})

    def fits(self, step: int) -> bool:
        """Whether a step's grid has the layout of this run's, which may have been resumed with other options."""
        lines, count = len(self.options.validation_prompts), self.options.num_validation_images
        with Image.open(self.path(step)) as grid:
            prompts = grid.info.get("prompt", "")
            stride = self.resolution + GAP
            return prompts == "\n".join(self.options.validation_prompts) and grid.size == (
                count * stride - GAP,
                lines * stride - GAP,
            )
