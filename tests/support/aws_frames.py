"""Answers of Bedrock, framed by AWS's own code (`smithy-aws-event-stream`) out of server-sent events.

Fixtures are text, so their streams are written as server-sent events; here they become what Bedrock sends.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from botocore.eventstream import EventStreamBuffer
from smithy_aws_event_stream.events import EventMessage

from aibridge_addon.wire import sse

CONTENT_TYPE = "application/vnd.amazon.eventstream"
JSON = "application/json"


def event(kind: str, payload: bytes) -> bytes:
    headers = {":event-type": kind, ":content-type": JSON, ":message-type": "event"}
    return EventMessage(headers=headers, payload=payload).encode()


def exception(kind: str, members: dict[str, Any]) -> bytes:
    headers = {":exception-type": kind, ":content-type": JSON, ":message-type": "exception"}
    return EventMessage(headers=headers, payload=json.dumps(members).encode()).encode()


def error(code: str, message: str) -> bytes:
    """One that the service's model does not name."""
    return EventMessage(headers={":error-code": code, ":error-message": message, ":message-type": "error"}).encode()


def chunk(data: bytes) -> bytes:
    """A piece of what a model of any vendor streams, as InvokeModelWithResponseStream gives it."""
    return event("chunk", json.dumps({"bytes": base64.b64encode(data).decode(), "p": "abcdefgh"}).encode())


def converse_frames(stream: bytes) -> Iterator[bytes]:
    """Server-sent events as ConverseStream's messages; a torn last event as a torn message."""
    for name, data, torn in _events(stream):
        if name == "exception":
            [(kind, members)] = json.loads(data).items()
            yield exception(kind, members)
        else:
            frame = event(name, data)
            yield frame[: len(frame) // 2] if torn else frame


def invoke_frames(stream: bytes, metrics: dict[str, int] | None = None) -> Iterator[bytes]:
    """A Messages stream as InvokeModelWithResponseStream's; its last event carries Bedrock's `metrics`."""
    for _, data, torn in _events(stream):
        event = json.loads(data) if metrics is not None and not torn else None
        if isinstance(event, dict) and event.get("type") == "message_stop":
            data = json.dumps({**event, "amazon-bedrock-invocationMetrics": metrics}).encode()
        frame = chunk(data)
        yield frame[: len(frame) // 2] if torn else frame


def _events(stream: bytes) -> Iterator[tuple[str, bytes, bool]]:
    scanner = sse.SSEScanner()
    for raw, _ in scanner.feed(stream):
        name, data = sse.parse(raw)
        if data is not None:
            yield name, data, False
    name, data = sse.parse(scanner.finish())
    if data is not None:
        yield name, data, not data.rstrip().endswith(b"}")


@dataclass(frozen=True)
class Read:
    """One message, as botocore reads it."""

    kind: str
    is_exception: bool
    payload: bytes

    @property
    def inner(self) -> bytes:
        """What a chunk holds."""
        return base64.b64decode(json.loads(self.payload)["bytes"])


def read(frame: bytes) -> Read:
    buffer = EventStreamBuffer()
    buffer.add_data(frame)
    [message] = buffer
    headers = message.headers
    return Read(headers.get(":event-type", ""), headers[":message-type"] != "event", message.payload)


def with_unknown_header_type() -> bytes:
    """A message that is whole and whose checksums are right, but whose one header has a type that does not exist."""
    headers = b"\x01a\x0a"
    prelude = (len(headers) + 16).to_bytes(4) + len(headers).to_bytes(4)
    whole = prelude + crc32(prelude).to_bytes(4) + headers
    return whole + crc32(whole).to_bytes(4)


def split(stream: bytes) -> list[bytes]:
    """A stream's messages, as they were framed; a torn last one is none."""
    frames = []
    while len(stream) >= (length := int.from_bytes(stream[:4])) > 0:
        frames.append(stream[:length])
        stream = stream[length:]
    return frames
