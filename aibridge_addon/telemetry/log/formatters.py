"""Formatters of log lines: for a terminal, and as JSON objects."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aibridge_addon.telemetry.log.line import Line
from aibridge_addon.telemetry.log.members import timestamp
from aibridge_addon.telemetry.log.sink import LINE, MEMBERS
from aibridge_addon.telemetry.log.text import one_line
from aibridge_addon.wire.printable import printable, printable_json, printable_line

OURS = "aibridge_addon."
LIBRARIES = frozenset({"mcp", "mcp_types", "httpx2", "httpcore2", "anyio"})
"""Loggers of libraries that quote what MCP servers send, line breaks included."""
MAX_WORD = 1000
"""Characters of a text within a line of ours, such as a model's name."""


class TextFormatter(logging.Formatter):
    """Lays out the lines of interceptions. mitmproxy formats all others, without what would control a terminal.

    A text within a line of ours is in one line, so that no name can add a line of its own.
    """

    def __init__(self, other: logging.Formatter, *, width: Callable[[], int | None], colour: bool) -> None:
        """`width`: returns the terminal's number of columns; None if the output is none."""
        super().__init__()
        self.other = other
        self._width = width
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        line = getattr(record, LINE, None)
        if isinstance(line, Line):
            return line.text(self._width(), colour=self._colour)
        safe = copy.copy(record)
        if record.name.startswith(OURS) and isinstance(record.args, tuple):
            safe.args = tuple(one_line(value, MAX_WORD) if type(value) is str else value for value in record.args)
        message = safe.getMessage()
        if record.name.partition(".")[0] in LIBRARIES:
            message = printable_line(message)
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        safe.msg, safe.args, safe.exc_info = printable(message), None, None
        return self.other.format(safe)


class JsonFormatter(logging.Formatter):
    """Formats every line as one JSON object in ASCII."""

    def __init__(self, other: logging.Formatter) -> None:
        super().__init__()
        self.other = other

    def format(self, record: logging.LogRecord) -> str:
        members: dict[str, Any] = {
            "time": timestamp(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        found = getattr(record, MEMBERS, None)
        if isinstance(found, dict):
            members |= found
        else:
            members |= {"record_type": "log", "logger": record.name}
        client = getattr(record, "client", None)
        if isinstance(client, tuple) and client:
            members["client_address"] = str(client[0])
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        try:
            text = json.dumps(members, default=str, allow_nan=False)
        except ValueError:
            text = json.dumps(_without_infinity(members), default=str)
        return printable_json(text)


def _without_infinity(value: Any) -> Any:
    """Return a JSON value without infinity and NaN, which JSON does not have."""
    match value:
        case dict():
            return {str(key): _without_infinity(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_infinity(item) for item in value]
        case float() if value != value or value in (float("inf"), float("-inf")):
            return str(value)
        case _:
            return value
