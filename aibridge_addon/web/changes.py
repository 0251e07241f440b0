"""The stream that says that something is new: one look at the database for all open pages."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import anyio
from anyio import to_thread
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

MAX_STREAMS = 64
"""Pages that are updated live at the same time. Further ones are not."""


@dataclass(slots=True)
class Changes:
    look: Callable[[], str]
    """Returns a text that is another one after a change. It blocks."""
    every: float
    """Seconds between two looks, whatever the number of streams."""
    open: int = 0
    """Number of streams."""
    _seen: str = ""
    _at: float = float("-inf")
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    def stream(self) -> Response:
        """Return an answer without an end: an event each time that something has changed."""
        if self.open >= MAX_STREAMS:
            return PlainTextResponse("Too many pages are open.\n", 503)
        self.open += 1  # before the answer begins, so that many requests at once do not all pass
        return _Stream(self)

    async def events(self) -> AsyncIterator[bytes]:
        last = await self._now()
        yield b"retry: 5000\n\n"
        while True:
            await anyio.sleep(self.every)
            now = await self._now()
            yield b"event: change\ndata: 1\n\n" if now != last else b": nothing new\n\n"
            last = now

    async def _now(self) -> str:
        """Return what the last look has found. One that is too old is repeated, by one stream for all."""
        async with self._lock:
            if time.monotonic() - self._at >= self.every:
                self._seen = await to_thread.run_sync(self.look)
                self._at = time.monotonic()
            return self._seen


class _Stream(StreamingResponse):
    def __init__(self, changes: Changes) -> None:
        super().__init__(changes.events(), media_type="text/event-stream")
        self._changes = changes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._changes.open -= 1
