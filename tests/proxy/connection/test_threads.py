"""A blocking call has a thread of its own, for which neither other calls nor the end of the process wait."""

from __future__ import annotations

import threading

import pytest

from aibridge_addon.proxy.connection.threads import on_thread


async def test_a_call_returns_its_result_from_a_thread_that_does_not_keep_the_process() -> None:
    def call() -> tuple[str, bool]:
        thread = threading.current_thread()
        return thread.name, thread.daemon

    assert await on_thread("a name", call) == ("a name", True)


async def test_a_call_raises_its_exception() -> None:
    def call() -> None:
        raise OSError("a fault for a test")

    with pytest.raises(OSError, match="a fault for a test"):
        await on_thread("a name", call)


async def test_a_cancelled_call_goes_on_unnoticed() -> None:
    go_on, over = threading.Event(), threading.Event()

    def call() -> None:
        go_on.wait(30)
        over.set()

    on_thread("a name", call).cancel()
    go_on.set()
    assert over.wait(30)
