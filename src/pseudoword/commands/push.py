"""`pseudoword push`: upload a learned word to the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

import tyro

from pseudoword import flags


@dataclass(frozen=True)
class Options:
    """Upload a learned word, its card and the pictures that the card shows to the Hub; nothing else in the folder.

    The token is HF_TOKEN's or that of the Hub login (`hf auth login`). What is not given is as in the run's recipe.
    """

    run: Annotated[str, tyro.conf.Positional]
    """A finished run's folder, or another that holds a learned word."""
    hub_model_id: Optional[str] = None
    """Repository to push to, 'name' or 'owner/name'; by default the folder's name under the token's user."""
    hub_private: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make the repository a private one, and refuse one that is public."""
    hub_branch: Optional[str] = None
    """Branch to push to, made if it is missing; by default main."""


def run(arguments: Sequence[str]) -> int:
    """Push, and say where to."""
    options = flags.parse(
        Options,
        arguments,
        "pseudoword push",
        Options.__doc__ or "",
        examples=("pseudoword push cat-run --hub-model-id someone/my-cat",),
        earlier={"--private": "--hub-private", "--branch": "--hub-branch"},
    )
    from pseudoword import watch

    watch.show_messages()
    from pseudoword import hub
    from pseudoword.recipe import Output

    recipe = hub.recipe_in(Path(options.run).expanduser())
    output = recipe.output if recipe else Output()
    url = hub.push(
        options.run,
        options.hub_model_id or output.hub_model_id,
        private=options.hub_private or output.hub_private,
        branch=options.hub_branch or output.hub_branch,
    )
    print(f"The word is on the Hub: {url}")
    return 0
