"""Placeholder tokens: what can be one, and the tokens of a word of several vectors."""

from __future__ import annotations

from pseudoword.errors import TokenError

LONGEST = 100
"""Characters of a token; its name is also a file's."""


def check_token(token: str) -> None:
    """Raise TokenError unless `token` can be written in a prompt as one word."""
    if len(token) > LONGEST:
        raise TokenError(f"The placeholder token has {len(token)} characters; choose one of at most {LONGEST}.")
    if not token or token != token.strip() or any(c.isspace() or not c.isprintable() for c in token):
        raise TokenError(
            f"The placeholder token must be one word of printable characters without spaces, but is {token!r}; "
            "try something like '<cat-toy>'."
        )


def vector_tokens(token: str, num_vectors: int) -> list[str]:
    """Return the tokens of a word of several vectors: `<t>`, `<t>_1`, … `<t>_{n-1}`."""
    return [token, *(f"{token}_{i}" for i in range(1, num_vectors))]
