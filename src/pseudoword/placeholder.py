"""Placeholder tokens: what can be one, and the tokens of a word of several vectors."""

from __future__ import annotations

from pseudoword.encoders import CALLED
from pseudoword.errors import TokenError

LONGEST = 100
"""Characters of a token; its name is also a file's."""


KEYS = frozenset(f"{name}{end}" for name in ("emb_params", "emp_params", *CALLED) for end in ("", "_out")) | {
    "__metadata__",
    "string_to_param",
    "string_to_token",
    "text_encoders_0",
    "text_encoders_1",
}
"""What embedding files call their parts."""


def check_token(token: str) -> None:
    """Raise TokenError unless `token` can be written in a prompt as one word."""
    if len(token) > LONGEST:
        raise TokenError(f"The placeholder token has {len(token)} characters; choose one of at most {LONGEST}.")
    if not token or token != token.strip() or any(c.isspace() or not c.isprintable() for c in token):
        raise TokenError(
            f"The placeholder token must be one word of printable characters without spaces, but is {token!r}; "
            "try something like '<cat-toy>'."
        )


def is_key(token: str) -> bool:
    """Whether files of words give a name of their own to something, which a word's token must not be."""
    return token in KEYS or token.startswith("bundle_emb.")


def check_new_token(token: str) -> None:
    """Raise TokenError unless a word can be learned under this token, and be written in every format."""
    check_token(token)
    if is_key(token):
        raise TokenError(f"The placeholder token {token!r} is a name that files of words use; try '<{token}>'.")


def vector_tokens(token: str, num_vectors: int) -> list[str]:
    """Return the tokens of a word of several vectors: `<t>`, `<t>_1`, … `<t>_{n-1}`."""
    return [token, *(f"{token}_{i}" for i in range(1, num_vectors))]
