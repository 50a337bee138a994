"""One module a command: its options as a dataclass, and `run(arguments)`, which returns the exit code."""
