"""The keys of a terminal, for a command with a screen of its own. The terminal is as before whenever it is left."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from types import FrameType, TracebackType
from typing import Any, Self


class Keyboard:
    """A context manager. Keys come one by one and are not shown. Without a terminal there are none."""

    def __init__(self) -> None:
        self.is_pause_wanted = False
        """Ctrl-Z was pressed, or SIGTSTP has come otherwise."""
        self._terminal = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._modes: list[Any] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._end),
            signal.SIGTSTP: signal.signal(signal.SIGTSTP, self._want_pause),
        }
        self._take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leave()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pressed(self, seconds: float) -> str:
        """Wait for keys, so many seconds at most, and return them. `q`: the terminal is gone."""
        if self._terminal is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._terminal], [], [], seconds)[0]:
            return ""
        found = os.read(self._terminal, 1024)
        return found.decode(errors="replace") if found else "q"

    def pause(self) -> None:
        """Leave the terminal to the shell, until it continues this process."""
        self.is_pause_wanted = False
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)  # SIGTSTP has our handler
        self._take()

    def _take(self) -> None:
        if self._terminal is not None:
            self._modes = termios.tcgetattr(self._terminal)
            tty.setcbreak(self._terminal)

    def _leave(self) -> None:
        if self._terminal is not None:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._modes)

    def _want_pause(self, _number: int, _frame: FrameType | None) -> None:
        self.is_pause_wanted = True

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signal.SIGTERM)
