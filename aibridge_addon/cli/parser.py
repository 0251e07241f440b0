"""The parser of the command line: argparse, with a hint at what a misspelt name may stand for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from aibridge_addon.config.errors import did_you_mean

MAX_SHOWN = 64
"""Characters of a wrong name that an error repeats."""


class Parser(argparse.ArgumentParser):
    """Parsers of subcommands are of the same class. Each has `--version`."""

    rest: str | None = None
    """Where words that the parser does not know go, for another program. None: they are errors."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.add_argument("--version", action=_Version, nargs=0, help="print the version, and end")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.rest is None:
            if args is not None:
                self._check_options(args)
            return super().parse_known_args(args, namespace)
        found, rest = super().parse_known_args(args, namespace)
        setattr(found, self.rest, [word for word in rest if word != "--"])
        return found, []

    def _check_options(self, arguments: Sequence[str]) -> None:
        """Refuse an unknown option by its name. argparse would first complain about what follows it.

        What stands behind a subcommand or a program to run is read by another parser.
        """
        has_rest = any(action.nargs in (argparse.REMAINDER, argparse.PARSER) for action in self._actions)
        known = [option for option in self._option_string_actions if option.startswith("--")]
        words = iter(arguments)
        for word in words:
            if word == "--" or (has_rest and not word.startswith("-")):
                return
            name, has_value, _ = word.partition("=")
            if not name.startswith("--"):
                continue
            meant = [option for option in known if option.startswith(name)]  # argparse accepts beginnings of names
            if not meant:
                self.error(f"unknown option {_shown(name)}{did_you_mean(name[:MAX_SHOWN], known)}")
            if not has_value and self._option_string_actions[meant[0]].nargs is None:
                next(words, None)

    def error(self, message: str) -> NoReturn:
        """Report wrong use, and end. Where an action is missing, name the actions."""
        for action in self._subparsers._group_actions if self._subparsers is not None else ():
            if message.endswith(f"required: {action.metavar}") and action.choices:
                message += f" (one of {', '.join(map(str, action.choices))})"
        super().error(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(name) for name in action.choices]
            hint = did_you_mean(str(value)[:MAX_SHOWN], names)
            raise argparse.ArgumentError(action, f"{_shown(value)} is none of: {', '.join(names)}{hint}")


class _Version(argparse.Action):
    """Print the version. It is looked up only when it is asked for, since that reads a file."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"aibridge {version('aibridge-mitmproxy')}")
        parser.exit()


def _shown(value: object) -> str:
    """Return a wrong word without what a terminal acts on."""
    return ascii(str(value)[:MAX_SHOWN])
