"""Tests mirror src; none of them asks the Hub, and annotated shapes are checked while they run."""

import os

from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported, so it is set before everything
SHAPED = ("batch", "data.examples", "data.images", "families", "objectives", "schedules", "vocabulary")
install_import_hook([f"pseudoword.{module}" for module in SHAPED], "beartype.beartype")
