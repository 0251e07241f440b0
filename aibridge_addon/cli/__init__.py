"""The command `aibridge`, with one module for each subcommand.

Each module has a function `add(commands)`. It adds a parser whose default `run` is a function that takes the parsed
arguments and returns the exit code: 0 well, 1 failed, 2 wrong use. It may raise ConfigError and DatabaseUnavailable.
A command that changes something raises KeyboardInterrupt with a text that says what was done until then.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

from aibridge_addon.cli import config, export, import_, live, prune, purge, report, script, sessions, tokens
from aibridge_addon.config.errors import ConfigError
from aibridge_addon.records import DatabaseUnavailable

FAILED = 1
WRONG_USE = 2
COMMANDS = (script, config, report, sessions, tokens, prune, purge, export, import_, live)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="aibridge", description="Tools for the mitmproxy addon AI Bridge.")
    made.add_argument("--version", action="version", version=f"aibridge {version('aibridge-mitmproxy')}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except ConfigError as e:
        print(e, file=sys.stderr)
        return WRONG_USE
    except DatabaseUnavailable as e:
        print(e, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as e:
        print(f"interrupted: {e}" if e.args else "interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader has ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's last flush fails, too
        return 128 + signal.SIGPIPE
    return code
