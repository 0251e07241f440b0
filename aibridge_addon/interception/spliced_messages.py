"""The answer to one request in a WebSocket, merged from several turns. Messages in, messages out.

    server's message ─▶ as an event of a stream ─▶ ToolExchange ─▶ its events, each as a message ─▶ client

Over HTTP, each message would be the data of an event. So the same splice merges both. A message that the splice does
not change passes as it came, with its own frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aibridge_addon.dialects.base import NOTHING
from aibridge_addon.dialects.responses.reader import error_message
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.wire import sse

EVENT_STREAM = "text/event-stream"
"""The content type of the same answer over HTTP."""
_SPACES = bytes.maketrans(b"\r\n", b"  ")
"""Line ends only separate tokens of a JSON text, and would end an event."""


class SplicedMessages:
    def __init__(self, tools: ToolExchange, lane: str = "") -> None:
        self.tools = tools
        self._lane = lane
        tools.streamed = True
        self._is_open = False
        """The answer of the current turn has begun."""

    @property
    def waiting(self) -> bool:
        """Whether a turn has called injected tools, and their results are not complete."""
        return self.tools.waiting

    @property
    def is_open(self) -> bool:
        """Whether the answer of the current turn has begun."""
        return self._is_open

    def open_answer(self, status: int, content_type: str) -> None:
        self._is_open = True
        self.tools.open_answer(status, content_type, "")
        self.tools.plain = False

    def take(self, data: bytes) -> Sequence[bytes] | None:
        """Read a message of the server. Return the messages for the client; None: the message itself.

        After it, `waiting` may be true, or the exchange may have ended.
        """
        framed = sse.event("", data.translate(_SPACES))
        shown = self.tools.feed(framed)
        exchange = self.tools.exchange
        if reason := self.tools.unreadable:
            exchange.end("undecodable_answer", reason)
            return [*_messages(shown), self.error(f"the upstream's answer cannot be decoded: {reason}")]
        if self.tools.waiting:
            self._is_open = False
        elif exchange.ended:
            if (error := self.tools.error) is not None:
                details = {"type": error.type, **error.details} if error.type else error.details
                return [*_messages(shown), self.error(error.message or "the upstream failed", details)]
            shown += self.tools.ending()
        return None if shown == framed else _messages(shown)

    def error(self, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        """Return the message with which an answer ends that cannot be completed."""
        return error_message(502, message, details, stream_id=self._lane)

    def ending(self) -> Sequence[bytes]:
        """Return the held end of an answer that ends after its tools have run."""
        return _messages(self.tools.ending())


def _messages(shown: bytes) -> list[bytes]:
    """Return the data of the events in whole bytes of a stream."""
    parsed = (sse.parse(event + b"\n\n")[1] for event in shown.split(b"\n\n") if event)
    return [data for data in parsed if data is not None]
