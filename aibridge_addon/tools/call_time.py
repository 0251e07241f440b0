"""The time that a call may take."""

from __future__ import annotations

import time


class CallTime:
    """Seconds without an answer or progress, and in all."""

    def __init__(self, left: float, timeout: float, total: float | None) -> None:
        """`left`: seconds until the first progress. `total`: None if progress does not count."""
        now = time.monotonic()
        self._timeout = timeout
        self.total = max(total or timeout, timeout)
        self._end = now + left
        self._last_end = now + left + self.total - timeout
        self._extended = False

    def left(self) -> float:
        return self._end - time.monotonic()

    async def progressed(self, progress: float, total: float | None, message: str | None) -> None:
        """Begin the time anew. The library calls this for each progress notification."""
        self._end = max(self._end, min(time.monotonic() + self._timeout, self._last_end))
        self._extended = True

    @property
    def exceeded(self) -> str:
        """Say that the time is over."""
        if not self._extended:
            return f"did not answer within {self._timeout:g} s"
        if self._end >= self._last_end:
            return f"did not answer within {self.total:g} s"
        return f"reported no progress for {self._timeout:g} s"
