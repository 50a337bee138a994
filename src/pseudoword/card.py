"""The model card of a learned word: what it is, how to use it, how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from huggingface_hub import ModelCardData

from pseudoword import disk, families, formats
from pseudoword.concept import Concept
from pseudoword.families import locate
from pseudoword.families.single_file import is_single_file
from pseudoword.layout import SAMPLES, STRIP, grids
from pseudoword.recipe import Recipe

NAME = "README.md"
"""What the Hub takes a repository's card to be."""
TAGS = ("text-to-image", "diffusers", "textual_inversion")
"""What the Hub calls every word, whatever the family."""
SHOWN = re.compile(rf"(?<![\w./-]){SAMPLES}/[\w-][\w.-]*\.png")
PROMPTS = {"object": "a photo of {}", "style": "a painting in the style of {}"}
"""What to ask of a word by itself."""


def write_card(concept: Concept, recipe: Recipe, batch: int, folder: Path, prompts: Sequence[str] = ()) -> Path:
    """Write README.md into the word's folder: how it was made with `batch` pictures a step, and the sampled prompts."""
    return disk.write(folder / NAME, card(concept, folder, recipe, batch, prompts))


def card(
    concept: Concept, folder: Path, recipe: Recipe | None = None, batch: int | None = None, prompts: Sequence[str] = ()
) -> str:
    """Return the card of the word in a folder as Markdown with the Hub's metadata block; without a recipe it says less.

    `prompts` become the page's examples; without any, the word's own prompt does.
    """
    family = families.of_word(concept.rows) if recipe else None
    facts = families.part(family[0], "facts") if family else None
    own_prompt = PROMPTS[concept.property].format(concept.token)
    base, picture = _on_hub(concept, recipe), picture_in(folder)
    is_file = is_single_file(concept.base)
    place = f"path/to/{PurePath(concept.base).name}" if is_file else "path/to/the/base"
    metadata = ModelCardData(
        base_model=base,
        library_name="diffusers",
        tags=[*(facts.TAGS if facts else ()), *TAGS],
        instance_prompt=own_prompt,
        widget=_widget(prompts or [own_prompt], picture),
    )
    pipeline = facts.PIPELINE if facts else "DiffusionPipeline"
    clip_skip = f", clip_skip={recipe.base.clip_skip}" if recipe and recipe.base.clip_skip else ""
    return f"""---
{metadata.to_yaml()}
---
# {_code(concept.token)}

{_summary(concept, batch)}
{_shown(picture)}
```python
{_imported(concept)}from diffusers import {pipeline}

pipeline = {pipeline}.{"from_single_file" if is_file else "from_pretrained"}({json.dumps(base or place)})
{_loading(concept)}  # or this repository's name on the Hub
pipeline({json.dumps(own_prompt, ensure_ascii=False)}{clip_skip}).images[0].save("picture.png")
```

| file | for |
|---|---|
{_files(folder)}"""


def _imported(concept: Concept) -> str:
    return "" if len(concept.rows) == 1 else "import pseudoword  # pip install pseudoword\n"


def _loading(concept: Concept) -> str:
    """Return the call that loads a word: diffusers' own takes files of one text encoder only."""
    call = "pipeline.load_textual_inversion(" if len(concept.rows) == 1 else "pseudoword.load(pipeline, "
    return f'{call}"path/to/this/folder")'


def picture_in(folder: Path) -> str | None:
    """Return which of a run's sample pictures its card shows, by its path in the folder."""
    samples = folder / SAMPLES
    if (samples / STRIP).is_file():
        return f"{SAMPLES}/{STRIP}"
    newest = grids(samples)[-1:]
    return f"{SAMPLES}/{newest[0][1].name}" if newest else None


def pictures_shown(text: str) -> list[str]:
    """Return the sample pictures that a card refers to, by their paths in its folder."""
    return sorted(set(SHOWN.findall(text)))


def _on_hub(concept: Concept, recipe: Recipe | None) -> str | None:
    """Return the base's Hub id, if that is what it is."""
    base = concept.base
    looks_like_one = base.count("/") == 1 and locate.HUB_ID.fullmatch(base)
    if not looks_like_one or is_single_file(base) or (recipe and Path(recipe.base.model).expanduser().exists()):
        return None
    return locate.MOVED.get(base, base)


def _widget(prompts: Sequence[str], picture: str | None) -> list[dict[str, object]]:
    """Return the page's examples; the picture goes with the first, as one picture holds them all."""
    examples: list[dict[str, object]] = [{"text": prompt} for prompt in prompts]
    if picture:
        examples[0]["output"] = {"url": picture}
    return examples


def _summary(concept: Concept, batch: int | None) -> str:
    kind = "an object" if concept.property == "object" else "an artistic style"
    parts = [kind, "1 vector" if concept.num_vectors == 1 else f"{concept.num_vectors} vectors"]
    if concept.steps:
        parts.append(f"{concept.steps} steps" + (f" of {batch} picture{'s' * (batch != 1)}" if batch else ""))
    for_base = f" for {_code(concept.base)}" if concept.base else ""
    inversion = "[Textual Inversion](https://huggingface.co/papers/2208.01618)"
    return f"A word{for_base}, learned by {inversion}:\n{', '.join(parts)}."


def _shown(picture: str | None) -> str:
    if not picture:
        return ""
    return f"\n![Pictures of the validation prompts]({picture})\n"


def _files(folder: Path) -> str:
    """Return the lines of the table of the word's files."""
    present = formats.files_in(folder)
    several = any(name in formats.FURTHER_IN_FOLDER for name in present)
    how = "`pseudoword.load`" if several else "`load_textual_inversion`"
    exports = [f"exports/{path.name}" for path in formats.exports_in(folder)]
    lines = [
        (present, f"diffusers, with {how}"),
        (
            exports,
            "A1111, Forge, ComfyUI, InvokeAI: put it with their embeddings; there you call the word by its file's name",
        ),
        (
            [name for name in formats.TOLD_IN_FOLDER if (folder / name).is_file()],
            "the placeholder token and whether it is an object or a style",
        ),
    ]
    return "".join(f"| {', '.join(f'`{name}`' for name in names)} | {use} |\n" for names, use in lines if names)


def _code(text: str) -> str:
    """Return text as a Markdown code span, whatever it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"`{text}`"
