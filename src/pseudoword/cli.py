"""The `pseudoword` command: dispatches on its first word before anything heavy is imported."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "learn a new word from a folder of pictures",
    "check": "say what training would make of your pictures and captions, without training",
    "generate": "make pictures with learned words in the prompt",
    "evaluate": "measure how good words are, and write a report with pictures",
    "sweep": "train one recipe with several settings, and compare the words",
    "inspect": "say what an embedding file holds, and which tools load it",
    "convert": "write words as the files of other tools",
    "algebra": "merge, concatenate, subtract, scale or prune words",
    "push": "upload a learned word to the Hub",
    "demo": "learn a word on the small model inside this package and show it",
    "toybox": "look at the drawn world of that small model, and train it",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "--help-all", "help"):
        from pseudoword.flags import help as help_page

        print(
            help_page.table(
                "pseudoword", "Teach a text-to-image model a new word from a handful of pictures.", COMMANDS
            )
        )
        print("pseudoword --version tells the version.")
        return 0 if words else 2
    if words[0] == "--version":
        from pseudoword import __version__

        print(f"pseudoword {__version__}")
        return 0
    if words[0] not in COMMANDS:
        from pseudoword.spelling import did_you_mean

        hint = did_you_mean(words[0], COMMANDS)
        print(
            f"error: there is no command {words[0]!r}; the commands are {', '.join(COMMANDS)}.{hint}", file=sys.stderr
        )
        return 2
    from pseudoword.errors import Interrupted, PseudowordError

    try:
        return importlib.import_module(f"pseudoword.commands.{words[0]}").run(words[1:])
    except Interrupted as error:
        ended, code = str(error), error.code
    except PseudowordError as error:
        ended, code = f"error: {error}", 1
    except KeyboardInterrupt:
        ended, code = "Interrupted. Training goes on with --resume latest, any other command when given again.", 130
    except BrokenPipeError:  # whoever read our output has enough; keep the interpreter's exit quiet about it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    from pseudoword.watch import is_main_process, wrapped

    if is_main_process():
        ended = wrapped(ended)
        print(ended, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
