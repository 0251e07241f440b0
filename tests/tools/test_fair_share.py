"""The share of the event loop that one server gets. Turns of the loop are counted, so no test depends on speed."""

from __future__ import annotations

import asyncio
import threading
from itertools import repeat
from typing import Any

import pytest

from aibridge_addon.tools import catalog, messages, results
from aibridge_addon.tools.fair_share import AT_ONCE, LARGE, UNIT, Pace, Worker, is_large
from aibridge_addon.tools.held import MAX_HELD, MAX_WAITING, HeldResults, ServerRequests
from aibridge_addon.tools.message_json import MAX_DIVIDED_VALUES, MAX_LISTED, MAX_VALUES, decoded
from aibridge_addon.tools.messages import Asked
from aibridge_addon.wire.json_object import Unreadable
from tests.support.odd_mcp import OddMcp, Reply, event, result
from tests.tools.conftest import WITHIN, StartServers


class Turns:
    """Counts the turns of the running event loop."""

    def __init__(self) -> None:
        self.number = 0
        self._loop = asyncio.get_running_loop()
        self._next()

    def _next(self) -> None:
        self.number += 1
        self._loop.call_soon(self._next)


@pytest.mark.parametrize("size", [0, UNIT, 3 * UNIT])
async def test_only_so_much_is_read_in_one_turn(size: int) -> None:
    turns, pace = Turns(), Pace()
    seen: dict[int, int] = {}
    for _ in range(10 * AT_ONCE):
        await pace.took(size)
        seen[turns.number] = seen.get(turns.number, 0) + max(1, size // UNIT)
    assert max(seen.values()) <= AT_ONCE + size // UNIT
    assert len(seen) >= 10


async def test_a_storm_is_read_a_few_messages_in_each_turn(
    start: StartServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    storm = event({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}) * 1000
    mend, seen, enough = messages.mend, dict[int, int](), asyncio.Event()
    turns = Turns()

    def counted(*args: Any, **options: Any) -> Any:
        seen[turns.number] = seen.get(turns.number, 0) + 1
        if sum(seen.values()) > 2000:
            enough.set()
        return mend(*args, **options)

    async with OddMcp({"GET": lambda request: Reply(repeat(storm), kind="text/event-stream")}) as server:
        stage = start({"odd": server.settings()})
        add = await stage.tool("bmcp_odd_add")
        monkeypatch.setattr(messages, "mend", counted)
        async with asyncio.timeout(WITHIN):
            await enough.wait()
        assert await stage.servers.call(add, {}, WITHIN) == {"content": [{"type": "text", "text": "3"}]}
    assert max(seen.values()) <= AT_ONCE + 2  # beside the storm's, the answer to the call


async def test_large_messages_are_read_in_a_thread(start: StartServers, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[tuple[str, int]] = []

    def watched(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            threads.append((name, threading.get_ident()))
            return function(*args, **options)

        monkeypatch.setattr(module, name, call)

    tools = [{"name": f"t{n}", "description": "x" * 100} for n in range(1000)]
    answers = {
        "tools/list": lambda request: result(request, {"tools": tools}),
        "tools/call": lambda request: result(request, {"content": ["x" * (2 * LARGE)]}),
    }
    async with OddMcp(answers) as server:
        stage = start({"odd": server.settings()})
        tool = await stage.tool("bmcp_odd_t7")
        watched(messages, "decoded")
        watched(catalog, "admit")
        assert await stage.servers.call(tool, {}, WITHIN) == {"content": ["x" * (2 * LARGE)]}
        stage.servers._servers["odd"].change()  # type: ignore[union-attr]
        await server.until("tools/list", 2)
        async with asyncio.timeout(WITHIN):
            while not any(name == "admit" for name, _ in threads):  # noqa: ASYNC110 (a thread's doing)
                await asyncio.sleep(0.01)
    assert {name for name, _ in threads} >= {"decoded", "admit"}
    own = threading.get_ident()
    assert [name for name, thread in threads if thread == own and name == "admit"] == []
    assert any(thread != own for name, thread in threads if name == "decoded")


async def test_a_worker_uses_its_thread_for_what_is_large_only() -> None:
    worker = Worker()
    assert await worker.run(LARGE, threading.get_ident) == threading.get_ident()
    assert await worker.run(LARGE + 1, threading.get_ident) != threading.get_ident()


@pytest.mark.parametrize(
    ("value", "large"),
    [
        ({"content": [{"type": "text", "text": "x"}]}, False),
        ("x" * LARGE, True),
        ({"x" * LARGE: 1}, True),
        ([1] * LARGE, True),
        ({"a": {"b": ["x" * LARGE]}}, True),
        (None, False),
    ],
)
def test_large_is_what_takes_long(value: Any, large: bool) -> None:
    assert is_large(value) is large


# --- bounds of messages ----------------------------------------------------------------------------------------------


def body(result: str) -> bytes:
    return b'{"jsonrpc": "2.0", "id": 3, "result": %s}' % result.encode()


def many(count: int) -> str:
    return "[" + "1," * count + "1]"


def test_of_a_list_with_too_many_values_the_first_tools_are_read() -> None:
    tools = ",".join(f'{{"name": "t{n}"}}' for n in range(MAX_VALUES))
    [message] = decoded(body(f'{{"tools": [{tools}], "nextCursor": "x"}}'))
    assert [tool["name"] for tool in message["result"]["tools"]] == [f"t{n}" for n in range(MAX_LISTED)]
    assert message["result"]["aibridge/more"] == MAX_VALUES - MAX_LISTED
    assert message["result"]["nextCursor"] == "x"


def test_a_tool_with_too_many_values_is_one_tool_less() -> None:
    [message] = decoded(body(f'{{"tools": [{{"name": "a", "x": {many(MAX_VALUES)}}}, {{"name": "b"}}]}}'))
    assert [tool["name"] for tool in message["result"]["tools"]] == ["a", "b"]
    assert message["result"]["tools"][1] == {"name": "b"}


@pytest.mark.parametrize(
    ("result", "content"),
    [
        (f'{{"content": ["a", {many(MAX_VALUES)}]}}', ["a", "[content that cannot be read: more than 50000 values]"]),
        (f'{{"content": ["a"], "structuredContent": {many(MAX_VALUES)}}}', ["a"]),
        (f'{{"structuredContent": {many(MAX_VALUES)}}}', [many(MAX_VALUES)]),
    ],
    ids=["a block", "beside content", "alone"],
)
def test_of_a_result_with_too_many_values_the_rest_is_read(result: str, content: list[str]) -> None:
    [message] = decoded(body(result))
    shown = message["result"]["content"]
    assert [block if isinstance(block, str) else block["text"] for block in shown] == content


@pytest.mark.parametrize(
    "value", [many(MAX_DIVIDED_VALUES), "[" * 1000 + "]" * 1000, '{"x": ' + many(MAX_VALUES) + "}"]
)
def test_what_is_neither_a_list_nor_a_result_is_not_read(value: str) -> None:
    with pytest.raises(Unreadable):
        decoded(body(value))


def test_a_large_message_passes_the_library_without_its_result() -> None:
    held, text = HeldResults(), "x" * (2 * LARGE)
    [(message, _)] = messages.mend(body(f'{{"content": ["{text}"]}}'), [Asked(3, "tools/call")], held=held)
    assert len(message) < 500
    assert held.take(0) == {"content": [text]}
    with pytest.raises(KeyError):
        held.take(0)


def test_results_whose_callers_are_gone_are_dropped() -> None:
    held = HeldResults()
    for number in range(10):
        held.hold(number, MAX_HELD // 4)
    with pytest.raises(KeyError):
        held.take(5)
    assert [held.take(key) for key in (6, 7, 8, 9)] == [6, 7, 8, 9]


def test_only_so_many_requests_of_a_server_wait_for_answers() -> None:
    waiting = ServerRequests()
    assert all(waiting.admits(id) for id in range(MAX_WAITING))
    assert not waiting.admits("x")
    waiting.ended(0)
    waiting.ended([])
    assert not waiting.admits(1)
    assert waiting.admits("x")


def test_a_text_that_is_a_bomb_is_not_compared_with_the_structured_content() -> None:
    text = many(MAX_VALUES)
    parts, is_error, _ = results.to_parts({"content": [text], "structuredContent": {"a": 1}}, 1 << 20)
    assert [getattr(part, "text", None) for part in parts] == [text, '{"a": 1}']
    assert not is_error
