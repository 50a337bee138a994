"""What can be refused: each error's message is one sentence on what was expected, what came and what to try."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of what a library's error says, or its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class PseudowordError(Exception):
    """Anything that a person can mend; commands print the message and end with code 1."""


class RecipeError(PseudowordError):
    """A recipe that cannot be carried out."""


class TokenError(PseudowordError):
    """A placeholder token, initializer or word that cannot be taken."""


class PicturesError(PseudowordError):
    """A folder from which nothing can be learned."""


class MeasureUnavailable(RecipeError):
    """A pretrained model to measure with that is neither on this machine nor can be downloaded."""


class CaptionError(PseudowordError):
    """A caption in which the word to learn is missing or cut off."""


class FormatError(PseudowordError):
    """A file that is no embedding, or not one that can be read."""


class NoWord(FormatError):
    """A file of another kind, in which there is no word: a picture, a LoRA."""


class RunError(PseudowordError):
    """A run's folder or checkpoint that cannot be used."""


class OutOfMemory(PseudowordError):
    """A base model, or one picture, that does not fit into a device's memory."""


class HubError(PseudowordError):
    """A push that the Hub, or the Hub's client, refuses."""


class HubUnreachable(HubError):
    """A Hub that is busy, failing or out of reach; the same push may pass later."""


class Interrupted(PseudowordError):
    """A command ended by a signal, with the exit code that shells expect."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class TrainingStopped(PseudowordError):
    """Training that cannot continue; the message names the last checkpoint."""
