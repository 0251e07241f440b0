"""Framings of streamed answers: server-sent events and AWS event streams. Sans-io.

Servers mislabel answers, so the first bytes of a body decide about its form. The Content-Type counts only for bodies
whose first bytes fit several forms or none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
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
    frame: Callable[[str, bytes], bytes]
    """Returns the raw event with this name and JSON, which must not contain a line end."""
    changed: Callable[[bytes, str, bytes], bytes]
    """Returns a raw event with this name and other JSON. What else the event has may stay."""
    content_type: str


def _aws_event(raw: bytes) -> tuple[str, bytes | None]:
    """Return the name and the payload of a message. An exception becomes an `error` event, as in other streams."""
    message = aws_eventstream.parse(raw)
    kind = message.text(":message-type")
    if kind == "exception":
        return "error", _error(message.text(":exception-type"), _message_in(message.payload))
    if kind == "error":  # an error outside the service's model
        return "error", _error(message.text(":error-code"), message.text(":error-message"))
    return message.text(":event-type"), message.payload or None


def _aws_frame(name: str, data: bytes) -> bytes:
    headers = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    return aws_eventstream.encode(headers, data)


def _message_in(payload: bytes) -> object:
    try:
        error = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return error.get("message", error.get("Message")) if isinstance(error, dict) else ""


def _error(kind: str, message: object) -> bytes:
    return encode({"error": {"type": kind, "message": message}})


def media_type(content_type: str) -> str:
    """Return the media type of a Content-Type header, without parameters and in lower case."""
    return content_type.partition(";")[0].strip().lower()


def framing_of(content_type: str, framings: Mapping[str, Framing], *, streaming: bool) -> Framing | None:
    """Return the probable framing of an answer whose body has not begun, or None if it is probably one body.

    `streaming` says whether a stream was requested. It decides if the type says nothing about the form.
    """
    label = media_type(content_type)
    if label in framings:
        return framings[label]
    names_a_form = label.endswith(("/json", "+json", "/html"))
    return SSE if streaming and not names_a_form else None


class Form(Enum):
    """The form of a body, as far as its first bytes show it."""

    OPEN = auto()
    """More bytes are needed."""
    UNKNOWN = auto()
    BODY = auto()
    """JSON or HTML."""
    SERVER_SENT = auto()
    AWS = auto()

    @property
    def framing(self) -> Framing | None:
        return {Form.SERVER_SENT: SSE, Form.AWS: AWS_EVENT_STREAM}.get(self)


MAX_BLANK = 4096
"""Bytes. Some servers send line ends while a client waits. After more of them, the Content-Type decides."""
_BOM = b"\xef\xbb\xbf"
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
"""Beginnings of an event: its fields, and a comment."""
_not_blank = re.compile(rb"[^\t\n\r ]").search


def form_of(beginning: bytes) -> Form:
    """Return the form of a body that begins with these decoded bytes."""
    if beginning[:1] == b"\0":
        if len(beginning) < aws_eventstream.PRELUDE_SIZE:
            return Form.OPEN
        return Form.AWS if aws_eventstream.is_prelude(beginning) else Form.UNKNOWN
    if len(beginning) < len(_BOM) and _BOM.startswith(beginning):
        return Form.OPEN
    first = _not_blank(beginning, len(_BOM) if beginning.startswith(_BOM) else 0)
    if first is None:
        return Form.OPEN if len(beginning) < MAX_BLANK else Form.UNKNOWN
    line = beginning[first.start() : first.start() + 8]
    if line[0] in b"{[<":
        return Form.BODY
    if line.startswith(_FIELDS):
        return Form.SERVER_SENT
    return Form.OPEN if any(field.startswith(line) for field in _FIELDS) else Form.UNKNOWN


SSE = Framing(
    partial(sse.SSEScanner, pieces=True),
    sse.parse,
    sse.event,
    lambda _, name, data: sse.event(name, data),
    "text/event-stream; charset=utf-8",
)
AWS_EVENT_STREAM = Framing(
    aws_eventstream.EventStreamScanner,
    _aws_event,
    _aws_frame,
    lambda raw, _, data: aws_eventstream.with_payload(raw, data),
    aws_eventstream.CONTENT_TYPE,
)


def framing_of_event(raw: bytes) -> Framing:
    """Return the framing of a raw event. A message of an AWS event stream begins with its length, below 16 MiB."""
    return AWS_EVENT_STREAM if raw[:1] == b"\0" else SSE


SERVER_SENT: Mapping[str, Framing] = MappingProxyType({"text/event-stream": SSE})
"""By content type. Most providers use server-sent events only."""
BEDROCK_FRAMINGS: Mapping[str, Framing] = MappingProxyType(
    {**SERVER_SENT, aws_eventstream.CONTENT_TYPE: AWS_EVENT_STREAM}
)
"""By content type. Both framings, for Bedrock and compatible servers."""
