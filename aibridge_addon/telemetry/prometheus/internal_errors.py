"""Count unexpected exceptions: log records with a traceback, of this package, of mitmproxy and of asyncio.

mitmproxy logs what a hook or a layer raises, and asyncio what a task raises. So the log is the one place that has all.
"""

from __future__ import annotations

import logging

SOURCES = ("aibridge_addon", "mitmproxy", "asyncio")
"""Packages. Exceptions that other libraries log are not ours."""
TRACEBACK = "Traceback (most recent call last)"


class ErrorCount(logging.Handler):
    """Used on any thread."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0

    def start(self) -> None:
        logging.getLogger().addHandler(self)

    def stop(self) -> None:
        """May be called twice."""
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held."""
        if record.name.partition(".")[0] in SOURCES and _has_traceback(record):
            self.count += 1


def _has_traceback(record: logging.LogRecord) -> bool:
    """The redaction of a traceback moves it into the message."""
    return bool(record.exc_info and record.exc_info[0]) or TRACEBACK in str(record.msg)
