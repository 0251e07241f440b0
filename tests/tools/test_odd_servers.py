"""Servers that answer as no specification allows: what it costs, and whom."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from typing import Any, Literal

import pytest

from aibridge_addon.tools import CallError
from tests.support.odd_mcp import ADD, OddMcp, OldMcp, Reply, Request, Script, error, event, result, text
from tests.tools.conftest import WITHIN, Log, StartServers

HELD: dict[str, Any] = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}


# --- the codes of the peer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [-32000, -32001, -32600, -32603, -99001, -99002, -99003, -99004, 0, 7])
async def test_an_error_of_a_tool_reaches_the_model_as_its_text_and_no_other_call(
    start: StartServers, log: Log, code: int
) -> None:
    release = asyncio.Event()

    def call(request: Request) -> Reply:
        if request["params"]["arguments"] == {"a": 1}:
            return Reply.events(release, event({"jsonrpc": "2.0", "id": request["id"], "result": {"content": []}}))
        return error(request, code, "Quota exceeded")

    async with OddMcp({"tools/call": call}) as server:
        stage = start({"odd": server.settings()})
        add = await stage.tool("bmcp_odd_add")
        other = asyncio.create_task(stage.servers.call(add, {"a": 1}, WITHIN))
        await server.until("tools/call")
        with pytest.raises(CallError, match=r"^MCP server odd: Quota exceeded$"):
            await stage.servers.call(add, {"a": 2}, WITHIN)
        release.set()
        assert await other == {"content": []}
        assert len(server.seen("initialize")) == 1
    assert not log.said("away")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"Session not found"}}'),
        (404, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Session not found"}}'),
        (404, b""),
        (404, b"<html>"),
        (400, b'{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID"},"id":null}'),
        (400, b"Invalid session"),
    ],
)
async def test_a_session_that_has_expired_is_a_new_session_and_a_repeated_call(
    start: StartServers, status: int, body: bytes
) -> None:
    expired = False

    def unless_expired(request: Request) -> Reply:
        if expired and request["headers"]["mcp-session-id"] == "session-1":
            return Reply.json(body, status)
        return server.well_behaved(request)

    async with OddMcp({"tools/call": unless_expired, "tools/list": unless_expired}) as server:
        stage = start({"odd": server.settings()})
        add = await stage.tool("bmcp_odd_add")
        expired = True
        assert await stage.servers.call(add, {}, WITHIN) == {"content": [{"type": "text", "text": "3"}]}
        assert len(server.seen("initialize")) == 2
        assert len(server.seen("tools/call")) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 422, 429, 500, 503])
async def test_a_refused_call_is_that_calls_failure_alone(start: StartServers, log: Log, status: int) -> None:
    def call(request: Request) -> Reply:
        return error(request, -32602, "a is too large", status)

    async with OddMcp({"tools/call": call}) as server:
        stage = start({"odd": server.settings()})
        add = await stage.tool("bmcp_odd_add")
        with pytest.raises(CallError, match=rf"^MCP server odd: a is too large \(HTTP {status}\)$"):
            await stage.servers.call(add, {}, WITHIN)
        assert len(server.seen("initialize")) == 1
    assert not log.said("away")


@pytest.mark.parametrize(
    "ends",
    [
        lambda: Reply.events(),
        lambda: Reply.events(event(HELD)),
        lambda: Reply.events(event(HELD), cut=True),
        lambda: Reply.events(b'data: {"jsonrpc"', cut=True),
        lambda: Reply((b'{"jsonrpc":',), cut=True),
        lambda: Reply(status=202),
        lambda: Reply(status=302, headers={"location": "http://127.0.0.1:9/"}),
    ],
)
async def test_the_end_of_a_calls_own_stream_is_that_calls_failure_alone(
    start: StartServers, log: Log, ends: Callable[[], Reply]
) -> None:
    release = asyncio.Event()

    def call(request: Request) -> Reply:
        if request["params"]["arguments"] == {"a": 1}:
            return Reply.events(release, event({"jsonrpc": "2.0", "id": request["id"], "result": {"content": []}}))
        return ends()

    async with OddMcp({"tools/call": call}) as server:
        stage = start({"odd": server.settings()})
        add = await stage.tool("bmcp_odd_add")
        other = asyncio.create_task(stage.servers.call(add, {"a": 1}, WITHIN))
        await server.until("tools/call")
        with pytest.raises(CallError, match=r"^MCP server odd"):
            await stage.servers.call(add, {"a": 2}, WITHIN)
        release.set()
        assert await other == {"content": []}
        assert len(server.seen("initialize")) == 1
    assert not log.said("away")


async def test_a_stream_whose_events_have_ids_is_resumed(start: StartServers) -> None:
    def call(request: Request) -> Reply:
        return Reply.events(b"retry: 10\n" + event(HELD, id="first"))

    def resume(request: Request) -> Reply:
        if "last-event-id" not in request["headers"]:
            return Reply(status=405)
        return Reply.events(event({"id": server.seen("tools/call")[0]["id"], "result": {"content": ["resumed"]}}))

    async with OddMcp({"tools/call": call, "GET": resume}) as server:
        stage = start({"odd": server.settings()})
        assert await stage.servers.call(await stage.tool("bmcp_odd_add"), {}, WITHIN) == {"content": ["resumed"]}
        assert server.seen("GET")[-1]["headers"]["last-event-id"] == "first"


# --- envelopes -------------------------------------------------------------------------------------------------------

ENVELOPES = {
    "no jsonrpc": '{"id": %(id)s, "result": {"content": []}}',
    "another jsonrpc": '{"jsonrpc": 2.0, "id": %(id)s, "result": {"content": []}}',
    "a number with a fraction": '{"jsonrpc": "2.0", "id": %(id)s.0, "result": {"content": []}}',
    "a text": '{"jsonrpc": "2.0", "id": "%(id)s", "result": {"content": []}}',
    "no id": '{"jsonrpc": "2.0", "result": {"content": []}}',
    "null": '{"jsonrpc": "2.0", "id": null, "result": {"content": []}}',
    "an error beside": '{"jsonrpc": "2.0", "id": %(id)s, "result": {"content": []}, "error": null}',
    "a list": '[{"jsonrpc": "2.0", "id": %(id)s, "result": {"content": []}}]',
    "a notification before it": '[{"jsonrpc": "2.0", "method": "notifications/message", "params": {}}, '
    '{"jsonrpc": "2.0", "id": %(id)s, "result": {"content": []}}]',
    "a method beside": '{"jsonrpc": "2.0", "id": %(id)s, "method": "tools/call", "result": {"content": []}}',
    "a byte order mark": '\ufeff{"jsonrpc": "2.0", "id": %(id)s, "result": {"content": []}}',
    "no JSON numbers": '{"jsonrpc": "2.0", "id": %(id)s, "result": {"content": [], "ttlMs": NaN, "x": 1e999}}',
    "half an emoji": '{"jsonrpc": "2.0", "id": %(id)s, "result": {"content": [], "x": "\\ud83d"}}',
    "other members": '{"jsonrpc": "2.0", "id": %(id)s, "result": {"content": []}, "ok": true}',
}


@pytest.mark.parametrize("streamed", [False, True], ids=["json", "events"])
@pytest.mark.parametrize("envelope", ENVELOPES.values(), ids=ENVELOPES.keys())
async def test_an_odd_envelope_does_not_cost_the_answer(start: StartServers, envelope: str, streamed: bool) -> None:
    def call(request: Request) -> Reply:
        body = (envelope % {"id": request["id"]}).encode()
        return Reply.events(event(body)) if streamed else Reply.json(body)

    async with OddMcp({"tools/call": call}) as server:
        stage = start({"odd": server.settings()})
        answer = await stage.servers.call(await stage.tool("bmcp_odd_add"), {}, WITHIN)
        assert answer["content"] == []


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply.json(b'{"content": []}'), []),
        (Reply.json(b'{"content": []}', headers={"content-type": "text/plain"}), []),
        (Reply.json(b"not JSON"), "it is not JSON"),
        (Reply.json(b""), "it is not JSON"),
        (Reply.json(b"[]"), "no message"),
        (Reply.json(b'{"jsonrpc": "2.0", "method": "notifications/message"}'), "it has no result"),
        (Reply.json(b'{"id": 1, "result": ' + b"[" * 9999 + b"]" * 9999 + b"}"), "nested too deeply"),
        (Reply.json(gzip.compress(b" " * (17 << 20), mtime=0), headers={"content-encoding": "gzip"}), "larger than"),
        (Reply.json(b"x", headers={"content-encoding": "gzip"}), "it is not JSON"),
        (Reply.json(b"x", headers={"content-encoding": "compress"}), "compress"),
        (Reply.events(b"data: {broken\n\n"), "it is not JSON"),
        (Reply.events(b"data: " + b"x" * (17 << 20) + b"\n\n"), "larger than"),
    ],
)
async def test_a_call_that_has_run_is_never_one_that_failed(start: StartServers, reply: Reply, expected: Any) -> None:
    async with OddMcp({"tools/call": lambda request: reply}) as server:
        stage = start({"odd": server.settings()})
        answer = await stage.servers.call(await stage.tool("bmcp_odd_add"), {}, WITHIN)
        assert not answer.get("isError")
        if isinstance(expected, str):
            assert answer["content"][0]["text"].startswith("[The tool has run, but its answer cannot be read: ")
            assert expected in answer["content"][0]["text"]
        else:
            assert answer["content"] == expected


async def test_a_bomb_of_many_events_is_bounded(start: StartServers) -> None:
    body = gzip.compress(event(HELD) * 300_000)
    reply = Reply((body,), kind="text/event-stream", headers={"content-encoding": "gzip"})
    async with OddMcp({"tools/call": lambda request: reply}) as server:
        stage = start({"odd": server.settings()})
        answer = await stage.servers.call(await stage.tool("bmcp_odd_add"), {}, WITHIN)
        assert "cannot be read" in answer["content"][0]["text"]


@pytest.mark.parametrize(
    "hello",
    [
        {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}},
        {"protocolVersion": "2025-06-18", "capabilities": {"tools": True}, "serverInfo": None},
        {"protocolVersion": "2025-06-18", "capabilities": None, "serverInfo": {"name": 7}},
        {"protocolVersion": "2025-06-18", "capabilities": {"tools": {"listChanged": "yes"}, "logging": 1}},
        {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}, "experimental": []}, "instructions": 5},
        {"protocolVersion": "1999-01-01", "capabilities": {"tools": {}}, "serverInfo": {}},
        {"protocolVersion": None, "capabilities": {"tools": {}}, "_meta": "x"},
    ],
)
async def test_members_of_the_handshake_that_are_not_read_cost_nothing(
    start: StartServers, hello: dict[str, Any]
) -> None:
    async with OddMcp({"initialize": lambda request: result(request, hello)}) as server:
        assert await start({"odd": server.settings()}).call("bmcp_odd_add") == "3"


# --- lists -----------------------------------------------------------------------------------------------------------


async def test_one_odd_tool_is_one_tool_less_and_named(start: StartServers, log: Log) -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"properties": {"x": deep}}
    tools = [ADD, {"name": 7}, {"name": "odd", "inputSchema": "x"}, None, "text", {"name": "deep", "inputSchema": deep}]
    async with OddMcp({"tools/list": lambda request: result(request, {"tools": tools})}) as server:
        stage = start({"odd": server.settings()})
        assert await stage.call("bmcp_odd_add") == "3"
    assert log.said("left out") == [
        "MCP server odd: 4 tools left out: 'tools[1]' (name: not a text), 'odd' (inputSchema: not an object), "
        "'tools[4]' (not an object), 'deep' (inputSchema: not an object)"
    ]


async def test_a_list_that_fails_leaves_the_last_one_and_the_connection(start: StartServers, log: Log) -> None:
    fails: Script | None = None

    def listed(request: Request) -> Reply:
        return server.well_behaved(request) if fails is None else fails(request)

    failures: list[Script] = [
        lambda request: error(request, -32603, "out of order"),
        lambda request: error(request, -32000, "out of order", 500),
        lambda request: Reply.json(b"broken"),
        lambda request: Reply.events(),
    ]
    async with OddMcp({"tools/list": listed}) as server:
        stage = start({"odd": server.settings()}, refreshed_every=0.01)
        catalog = await stage.until(lambda catalog: bool(catalog.tools))
        for fails in failures:  # noqa: B007 (read by `listed`)
            await server.until("tools/list", len(server.seen("tools/list")) + 3)
            assert await stage.call("bmcp_odd_add") == "3"
        assert stage.catalog is catalog
        assert len(server.seen("initialize")) == 1
    assert not log.said("away")
    assert log.said("its tools cannot be listed")[0].endswith("out of order; trying again")


async def test_a_storm_of_changes_is_listed_once_in_a_while_and_the_last_counts(start: StartServers) -> None:
    release = asyncio.Event()
    changed = event({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
    grown = False

    def notices(request: Request) -> Reply:
        return Reply.events(release, changed * 500, asyncio.Event())

    def listed(request: Request) -> Reply:
        return result(request, {"tools": [ADD, *([{"name": "grown"}] if grown else [])]})

    async with OddMcp({"GET": notices, "tools/list": listed}) as server:
        stage = start({"odd": server.settings()}, listed_every=0.5)
        await stage.tool("bmcp_odd_add")
        await server.until("GET")
        grown = True
        release.set()
        await stage.tool("bmcp_odd_grown")
        assert len(server.seen("tools/list")) <= 4


async def test_a_cursor_that_comes_again_ends_the_list(start: StartServers) -> None:
    def listed(request: Request) -> Reply:
        return result(request, {"tools": [ADD], "nextCursor": 7})

    async with OddMcp({"tools/list": listed}) as server:
        await start({"odd": server.settings()}).call("bmcp_odd_add")
        assert [seen.get("params", {}).get("cursor") for seen in server.seen("tools/list")][:2] == [None, "7"]
        assert len(server.seen("tools/list")) == 2


# --- progress --------------------------------------------------------------------------------------------------------


async def test_progress_extends_the_time_of_a_call(start: StartServers) -> None:
    release = [asyncio.Event() for _ in range(4)]

    def call(request: Request) -> Reply:
        token = request["params"]["_meta"]["progressToken"]
        params = {"progressToken": token, "progress": 1}
        progress = event({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
        steps = [part for gate in release for part in (progress, gate)]
        return Reply.events(*steps, event({"jsonrpc": "2.0", "id": request["id"], "result": {"content": []}}))

    async with OddMcp({"tools/call": call}) as server:
        stage = start({"odd": server.settings()})
        running = asyncio.create_task(stage.servers.call(await stage.tool("bmcp_odd_add"), {}, 1.0, total=WITHIN))
        for gate in release:
            await asyncio.wait({running}, timeout=0.6)
            gate.set()
        assert await running == {"content": []}


async def test_progress_extends_the_time_up_to_a_bound_only(start: StartServers) -> None:
    def call(request: Request) -> Reply:
        params = {"progressToken": request["params"]["_meta"]["progressToken"], "progress": 1}
        progress = event({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
        return Reply.events(progress, asyncio.Event())

    async with OddMcp({"tools/call": call}) as server:
        stage = start({"odd": server.settings()})
        add = await stage.tool("bmcp_odd_add")
        with pytest.raises(CallError, match=r"reported no progress for 0.5 s"):
            await stage.servers.call(add, {}, 0.5, total=WITHIN)
        with pytest.raises(CallError, match=r"did not answer within 0.5 s"):
            await stage.servers.call(add, {}, 0.5)
        await server.until("notifications/cancelled", 2)


# --- the transport of 2024 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "refuses"), [("sse", 405), ("http", 405), ("http", 404)])
async def test_a_server_with_the_older_transport_is_used_with_or_without_being_named(
    start: StartServers, log: Log, kind: Literal["http", "sse"], refuses: int
) -> None:
    async with OldMcp(refuses=refuses) as server:
        stage = start({"old": server.settings(type=kind)})
        assert await stage.call("bmcp_old_add") == "3"
        assert stage.delays == []
    assert log.said("old")[0] == "MCP server old: connected, 1 tools"


async def test_a_large_answer_on_the_older_transport_arrives(start: StartServers) -> None:
    async with OldMcp({"tools/call": lambda request: text(request, "x" * (3 << 20))}) as server:
        assert await start({"old": server.settings(type="sse")}).call("bmcp_old_add") == "x" * (3 << 20)


async def test_a_refused_message_on_the_older_transport_is_that_calls_failure_alone(
    start: StartServers, log: Log
) -> None:
    def call(request: Request) -> Reply:
        bad = request["params"]["arguments"] == {"a": 1}
        return error(request, -32000, "out of order", 500) if bad else text(request, "fine")

    async with OldMcp({"tools/call": call}) as server:
        stage = start({"old": server.settings(type="sse")})
        with pytest.raises(CallError, match=r"^MCP server old: out of order \(HTTP 500\)$"):
            await stage.call("bmcp_old_add", a=1)
        assert await stage.call("bmcp_old_add") == "fine"
    assert len(server.seen("initialize")) == 1


async def test_the_end_of_the_older_transports_stream_is_the_end_of_the_connection(start: StartServers) -> None:
    async with OldMcp() as server:
        stage = start({"old": server.settings(type="sse")})
        assert await stage.call("bmcp_old_add") == "3"
        server.hang_up()
        await server.until("initialize", 2)
        assert await stage.call("bmcp_old_add") == "3"


async def test_a_server_that_has_neither_transport_is_named_by_its_refusal(start: StartServers, log: Log) -> None:
    refused = {method: lambda request: Reply(status=404) for method in ("initialize", "GET")}
    async with OddMcp(refused) as server:
        await start({"none": server.settings()}).failures(1)
    assert log.said("none") == ["MCP server none: away: it has no streamable HTTP at this URL (HTTP 404); trying again"]
