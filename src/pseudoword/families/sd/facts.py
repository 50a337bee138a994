"""What is particular to Stable Diffusion 1.x and 2.x; no framework needed."""

from __future__ import annotations

from pseudoword.concept import encoder_of_width

PARTS = {"clip_l": "text_encoder"}
"""The pipeline's folder of each text encoder (SD 2.x names its encoder clip_h)."""


def encoders(width: int) -> tuple[str, ...]:
    """Return the file keys of the text encoders, given the first one's width."""
    return (encoder_of_width(width),)
