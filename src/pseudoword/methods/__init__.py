"""The table of methods: how a word's rows are parametrised and updated."""

from __future__ import annotations

from pseudoword.contracts import Method
from pseudoword.methods.classic import Classic, ClassicOptions
from pseudoword.recipe import MethodOptions

METHODS: dict[str, type] = {"classic": Classic}
OPTIONS: dict[str, type] = {"classic": ClassicOptions}


def build(options: MethodOptions) -> Method:
    """Return the method that these options are for."""
    return METHODS[options.name](options)
