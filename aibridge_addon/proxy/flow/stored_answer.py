"""Get or delete an answer of several turns, which the provider has stored as several responses.

    GET    turn 1 ─▶ turn 2 ─▶ … ─▶ merged as at first ─▶ client
    DELETE turn 2 ─▶ … ─▶ turn 1, whose answer the client gets

The client knows the first turn's id only. A turn that cannot be had ends the request with its error. Deletion ends with
the first turn, so that a client which repeats a failed request deletes the rest.
"""

from __future__ import annotations

from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, quote

from mitmproxy import http

from aibridge_addon.dialects.turns import Splice
from aibridge_addon.interception.continuations import StoredTurns
from aibridge_addon.wire import sse
from aibridge_addon.wire.codings import CodingError, decode_all
from aibridge_addon.wire.json_object import NotJSON, Unreadable, decode_tolerantly, encode

GONE = 404
MAX_DIGITS = 10
"""Digits of a sequence number that is too large."""
STREAMING = ("stream", "starting_after")
"""Parameters of a request that wants the events of an answer. The turns are fetched without them."""


class StoredAnswer:
    def __init__(self, request: http.Request, turns: StoredTurns, splice: Splice, limit: int) -> None:
        """`limit`: bytes of all turns together, decoded."""
        self.limit = limit
        self._path = request.path
        self._wished = {name: value for name, value in parse_qsl(request.path.partition("?")[2]) if name in STREAMING}
        self._deletes = request.method == "DELETE"
        self._splice = splice
        self._left = [*turns.turns[1:], turns.turns[0]] if self._deletes else list(turns.turns)
        request.headers["accept-encoding"] = "identity"
        self._next(request)

    def _next(self, request: http.Request) -> None:
        """Address the request to the next turn."""
        path, _, query = self._path.partition("?")
        kept = "&".join(part for part in query.split("&") if part.partition("=")[0] not in STREAMING)
        request.path = path[: path.rindex("/") + 1] + quote(self._left.pop(0), safe="") + (f"?{kept}" if kept else "")

    def turn_ended(self, flow: http.HTTPFlow) -> None:
        """Take the answer about a turn. Sets `flow.response` to None if another turn follows."""
        response = flow.response
        assert response is not None
        if self._take(response) and self._left:
            self._next(flow.request)
            flow.response = None
            return
        flow.request.path = self._path

    def _take(self, response: http.Response) -> bool:
        """Take an answer, and make the last one the merged one. Returns whether another turn may follow."""
        if self._deletes:
            return response.status_code < 400 or response.status_code == GONE
        message = self._maybe_message(response) if response.status_code == 200 else None
        if message is None:
            return False
        self._splice.begin_turn()
        self._splice.take_body(message)
        if not self._left:
            self._merge(response)
        return True

    def _merge(self, response: http.Response) -> None:
        for name in ("content-encoding", "transfer-encoding"):
            response.headers.pop(name, None)
        body = self._splice.body()
        if self._wished.get("stream") == "true":
            after = self._wished.get("starting_after", "")
            first = int(after) + 1 if after.isascii() and after.isdigit() and len(after) < MAX_DIGITS else 0
            events = (encode(event) for _, event in self._splice.events_of(body, usage=True))
            response.raw_content = b"".join(sse.event("", event) for event in islice(events, first, None))
            response.headers["content-type"] = "text/event-stream; charset=utf-8"
        else:
            response.raw_content = encode(body)
        response.headers["content-length"] = str(len(response.raw_content))

    def _maybe_message(self, response: http.Response) -> dict[str, Any] | None:
        try:
            content = decode_all(response.raw_content or b"", response.headers.get("content-encoding"), self.limit)
            message = decode_tolerantly(content)
        except (CodingError, NotJSON, Unreadable):
            return None
        self.limit = max(0, self.limit - len(content))
        return message if isinstance(message, dict) and message.get("object") == "response" else None
