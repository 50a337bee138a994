"""Textual Inversion with JAX, on TPUs, GPUs and CPUs, with the flags of the guide's Flax script.

    python textual_inversion_flax.py \
      --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --train_data_dir cat \
      --placeholder_token "<cat-toy>" --initializer_token toy --train_batch_size 1 --max_train_steps 3000 \
      --learning_rate 5e-4

Nothing of PyTorch is needed: requirements_flax.txt. The flags are those of textual_inversion.py beside it, but for a
few; which, and what differs from the guide's script, is in README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import textual_inversion

NOT_HERE = (
    "--config",
    "--enable_xformers_memory_efficient_attention",
    "--save_as_full_pipeline",
    "--only_save_embeds",
    "--no_safe_serialization",
)
"""Flags of what only PyTorch does."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the guide's flags for Flax, and of what this engine adds: checkpoints, validation, bf16."""
    flags = textual_inversion.parser()
    textual_inversion.leave_out(flags, NOT_HERE)
    flags.usage = str(flags.usage).replace("textual_inversion.py", "textual_inversion_flax.py")
    flags.description = "Teach Stable Diffusion a new word from a folder of pictures, with JAX."
    flags.add_argument(
        "--use_auth_token", action="store_true", help="changes nothing: the Hub login is used where there is one"
    )
    flags.set_defaults(engine="jax", seed=42, scale_lr=True)
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the guide's command line and return its exit code."""
    return textual_inversion.main(arguments, parser)


if __name__ == "__main__":
    sys.exit(main())
