"""Bedrock's answer to a Messages request as Anthropic would give it: server-sent events, and errors. Sans-io.

Both classes are fed the bytes of a body, and give those that a Messages client reads.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from types import MappingProxyType
from typing import Protocol

import msgspec

from aibridge_addon.dialects.messages.reader import Messages
from aibridge_addon.wire import sse
from aibridge_addon.wire.aws_eventstream import CONTENT_TYPE, CorruptEventStream
from aibridge_addon.wire.framing import AWS_EVENT_STREAM
from aibridge_addon.wire.json_object import NotJSON, Unreadable, decode
from aibridge_addon.wire.json_values import as_dict, as_text

MAX_ERROR = 1024 * 1024
"""Bytes of an error answer that are read."""

_messages = Messages()


class Unreadably(Exception):
    """The body cannot be given on in the other form; the text says why."""


class Transcoder(Protocol):
    def feed(self, data: bytes) -> bytes:
        """The bytes for the client that these add. Raises Unreadably."""

    def finish(self) -> bytes:
        """Those that the body's end adds. Raises Unreadably."""


class _Chunk(msgspec.Struct):
    bytes: str = ""


class _Event(msgspec.Struct):
    type: str = ""


_chunk = msgspec.json.Decoder(_Chunk)
_event = msgspec.json.Decoder(_Event)


class EventsToSSE:
    """The `chunk` events of an event stream, each with a Messages event, as server-sent events."""

    def __init__(self, max_event: int) -> None:
        self._scanner = AWS_EVENT_STREAM.scanner(max_event)

    def feed(self, data: bytes) -> bytes:
        try:
            told = b"".join(self._translated(raw) for raw, _ in self._scanner.feed(data))
        except CorruptEventStream as e:
            raise Unreadably(str(e)) from e
        if self._scanner.oversized:
            raise Unreadably("an event is too large")
        return told

    def finish(self) -> bytes:
        return b""  # a stream that is cut lacks its last event, which is told by whoever reads it

    def _translated(self, raw: bytes) -> bytes:
        name, payload = AWS_EVENT_STREAM.parse(raw)
        if name == "error":
            error = as_dict(as_dict(decode(payload or b"{}")).get("error"))
            told = as_text(error.get("message")) or as_text(error.get("type"))
            return _messages.error_event(told, {"type": ERROR_TYPES.get(as_text(error.get("type")), "api_error")})
        if name != "chunk":
            return b""
        try:
            event = b64decode(_chunk.decode(payload or b"{}").bytes, validate=True)
            # A line end can only stand between two members, where a blank does as well.
            return sse.event(_event.decode(event).type, event.replace(b"\n", b" ").replace(b"\r", b" "))
        except msgspec.ValidationError:
            return b""  # JSON, but no event of the Messages API: nothing that a client could read
        except (msgspec.MsgspecError, binascii.Error, UnicodeDecodeError) as e:
            raise Unreadably("an event is not in the form of one") from e


ERROR_TYPES = MappingProxyType(
    {
        "throttlingException": "rate_limit_error",
        "validationException": "invalid_request_error",
        "modelTimeoutException": "timeout_error",
        "serviceUnavailableException": "overloaded_error",
    }
)
"""Exceptions in a stream; any other one is an `api_error`."""


class ErrorToMessages:
    """An error body of AWS's as one of Anthropic's."""

    def __init__(self, status: int) -> None:
        self._status = status
        self._body = bytearray()

    def feed(self, data: bytes) -> bytes:
        self._body += data[: MAX_ERROR - len(self._body)]
        return b""

    def finish(self) -> bytes:
        try:
            told = as_dict(decode(bytes(self._body)))
        except (NotJSON, Unreadable):
            told = {}
        if told.get("type") == "error" and isinstance(told.get("error"), dict):
            return bytes(self._body)  # a gateway before Bedrock has put it into Anthropic's shape
        message = as_text(told.get("message")) or as_text(told.get("Message")) or f"Bedrock answered {self._status}"
        return _messages.error_body(self._status, message)


def transcoder(status: int, content_type: str, *, max_event: int) -> Transcoder | None:
    """What turns this answer into one of Anthropic's; None: it is one."""
    if status >= 400:
        return ErrorToMessages(status)
    if content_type.partition(";")[0].strip().lower() == CONTENT_TYPE:
        return EventsToSSE(max_event)
    return None
