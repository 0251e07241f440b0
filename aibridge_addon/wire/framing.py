"""Framings of streamed answers: server-sent events and AWS event streams. Sans-io."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import msgspec

from aibridge_addon.wire import aws_eventstream, sse
from aibridge_addon.wire.json_object import encode


class Scanner(Protocol):
    """Splits bytes into raw events. See `SSEScanner` and `EventStreamScanner`."""

    oversized: int

    @property
    def at_boundary(self) -> bool: ...

    def feed(self, data: bytes) -> list[tuple[bytes, int]]: ...

    def finish(self) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Framing:
    scanner: Callable[[int], Scanner]
    """Returns a new scanner. The argument is the maximum size of an event in bytes."""
    parse: Callable[[bytes], tuple[str, bytes | None]]
    """Returns the name and the data of a raw event. May raise CorruptEventStream."""


def _aws_event(raw: bytes) -> tuple[str, bytes | None]:
    """Return the name and the payload of a message. An exception becomes an `error` event, as in other streams."""
    message = aws_eventstream.parse(raw)
    kind = message.text(":message-type")
    if kind == "exception":
        return "error", _error(message.text(":exception-type"), _message_in(message.payload))
    if kind == "error":  # an error outside the service's model
        return "error", _error(message.text(":error-code"), message.text(":error-message"))
    return message.text(":event-type"), message.payload or None


def _message_in(payload: bytes) -> object:
    try:
        error = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return error.get("message", error.get("Message")) if isinstance(error, dict) else ""


def _error(kind: str, message: object) -> bytes:
    return encode({"error": {"type": kind, "message": message}})


def framing_of(status: int, content_type: str, framings: Mapping[str, Framing]) -> Framing | None:
    """Return the framing of an answer with this head, or None if it is one body."""
    return framings.get(content_type.partition(";")[0].strip().lower()) if status < 400 else None


SSE = Framing(sse.SSEScanner, sse.parse)
AWS_EVENT_STREAM = Framing(aws_eventstream.EventStreamScanner, _aws_event)
SERVER_SENT: Mapping[str, Framing] = MappingProxyType({"text/event-stream": SSE})
"""By content type. Most providers use server-sent events only."""
BEDROCK_FRAMINGS: Mapping[str, Framing] = MappingProxyType(
    {**SERVER_SENT, aws_eventstream.CONTENT_TYPE: AWS_EVENT_STREAM}
)
"""By content type. Both framings, for Bedrock and compatible servers."""
