"""The parser of the command line: argparse, with a hint at what a misspelt name may stand for."""

from __future__ import annotations

import argparse
from typing import Any

from aibridge_addon.config.errors import did_you_mean

MAX_SHOWN = 64
"""Characters of a wrong name that an error repeats."""


class Parser(argparse.ArgumentParser):
    """Parsers of subcommands are of the same class."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(name) for name in action.choices]
            found = ascii(str(value)[:MAX_SHOWN])  # it may contain what a terminal acts on
            hint = did_you_mean(str(value)[:MAX_SHOWN], names)
            raise argparse.ArgumentError(action, f"{found} is none of: {', '.join(names)}{hint}")
