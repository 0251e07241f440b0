"""Which bodies are too large to be buffered: each by a limit of its own, all together by `limits.buffered`."""

from __future__ import annotations

from mitmproxy import http

from aibridge_addon.interception.buffers import LIMIT
from aibridge_addon.proxy.flow.state import Bridged, FlowState, Refusal
from aibridge_addon.proxy.stream.answer import content_length

RETRY_AFTER = 1
"""Seconds after which a client may ask again. Memory is free again when a few answers have ended."""


class BodyLimits:
    """Counts the buffered bodies of one stream."""

    def __init__(self) -> None:
        self._request = self._answer = 0

    def refusal(self, state: Bridged, buffered: int, request: http.Request) -> Refusal | None:
        """Return a refusal if a request's body is too large, or its head says that it will be."""
        limit = state.head.bridge.settings.limits.request_body
        if max(buffered, content_length(request)) > limit:
            return Refusal(413, f"the request body is larger than {limit} bytes")
        if not state.share.add(buffered - self._request):
            message = "the bridge has no memory left for this request, try again"
            return Refusal(503, message, "buffers_full", f"{LIMIT} is used up", {"retry-after": str(RETRY_AFTER)})
        self._request = buffered
        return None

    def has_room(self, state: FlowState, buffered: int, limit: int) -> bool:
        """Return whether the bytes of an answer that is buffered are within `limit` and `limits.buffered`."""
        if buffered > limit:
            return False
        if not isinstance(state, Bridged):
            return True
        if buffered < self._answer:  # the answer of another turn
            self.give_back(state)
        if not state.share.add(buffered - self._answer):
            return False
        self._answer = buffered
        return True

    def give_back(self, state: FlowState) -> None:
        """Note that an answer is not buffered any more."""
        if isinstance(state, Bridged):
            state.share.give_back(self._answer)
        self._answer = 0
