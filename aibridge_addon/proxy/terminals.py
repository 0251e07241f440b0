"""Distinguish the SIGHUP of a closed terminal from one that asks for a reload."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


class Terminals:
    """The standard streams that are terminals when this is created."""

    def __init__(self) -> None:
        self._streams = [stream for stream in (sys.stdin, sys.stdout, sys.stderr) if _is_terminal(stream)]

    @property
    def are_open(self) -> bool:
        """Whether all of them still are. The system sends SIGHUP when one is closed, and the process has to end."""
        return all(_is_terminal(stream) for stream in self._streams)


def _is_terminal(stream: object) -> bool:
    with suppress(AttributeError, OSError, ValueError):
        return os.isatty(stream.fileno())  # type: ignore[attr-defined]
    return False
