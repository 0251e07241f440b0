"""Run a blocking call on a thread of its own: those of `asyncio.to_thread` are few, and may all wait for something."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress


def on_thread[Result](name: str, call: Callable[[], Result]) -> asyncio.Future[Result]:
    """Call a function on a thread called `name`, which does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(error: Exception | None, result: Result | None) -> None:
        if future.done():  # nothing waits for it any more
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        error: Exception | None = None
        result: Result | None = None
        try:
            result = call()
        except Exception as e:  # noqa: BLE001 (the future has it)
            error = e
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, error, result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
