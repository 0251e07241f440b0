"""A bounded poll, for the state of other processes only: inside our own, wait on a condition instead."""

import threading
import time
from collections.abc import Callable

INTERVAL = 0.01


def poll_until[T](check: Callable[[], T | None], timeout: float = 10.0, *, what: str = "the condition") -> T:
    """Return the first result of `check` that is true."""
    deadline = time.monotonic() + timeout
    tick = threading.Event()
    while True:
        if result := check():
            return result
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what} did not come true within {timeout} s; last: {result!r}")
        tick.wait(INTERVAL)
