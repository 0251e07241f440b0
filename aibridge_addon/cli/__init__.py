"""The command `aibridge`: one module for each of its subcommands.

A subcommand's module has `add(commands)`, which describes it to argparse and names the function that runs it; that
function takes the parsed arguments and returns the exit code.
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
    made = argparse.ArgumentParser(prog="aibridge", description="What goes with the mitmproxy addon AI Bridge.")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor can the rest be written at the exit
        return 128 + signal.SIGPIPE
    return code
