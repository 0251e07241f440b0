"""Count the buffered bodies of one stream for `limits.buffered`."""

from __future__ import annotations

import weakref

from aibridge_addon.interception.buffers import LIMIT, Buffers, Share
from aibridge_addon.proxy.flow.state import Bridged, FlowState, Refusal

RETRY_AFTER = 1
"""Seconds after which a client may ask again. Memory is free again when a few answers have ended."""
NO_MEMORY = Refusal(
    503,
    "the bridge has no memory left for this request, try again",
    "buffers_full",
    f"{LIMIT} is used up",
    {"retry-after": str(RETRY_AFTER)},
)


class CountedBodies:
    def __init__(self, buffers: Buffers | None) -> None:
        """`buffers`: those of the bridge. None: there is none, and what is not bridged is not counted."""
        self._request = self._answer = 0
        self._buffers = buffers
        self._own: Share | None = None
        """Of a flow that is not bridged. A bridged one has a share for its interception."""

    def _share(self, state: FlowState) -> Share | None:
        if isinstance(state, Bridged):
            return state.share
        if self._own is None and self._buffers is not None:
            self._own = self._buffers.share()
            weakref.finalize(self, self._own.end).atexit = False  # mitmproxy may drop the stream without its end
        return self._own

    def end(self) -> None:
        """The flow has ended: its bodies are not needed any more. A bridged one ends its share itself."""
        if self._own is not None:
            self._own.end()

    def take_request(self, state: FlowState, size: int) -> bool:
        """Count a request of which `size` bytes are buffered. Returns False if there is no room for them."""
        if size == self._request:
            return True
        share = self._share(state)
        if share is not None and not share.add(size - self._request):
            return False
        self._request = size
        return True

    def take_answer(self, state: FlowState, size: int) -> bool:
        """Do the same for an answer."""
        if size < self._answer:  # the answer of another turn
            self.give_answer_back(state)
        share = self._share(state)
        if share is not None and not share.add(size - self._answer):
            return False
        self._answer = size
        return True

    def give_answer_back(self, state: FlowState) -> None:
        """Note that an answer is not buffered any more."""
        if self._answer and (share := self._share(state)) is not None:
            share.give_back(self._answer)
        self._answer = 0

    def give_request_back(self, state: FlowState) -> None:
        """Note that a request is not buffered any more."""
        if self._request and (share := self._share(state)) is not None:
            share.give_back(self._request)
        self._request = 0
