"""Programs in processes of their own that begin their work at the same moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence


def run_together(program: str, arguments: Sequence[Sequence[str]], timeout: float) -> None:
    """Run a Python program once for each of these arguments, and check that all of them succeed.

    It prints `ready`, and waits for a line before it begins. `timeout` is in seconds, for each.
    """
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, "-c", program, *given], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for given in arguments
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        results = [process.communicate("go\n", timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * len(processes), results
