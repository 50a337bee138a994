"""The model card of a learned word."""

from __future__ import annotations

from pathlib import Path

from pseudoword import disk
from pseudoword.concept import Concept
from pseudoword.formats import stem_of
from pseudoword.recipe import Recipe

TAGS = ("stable-diffusion", "stable-diffusion-diffusers", "text-to-image", "diffusers", "textual_inversion")


def write_card(concept: Concept, recipe: Recipe, folder: Path) -> Path:
    """Write README.md: what the word is, how to use it, how it was made."""
    return disk.write(folder / "README.md", card(concept, recipe))


def card(concept: Concept, recipe: Recipe) -> str:
    """Return the model card as Markdown with the Hub's metadata block."""
    tags = "".join(f"- {tag}\n" for tag in TAGS)
    on_hub = concept.base.count("/") == 1
    base = f"base_model: {concept.base}\n" if on_hub else ""
    prompt = (
        f"a photo of {concept.token}" if concept.property == "object" else f"a painting in the style of {concept.token}"
    )
    vectors = "1 vector" if concept.num_vectors == 1 else f"{concept.num_vectors} vectors"
    suffix = "safetensors" if recipe.output.safe_serialization else "bin"
    files = [f"`learned_embeds.{kind}`" for kind in dict.fromkeys([suffix, "bin"])]
    export = f"`exports/{stem_of(concept.token)}.{suffix}`"
    return f"""---
{base}tags:
{tags}---
# {concept.token}

A word for `{concept.base}`, learned by [Textual Inversion](https://huggingface.co/papers/2208.01618):
an {"object" if concept.property == "object" else "artistic style"}, {vectors}, {concept.steps} steps of
{recipe.training.batch_size * recipe.training.gradient_accumulation_steps} pictures.

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("{concept.base}")
pipeline.load_textual_inversion("path/to/this/folder")
pipeline("{prompt}").images[0].save("picture.png")
```

| file | for |
|---|---|
| {", ".join(files)} | diffusers, with `load_textual_inversion` |
| {export} | A1111, Forge, ComfyUI, InvokeAI: put it with their embeddings; its name is the word |
| `token_identifier.txt`, `type_of_concept.txt` | the placeholder token and whether it is an object or a style |
"""
