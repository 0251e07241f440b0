"""The framings of streamed answers: server-sent events, and the messages of an AWS event stream. Sans-io."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import msgspec

from aibridge_addon.wire import aws_eventstream, sse
from aibridge_addon.wire.json_object import encode


class Scanner(Protocol):
    """Cuts bytes into raw events; the scanners of `wire` say the rest."""

    oversized: int

    @property
    def at_boundary(self) -> bool: ...

    def feed(self, data: bytes) -> list[tuple[bytes, int]]: ...

    def finish(self) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Framing:
    scanner: Callable[[int], Scanner]
    """A fresh scanner that keeps events of at most so many bytes."""
    parse: Callable[[bytes], tuple[str, bytes | None]]
    """An event's name and its data, from its raw bytes. May raise CorruptEventStream."""


def _aws_event(raw: bytes) -> tuple[str, bytes | None]:
    """The name of a message's event and its payload; an exception is given as the `error` event of other streams."""
    message = aws_eventstream.parse(raw)
    kind = message.text(":message-type")
    if kind == "exception":
        return "error", _error(message.text(":exception-type"), _told(message.payload))
    if kind == "error":  # one that the service's model does not name
        return "error", _error(message.text(":error-code"), message.text(":error-message"))
    return message.text(":event-type"), message.payload or None


def _told(payload: bytes) -> object:
    try:
        told = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return told.get("message", told.get("Message")) if isinstance(told, dict) else ""


def _error(kind: str, message: object) -> bytes:
    return encode({"error": {"type": kind, "message": message}})


def framing_of(status: int, content_type: str, framings: Mapping[str, Framing]) -> Framing | None:
    """How an answer with this head is framed; None: it is one body."""
    return framings.get(content_type.partition(";")[0].strip().lower()) if status < 400 else None


SSE = Framing(sse.SSEScanner, sse.parse)
AWS_EVENT_STREAM = Framing(aws_eventstream.EventStreamScanner, _aws_event)
SERVER_SENT: Mapping[str, Framing] = MappingProxyType({"text/event-stream": SSE})
"""By content type. Most providers frame their streams so."""
BY_AWS: Mapping[str, Framing] = MappingProxyType({**SERVER_SENT, aws_eventstream.CONTENT_TYPE: AWS_EVENT_STREAM})
"""Both framings, for answers of Bedrock and of servers that imitate it."""
