"""Textual Inversion on Stable Diffusion XL, with the flags of the script in diffusers' guide.

    accelerate launch textual_inversion_sdxl.py \
      --pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 --train_data_dir cat --resolution 768 \
      --placeholder_token "<cat-toy>" --initializer_token toy --mixed_precision bf16 --max_train_steps 500

Its flags are those of textual_inversion.py beside it, but for a few; which, and what differs, is in README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import textual_inversion

NOT_HERE = ("--tokenizer_name", "--validation_epochs", "--only_save_embeds", "--no_safe_serialization")
"""Flags that the guide has for Stable Diffusion 1.x and 2.x alone."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the guide's flags for Stable Diffusion XL."""
    flags = textual_inversion.parser()
    flags.usage = str(flags.usage).replace("textual_inversion.py", "textual_inversion_sdxl.py")
    flags.description = "Teach Stable Diffusion XL a new word from a folder of pictures."
    textual_inversion.leave_out(flags, NOT_HERE)
    flags.add_argument(
        "--use_8bit_adam", action="store_true", help="changes nothing: AdamW's state of a few rows is kilobytes"
    )
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the guide's command line and return its exit code."""
    return textual_inversion.main(arguments, parser)


if __name__ == "__main__":
    sys.exit(main())
