"""The model card of a learned word."""

from __future__ import annotations

import json
from pathlib import Path

from pseudoword import disk, families
from pseudoword.concept import Concept
from pseudoword.families.single_file import is_single_file
from pseudoword.formats import stem_of
from pseudoword.recipe import Recipe

TAGS = ("text-to-image", "diffusers", "textual_inversion")
"""What the Hub calls every word, whatever the family."""


def write_card(concept: Concept, recipe: Recipe, batch: int, folder: Path) -> Path:
    """Write README.md: what the word is, how to use it, how it was made with `batch` pictures a step."""
    return disk.write(folder / "README.md", card(concept, recipe, batch))


def card(concept: Concept, recipe: Recipe, batch: int) -> str:
    """Return the model card as Markdown with the Hub's metadata block."""
    facts = families.part(recipe.base.family, "facts")
    tags = "".join(f"- {tag}\n" for tag in (*facts.TAGS, *TAGS))
    is_file = is_single_file(recipe.base.model)
    on_hub = concept.base.count("/") == 1 and not is_file
    place = concept.base if on_hub else f"path/to/{concept.base}" if is_file else "path/to/the/base"
    is_object = concept.property == "object"
    prompt = f"a photo of {concept.token}" if is_object else f"a painting in the style of {concept.token}"
    vectors = "1 vector" if concept.num_vectors == 1 else f"{concept.num_vectors} vectors"
    pictures = "1 picture" if batch == 1 else f"{batch} pictures"
    suffix = recipe.output.suffix
    files = [f"`learned_embeds{kind}`" for kind in dict.fromkeys([suffix, ".bin"])]
    export = f"`exports/{stem_of(concept.token)}{suffix}`"
    clip_skip = f", clip_skip={recipe.base.clip_skip}" if recipe.base.clip_skip else ""
    return f"""---
{f"base_model: {concept.base}" + chr(10) if on_hub else ""}tags:
{tags}---
# `{concept.token}`

A word for `{concept.base}`, learned by [Textual Inversion](https://huggingface.co/papers/2208.01618):
an {"object" if is_object else "artistic style"}, {vectors}, {concept.steps} steps of {pictures}.

```python
from diffusers import {facts.PIPELINE}

pipeline = {facts.PIPELINE}.{"from_single_file" if is_file else "from_pretrained"}("{place}")
pipeline.load_textual_inversion("path/to/this/folder")
pipeline({json.dumps(prompt, ensure_ascii=False)}{clip_skip}).images[0].save("picture.png")
```

| file | for |
|---|---|
| {", ".join(files)} | diffusers, with `load_textual_inversion` |
| {export} | A1111, Forge, ComfyUI, InvokeAI: put it with their embeddings; there you call the word by its file's name |
| `token_identifier.txt`, `type_of_concept.txt` | the placeholder token and whether it is an object or a style |
"""
