"""Where a word's rows start: a known word or phrase, or an embedding file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pseudoword import formats
from pseudoword.contracts import Method
from pseudoword.errors import RecipeError
from pseudoword.formats import webui
from pseudoword.recipe import ConceptRecipe
from pseudoword.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def starting_rows(vocabularies: Mapping[str, Vocabulary], wanted: ConceptRecipe) -> dict[str, np.ndarray]:
    """Lend the word to a base's vocabularies and return its starting rows; TokenError or RecipeError if it cannot."""
    file = file_of(wanted)
    earlier = formats.read(file) if file else None
    rows = {}
    for encoder, vocabulary in vocabularies.items():
        vocabulary.lend(wanted.token, wanted.num_vectors)
        if earlier is None:
            rows[encoder], how = vocabulary.initial_rows(wanted.initializer, wanted.num_vectors)
            log.info("%s: %s", wanted.token, how)
            continue
        rows[encoder] = vocabulary.rows_of(earlier, encoder)
        if earlier.num_vectors != wanted.num_vectors:
            raise RecipeError(
                f"The initializer {wanted.initializer} has {earlier.num_vectors} vector(s), "
                f"but num_vectors is {wanted.num_vectors}; make them equal."
            )
        log.info("%s: starts from the rows of %s in %s", wanted.token, earlier.token, file)
    return rows


def starting_state(wanted: ConceptRecipe, rows: Mapping[str, np.ndarray], method: Method) -> dict[str, np.ndarray]:
    """Return the optimizer state that A1111 left beside the file that the rows are from; empty if there is none."""
    file = file_of(wanted)
    if file is None or file.is_dir():
        return {}
    [(encoder, block), *more] = rows.items()
    found = None if more else webui.optimizer_beside(file, block)
    if found is None:
        return {}
    log.info("%s: goes on with the optimizer's state of %d steps from %s.optim", wanted.token, found[2], file)
    return method.state_of_adam(encoder, *found)


def file_of(wanted: ConceptRecipe) -> Path | None:
    """Return the file or folder that a concept starts from; None if it starts from a word."""
    file = Path(wanted.initializer).expanduser()
    holds_a_word = any((file / name).is_file() for name in formats.IN_FOLDER)
    is_folder = file.is_dir() and (holds_a_word or wanted.initializer != file.name)  # 'cat' beside ./cat is the word
    return file if file.suffix.lower() in formats.ENDINGS or is_folder else None
