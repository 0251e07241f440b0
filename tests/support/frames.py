"""Fixtures of the Responses API as they are said over a WebSocket: events as messages of their own."""

from __future__ import annotations

import json
from typing import Any

from aibridge_addon.wire import sse
from tests.support.fixtures import Case


def create(case: Case, **members: Any) -> bytes:
    """The case's request as a client's message; `stream` is not said over a WebSocket."""
    body = json.loads(case.request)
    body.pop("stream", None)
    return json.dumps({"type": "response.create"} | body | members, ensure_ascii=False).encode()


def events(case: Case) -> list[bytes]:
    """The case's answer as a server's messages."""
    if not case.content_type.startswith("text/event-stream"):
        return [b'{"type":"error","status":%d,' % case.status + case.body.strip()[1:]]
    scanner = sse.SSEScanner()
    blocks = [raw for raw, _ in scanner.feed(case.body)] + [scanner.finish()]
    return [data for raw in blocks if (data := sse.parse(raw)[1]) is not None]
