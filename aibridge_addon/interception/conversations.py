"""Remember the whole input behind the last answers of a WebSocket. Sans-io, bounded.

With `store: false`, only the connection has its last answer, and it drops that when a request that names it fails
(guide "WebSocket mode"). Such a request can be repeated only with the whole conversation as its input.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from aibridge_addon.interception.buffers import Share

MAX_KNOWN = 64
"""Conversations of one connection that are remembered."""


@dataclass(frozen=True, slots=True)
class _Known:
    items: tuple[bytes, ...]
    size: int


class Conversations:
    def __init__(self, limit: int, share: Share) -> None:
        """`limit`: bytes of all conversations of the connection. `share` counts them."""
        self._limit = limit
        self._share = share
        self._known: dict[str, _Known] = {}
        """By the id of their last answer."""
        # A layer that crashes brings no event at the end of its connection.
        weakref.finalize(self, share.end).atexit = False

    def before(self, response_id: str | None) -> Sequence[bytes] | None:
        """Return the items of a conversation up to an answer, with it. None: they are not known."""
        if response_id is None:
            return ()
        known = self._known.get(response_id)
        return None if known is None else known.items

    def answered(self, previous: str | None, response_id: str, items: Sequence[bytes]) -> None:
        """Remember the conversation up to an answer, in place of that up to the `previous` one."""
        self._forget(previous or "")
        self._forget(response_id)
        size = sum(map(len, items))
        while self._known and (len(self._known) >= MAX_KNOWN or self._share.size + size > self._limit):
            self._forget(next(iter(self._known)))
        if size <= self._limit and self._share.add(size):
            self._known[response_id] = _Known(tuple(items), size)

    def _forget(self, response_id: str) -> None:
        known = self._known.pop(response_id, None)
        if known is not None:
            self._share.give_back(known.size)

    def end(self) -> None:
        """Forget everything: the connection has ended."""
        self._known.clear()
        self._share.end()
