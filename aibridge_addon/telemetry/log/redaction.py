"""Redact log lines of the bridge, also in tracebacks, which may quote a row that a database refused."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

PACKAGE = __name__.partition(".")[0]


class RedactedLog:
    """Changes log records of this package when they are made, so that every handler gets them redacted.

    Python has one factory of log records. Several of these objects form a chain, so they may end in any order.
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._make = logging.getLogRecordFactory()
        self._is_on = False

    def start(self) -> None:
        self._make = logging.getLogRecordFactory()
        self._is_on = True
        logging.setLogRecordFactory(self._record)

    def stop(self) -> None:
        self._is_on = False
        if logging.getLogRecordFactory() == self._record:
            logging.setLogRecordFactory(self._make)

    def _record(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        if self._is_on and record.name.partition(".")[0] == PACKAGE:
            try:
                record.msg, record.args = self._redact(record.getMessage()), None
                if record.exc_info and record.exc_info[0] is not None:
                    text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
                    record.exc_text = self._redact(text)
            except (TypeError, ValueError):  # the arguments do not fit. The handler reports that.
                pass
        return record
