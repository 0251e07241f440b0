"""Redact log lines, also in tracebacks, which may quote a row that a database refused.

The lines of all programs in the process are redacted. mitmproxy's own quote what its addons raise, and those of HTTP
and MCP libraries name URLs, with keys in their query.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Redact = Callable[[str], str]


class Redacted:
    """The only argument of a line, which redacts its own text when a handler shows it.

    Terminals format the line of an interception themselves, and never call `__str__`.
    """


def _now() -> bool:
    return True


class RedactedLog:
    """Changes log records when they are made, so that every handler gets them redacted.

    Python has one factory of log records. All of these objects that have started share one of ours, which applies each
    of them. So they may end in any order, and the last one restores what was there before.
    """

    def __init__(self, redact: Redact) -> None:
        self.redact = redact
        self._factory: _Factory | None = None

    def start(self) -> None:
        if self._factory is None:
            factory = logging.getLogRecordFactory()
            self._factory = factory if isinstance(factory, _Factory) else _Factory(factory)
            self._factory.add(self)

    def stop(self, ended: Callable[[], bool] = _now) -> None:
        """Redact until `ended` returns True: threads still write lines after they were asked to end.

        May be called twice. `ended` may be called on any thread.
        """
        factory, self._factory = self._factory, None
        if factory is not None:
            factory.remove(self, ended)


class _Factory:
    """Makes log records, and redacts them."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make
        self._logs: dict[RedactedLog, Callable[[], bool] | None] = {}
        """With a function that returns whether it has ended. None: it has not been stopped."""

    def add(self, log: RedactedLog) -> None:
        self._logs = {**self._logs, log: None}
        self._forget_ended()
        if logging.getLogRecordFactory() is not self:
            logging.setLogRecordFactory(self)

    def remove(self, log: RedactedLog, ended: Callable[[], bool]) -> None:
        self._logs = {**self._logs, log: ended}
        self._forget_ended()

    def _forget_ended(self) -> None:
        self._logs = {log: ended for log, ended in self._logs.items() if ended is None or not ended()}
        if not self._logs and logging.getLogRecordFactory() is self:
            logging.setLogRecordFactory(self._make)

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        if isinstance(record.args, tuple) and len(record.args) == 1 and isinstance(record.args[0], Redacted):
            return record
        with suppress(Exception):  # the arguments do not fit, which the handler reports
            self._redact_record(record)
        return record

    def _redact_record(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        redacted = self._redacted(text)
        if record.exc_info and record.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            redacted_trace = self._redacted(trace)
            if redacted_trace != trace:
                # mitmproxy's formatter ignores `exc_text`, so the traceback becomes a part of the message.
                redacted = f"{redacted}\n{redacted_trace}"
                record.exc_info = record.exc_text = None
        if record.stack_info:
            record.stack_info = self._redacted(record.stack_info)
        if redacted != text:
            record.msg, record.args = redacted, None

    def _redacted(self, text: str) -> str:
        for log in self._logs:
            text = log.redact(text)
        return text
