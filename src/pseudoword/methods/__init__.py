"""The table of methods: how a word's rows are parametrised and updated."""

from __future__ import annotations

from typing import Any

from pseudoword.contracts import Method
from pseudoword.methods.classic import Classic
from pseudoword.settings import MethodOptions

METHODS: dict[str, Any] = {"classic": Classic}
OPTIONS: dict[str, type] = {name: method.Options for name, method in METHODS.items()}


def build(options: MethodOptions) -> Method:
    """Return the method that these options are for."""
    return METHODS[options.name](options)
