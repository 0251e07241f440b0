"""Limit how often the tools of a server are called."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from aibridge_addon.config.rate import Rate
from aibridge_addon.tools import CallError

MAX_WAIT = 5.0
"""Seconds that a call waits for its turn. After a longer time, a model can do something else meanwhile."""
UNITS = (("second", "s"), ("minute", "m"), ("hour", "h"))


class RateLimit:
    """Admits so many calls in any period of the given length. Used on one event loop."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._admitted: deque[float] = deque(maxlen=rate.count)
        """When the last calls were or will be made."""

    def reserve(self, timeout: float) -> float:
        """Return the seconds that a call has to wait, and count it. A negative number: it would be too long."""
        now = self._clock()
        wait = 0.0
        if len(self._admitted) == self.rate.count:
            wait = max(0.0, self._admitted[0] + self.rate.seconds - now)
        if wait > timeout:
            return -wait
        self._admitted.append(now + wait)
        return wait

    async def admit(self, server_name: str, timeout: float) -> float:
        """Wait until a call may be made. Return the seconds.

        Raises:
            CallError: it would take longer than `timeout`, or than `MAX_WAIT`.
        """
        wait = self.reserve(min(timeout, MAX_WAIT))
        if wait < 0:
            unit = next(name for name, short in UNITS if short == self.rate.unit)
            raise CallError(
                f"MCP server {server_name} may be called {self.rate.count} times per {unit}, which is reached: "
                f"try again in {math.ceil(-wait)} s",
                "rate",
            )
        if wait:
            await asyncio.sleep(wait)
        return wait
