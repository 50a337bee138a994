"""A command in a process of its own: what it says goes into a log, how long it took and how much memory into a dict."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def carried_out(command: Sequence[str], log: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Carry out a command and return when it began, its seconds, its processor seconds and the most memory it held."""
    began = time.time()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise subprocess.CalledProcessError(code, [*command, f"(its log: {log})"])
    return {
        "began": began,
        "seconds": round(time.time() - began, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": usage.ru_maxrss // 1024,
    }
