"""A folder in which every stage of the toybox was trained for a step or two, at a tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest

from pseudoword.toybox.base import Sizes
from pseudoword.toybox.train_base import BaseOptions, train_base
from pseudoword.toybox.train_oracle import OracleOptions, train_oracle
from pseudoword.toybox.train_text import TextOptions, train_text
from pseudoword.toybox.train_vae import VaeOptions, train_vae


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, for all tests: those that write into it take a copy."""
    folder = tmp_path_factory.mktemp("trained")
    list(train_vae(vae_options(folder)))
    list(train_text(text_options(folder)))
    list(train_base(base_options(folder)))
    list(train_oracle(OracleOptions(folder, pictures=8, pairs=6, steps=2, batch_size=4)))
    return folder


def vae_options(folder: Path) -> VaeOptions:
    return VaeOptions(folder, pictures=8, steps=2, batch_size=2, channels=(8, 8, 8, 8), latent_channels=4)


SIZES = Sizes(text_width=32, text_layers=1, channels=(16, 16))


def text_options(folder: Path) -> TextOptions:
    return TextOptions(folder, steps=2, batch_size=4, sizes=SIZES)


def base_options(folder: Path) -> BaseOptions:
    return BaseOptions(folder, pictures=8, steps=3, decay=1, batch_size=4, sheet_every=100, sizes=SIZES)
