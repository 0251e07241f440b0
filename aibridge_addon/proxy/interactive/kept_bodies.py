"""Keep the bodies of streamed answers for the interactive tools, mitmproxy and mitmweb. `mitmdump` keeps none.

A body is kept as it was sent to the client, up to a limit. All of them together have a limit, too: the oldest ones go.
"""

from __future__ import annotations

import weakref
from collections import deque

from mitmproxy import http

CUT = "aibridge_body_limit"
"""Key in `flow.metadata`: the number of bytes after which its answer was cut."""
MAX_TOTAL = 128 << 20
"""Bytes of all bodies."""
MAX_MESSAGES = 500
"""Messages of one WebSocket that are kept."""


class KeptBodies:
    def __init__(self, limit: int, total: int = MAX_TOTAL) -> None:
        """`limit` and `total` are bytes of one body and of all."""
        self.limit = limit
        self._left = total
        self._kept: deque[tuple[weakref.ref[http.HTTPFlow], int]] = deque()

    def keep(self, flow: http.HTTPFlow, body: bytes, size: int) -> None:
        """Put a body into its flow. `size` is how long it was before it was cut."""
        if flow.response is None or flow.response.raw_content is not None:
            return
        flow.response.raw_content = body
        if size > len(body):
            flow.metadata[CUT] = len(body)
        self._kept.append((weakref.ref(flow), len(body)))
        self._left -= len(body)
        while self._left < 0 and len(self._kept) > 1:
            oldest, freed = self._kept.popleft()
            self._left += freed
            if (found := oldest()) is not None and found.response is not None:
                found.response.raw_content = None

    def trim(self, flow: http.HTTPFlow) -> None:
        """Drop the oldest messages of a WebSocket."""
        if flow.websocket is None:
            return
        messages = flow.websocket.messages
        del messages[:-MAX_MESSAGES]
        size = sum(len(message.content) for message in messages)
        while size > self.limit and len(messages) > 1:
            size -= len(messages[0].content)
            del messages[0]
