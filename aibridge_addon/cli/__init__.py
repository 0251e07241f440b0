"""The command `aibridge`, with one module for each subcommand.

Each module has a function `add(commands)`. It adds a parser whose default `run` is a function that takes the parsed
arguments and returns the exit code.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from aibridge_addon.cli import config, script

COMMANDS = (script, config)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="aibridge", description="Tools for the mitmproxy addon AI Bridge.")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's last flush fails, too
        return 128 + signal.SIGPIPE
    return code
