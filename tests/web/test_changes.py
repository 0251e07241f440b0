"""The stream of changes: one look for all open pages, and a bounded number of streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from aibridge_addon.web.changes import MAX_STREAMS, Changes

LONG = 1e9
"""Seconds that do not pass within a test."""


class Looks:
    """Counts looks, of which each finds something new."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> str:
        self.number += 1
        return str(self.number)


async def first_of(changes: Changes) -> bytes:
    async with aclosing(aiter(changes.events())) as events:  # type: ignore[type-var]
        return await anext(events)


def test_pages_that_are_opened_together_share_one_look() -> None:
    looks = Looks()

    async def run() -> None:
        changes = Changes(looks, LONG)
        async with anyio.create_task_group() as group:
            for _ in range(MAX_STREAMS):
                group.start_soon(first_of, changes)

    anyio.run(run)
    assert looks.number == 1


def test_every_page_gets_a_change() -> None:
    async def run() -> list[list[bytes]]:
        changes, found = Changes(Looks(), 0.001), [list[bytes](), list[bytes]()]

        async def follow(events: AsyncIterator[bytes], into: list[bytes]) -> None:
            async for event in events:
                into.append(event)
                if event.startswith(b"event: change"):
                    return

        async with anyio.create_task_group() as group:
            for into in found:
                group.start_soon(follow, changes.events(), into)
        return found

    for events in anyio.run(run):
        assert events[0] == b"retry: 5000\n\n" and events[-1] == b"event: change\ndata: 1\n\n"


async def served(changes: Changes, during: Callable[[], Awaitable[None]]) -> int:
    """Have a stream served until a function has ended, and return the status."""
    statuses: list[int] = []
    begun = anyio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
            begun.set()

    async def receive() -> Any:
        await anyio.sleep_forever()

    answer = changes.stream()
    async with anyio.create_task_group() as group:
        group.start_soon(answer, {"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
        await begun.wait()
        await during()
        group.cancel_scope.cancel()
    return statuses[0]


def test_only_so_many_pages_are_updated_at_a_time() -> None:
    async def run() -> None:
        changes = Changes(Looks(), LONG)

        async def with_others(left: int) -> None:
            async def more() -> None:
                if left > 1:
                    await with_others(left - 1)
                else:
                    assert changes.stream().status_code == 503

            assert await served(changes, more) == 200

        await with_others(MAX_STREAMS)
        assert changes.open == 0
        assert changes.stream().status_code == 200

    anyio.run(run)


@pytest.mark.parametrize("number", [1, 3])
def test_an_answer_counts_before_it_begins(number: int) -> None:
    changes = Changes(Looks(), LONG)
    for _ in range(number):
        changes.stream()
    assert changes.open == number
