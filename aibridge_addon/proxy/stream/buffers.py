"""Count the buffered bodies of one stream for `limits.buffered`."""

from __future__ import annotations

from aibridge_addon.interception.buffers import LIMIT
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


class StreamBuffers:
    def __init__(self) -> None:
        self._request = self._answer = 0

    def take_request(self, state: Bridged, size: int) -> bool:
        """Count a request of which `size` bytes are buffered. Returns False if there is no room for them."""
        if not state.share.add(size - self._request):
            return False
        self._request = size
        return True

    def take_answer(self, state: FlowState, size: int) -> bool:
        """Do the same for an answer."""
        if not isinstance(state, Bridged):
            return True
        if size < self._answer:  # the answer of another turn
            self.give_answer_back(state)
        if not state.share.add(size - self._answer):
            return False
        self._answer = size
        return True

    def give_answer_back(self, state: FlowState) -> None:
        """Note that an answer is not buffered any more."""
        if isinstance(state, Bridged):
            state.share.give_back(self._answer)
        self._answer = 0
