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
from importlib import import_module
from keyword import iskeyword

from aibridge_addon.cli.examples import examples
from aibridge_addon.cli.parser import Parser
from aibridge_addon.config.errors import ConfigError
from aibridge_addon.records import DatabaseUnavailable

FAILED = 1
WRONG_USE = 2
COMPLETES = "_ARGCOMPLETE"
COMMANDS = (
    "run",
    "serve",
    "env",
    "doctor",
    "certs",
    "script",
    "config",
    "report",
    "sessions",
    "live",
    "web",
    "tools",
    "tokens",
    "prune",
    "purge",
    "export",
    "import",
    "completion",
)


EXAMPLES = examples(
    'aibridge run -- claude -p "say hello"',
    "aibridge report models --since 2026-11-01",
    "aibridge report --help",
)


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Create the parser of the command line.

    `command`: the only command that is wanted, since it takes half a second to import the modules of all. None: all.
    """
    made = Parser(prog="aibridge", description="Tools for the mitmproxy addon AI Bridge.", **EXAMPLES)
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS if command is None else (command,):
        import_module(f"{__name__}.{name}{'_' * iskeyword(name)}").add(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if COMPLETES in os.environ:  # the shell asks for the words that may follow
        import argcomplete

        argcomplete.autocomplete(parser())
    parsed = parser(arguments[0] if arguments and arguments[0] in COMMANDS else None).parse_args(arguments)
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
