"""Examples at the end of a command's `--help`."""

from __future__ import annotations

import argparse
from typing import TypedDict

TITLE = "examples:"


class Help(TypedDict):
    """Arguments of `add_parser`."""

    epilog: str
    formatter_class: type[argparse.HelpFormatter]


def examples(*commands: str) -> Help:
    return {"epilog": "\n".join((TITLE, *(f"  {command}" for command in commands))), "formatter_class": _Formatter}


class _Formatter(argparse.HelpFormatter):
    """Wraps all texts but the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(TITLE) else super()._fill_text(text, width, indent)
