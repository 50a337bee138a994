"""Tests mirror src; none of them asks the Hub."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported, so it is set before everything
