"""Convert Bedrock's answers to a Messages request into Anthropic's format: server-sent events and errors. Sans-io.

Both transcoders take the bytes of a body and return the bytes for a Messages client.
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
from aibridge_addon.wire.framing import AWS_EVENT_STREAM, Form, form_of, media_type
from aibridge_addon.wire.json_object import NotJSON, Unreadable, decode
from aibridge_addon.wire.json_values import as_dict, as_text

MAX_ERROR = 1024 * 1024
"""Bytes. The rest of a longer error body is ignored."""

_messages = Messages()


class TranscodingError(Exception):
    """The body cannot be converted. The message contains the reason."""


class Transcoder(Protocol):
    def feed(self, data: bytes) -> bytes:
        """Take the next bytes and return the bytes for the client. Raises TranscodingError."""

    def finish(self) -> bytes:
        """End the body and return the remaining bytes for the client. Raises TranscodingError."""


class _Chunk(msgspec.Struct):
    bytes: str = ""


class _Event(msgspec.Struct):
    type: str = ""


_chunk = msgspec.json.Decoder(_Chunk)
_event = msgspec.json.Decoder(_Event)


class EventsToSSE:
    """Convert the `chunk` messages of an AWS event stream into server-sent events."""

    def __init__(self, max_event: int) -> None:
        self._scanner = AWS_EVENT_STREAM.scanner(max_event)

    def feed(self, data: bytes) -> bytes:
        try:
            events = b"".join(self._translated(raw) for raw, _ in self._scanner.feed(data))
        except CorruptEventStream as e:
            raise TranscodingError(str(e)) from e
        if self._scanner.oversized:
            raise TranscodingError("an event is too large")
        return events

    def finish(self) -> bytes:
        return b""  # the reader of the answer detects a truncated stream by its missing last event

    def _translated(self, raw: bytes) -> bytes:
        name, payload = AWS_EVENT_STREAM.parse(raw)
        if name == "error":
            error = as_dict(as_dict(decode(payload or b"{}")).get("error"))
            message = as_text(error.get("message")) or as_text(error.get("type"))
            return _messages.error_event(message, {"type": ERROR_TYPES.get(as_text(error.get("type")), "api_error")})
        if name != "chunk":
            return b""
        try:
            event = b64decode(_chunk.decode(payload or b"{}").bytes, validate=True)
            # In JSON a line end can only separate tokens, so a blank is equivalent.
            return sse.event(_event.decode(event).type, event.replace(b"\n", b" ").replace(b"\r", b" "))
        except msgspec.ValidationError:
            return b""  # JSON, but not an event of the Messages API
        except (msgspec.MsgspecError, binascii.Error, UnicodeDecodeError) as e:
            raise TranscodingError("an event is malformed") from e


ERROR_TYPES = MappingProxyType(
    {
        "throttlingException": "rate_limit_error",
        "validationException": "invalid_request_error",
        "modelTimeoutException": "timeout_error",
        "serviceUnavailableException": "overloaded_error",
    }
)
"""Error types by the exception in a stream. Any other exception is an `api_error`."""


class ErrorToMessages:
    """Convert an AWS error body into one of Anthropic's."""

    def __init__(self, status: int) -> None:
        self._status = status
        self._body = bytearray()

    def feed(self, data: bytes) -> bytes:
        self._body += data[: MAX_ERROR - len(self._body)]
        return b""

    def finish(self) -> bytes:
        try:
            members = as_dict(decode(bytes(self._body)))
        except (NotJSON, Unreadable):
            members = {}
        if members.get("type") == "error" and isinstance(members.get("error"), dict):
            return bytes(self._body)  # a gateway before Bedrock already uses Anthropic's format
        message = (
            as_text(members.get("message")) or as_text(members.get("Message")) or f"Bedrock answered {self._status}"
        )
        return _messages.error_body(self._status, message)


class ByFirstBytes:
    """Convert the body if its first bytes are an AWS event stream. Else it is already in Anthropic's format."""

    def __init__(self, max_event: int) -> None:
        self._max_event = max_event
        self._held = b""
        self._open = True
        self._events: EventsToSSE | None = None

    def feed(self, data: bytes) -> bytes:
        if self._open:
            data, self._held = self._held + data, b""
            form = form_of(data)
            if form is Form.OPEN:
                self._held = data
                return b""
            self._open = False
            if form is Form.AWS:
                self._events = EventsToSSE(self._max_event)
        return data if self._events is None else self._events.feed(data)

    def finish(self) -> bytes:
        return self._held if self._events is None else self._events.finish()


def transcoder(status: int, content_type: str, *, max_event: int, streaming: bool = False) -> Transcoder | None:
    """Return a transcoder for an answer with this head, or None if it is already in Anthropic's format.

    `streaming` says whether a stream was requested.
    """
    if status >= 400:
        return ErrorToMessages(status)
    return ByFirstBytes(max_event) if streaming or media_type(content_type) == CONTENT_TYPE else None
