"""Calls as the model asked for them, and what it gets to see."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest

from aibridge_addon.config.schema import Mcp
from aibridge_addon.dialects.turns import Call, Media, Result, Text
from aibridge_addon.tools.calls import CANCELLED, RunningCalls, invoke
from aibridge_addon.tools.catalog import Tool
from aibridge_addon.tools.servers import Servers
from tests.support.mcp_servers import LINK, PIXEL, SOUND, HttpMcp, ToolGate, stdio
from tests.tools.conftest import WITHIN, Stage, StartServers

SETTINGS = Mcp(tool_timeout=WITHIN)
UNKNOWN = Tool("bmcp_gone_x", "x", "gone", None, "", {})


def call(tool: str, value: Any = None) -> Call:
    return Call(id=f"call_{tool}", name=f"bmcp_ours_{tool}", input=value, item={"any": "thing"})


async def run(stage: Stage, asked: Call, settings: Mcp = SETTINGS) -> tuple[Result, str | None]:
    done = await invoke(stage.servers, await stage.tool(asked.name), asked, settings)
    return done.result, done.error


async def test_a_result_belongs_to_its_call_and_says_how_long_it_took(start: StartServers, ours: HttpMcp) -> None:
    stage = start({"ours": ours.settings()})
    asked = call("add", {"a": 1, "b": 2})
    seconds = itertools.count(100, 2.5)
    done = await invoke(stage.servers, await stage.tool(asked.name), asked, SETTINGS, clock=lambda: next(seconds))
    assert (done.result, done.error, done.duration_ms) == (Result(asked, (Text("3"),)), None, 2500)


@pytest.mark.parametrize(
    ("tool", "part"),
    [
        ("image", Media("image/png", PIXEL)),
        ("audio", Media("audio/wav", SOUND)),
        ("embedded_text", Text("[Resource memo://insights (text/markdown)]\n# Insights")),
        ("embedded_blob", Media("application/pdf", "JVBERi0xLjQ=", "file:///report.pdf")),
        (
            "resource_link",
            Text(f"[Link to the resource {LINK.uri}]\nname: main.rs\ntype: text/x-rust\ndescription: Entry"),
        ),
        ("structured_only", Text('{"city": "Zürich", "degrees": 21.5}')),
        ("complain", Text("(no output)")),
    ],
)
async def test_every_kind_of_content_becomes_what_a_dialect_can_carry(
    start: StartServers, ours: HttpMcp, tool: str, part: Text | Media
) -> None:
    asked = call(tool, {"text": "-"} if tool == "complain" else {})
    assert await run(start({"ours": ours.settings()}), asked) == (Result(asked, (part,)), None)


async def test_structured_content_that_the_text_says_already_is_not_repeated(
    start: StartServers, ours: HttpMcp
) -> None:
    result, _ = await run(start({"ours": ours.settings()}), call("structured", {"city": "Bern"}))
    assert len(result.parts) == 1


async def test_an_error_of_the_tool_reaches_the_model_and_the_record(start: StartServers, ours: HttpMcp) -> None:
    asked = call("fail")
    result, error = await run(start({"ours": ours.settings()}), asked)
    assert result == Result(asked, (Text(str(error)),), is_error=True)
    assert error and "it went wrong" in error


async def test_arguments_that_the_tool_refuses_are_an_error(start: StartServers, ours: HttpMcp) -> None:
    result, error = await run(start({"ours": ours.settings()}), call("add", {"a": "no number"}))
    assert result.is_error and error


async def test_a_large_result_is_cut(start: StartServers, ours: HttpMcp) -> None:
    settings = Mcp(tool_timeout=WITHIN, max_result_bytes=10)
    result, error = await run(start({"ours": ours.settings()}), call("big", {"n": 50}), settings)
    note = Text("[The result was too large: 40 of 50 bytes were cut]")
    assert (result.parts, error) == ((Text("x" * 10), note), None)


async def test_a_call_that_takes_too_long_is_an_error(start: StartServers, ours: HttpMcp) -> None:
    stage = start({"ours": ours.settings()})
    await stage.tool("bmcp_ours_slow")
    with ToolGate() as gate:
        asked = call("slow", {"port": gate.port})
        result, error = await run(stage, asked, Mcp(tool_timeout=0.5))
    assert error == "MCP server ours did not answer within 0.5 s"
    assert result == Result(asked, (Text(f"Error: {error}"),), is_error=True)


async def test_a_crash_is_an_error(start: StartServers) -> None:
    result, error = await run(start({"ours": stdio()}), call("crash"))
    assert error == "the connection to MCP server ours was lost"
    assert result.is_error


@pytest.mark.parametrize("value", [None, "", {}])
async def test_no_arguments_are_no_error(start: StartServers, ours: HttpMcp, value: Any) -> None:
    assert (await run(start({"ours": ours.settings()}), call("pid", value)))[1] is None


async def test_a_server_gets_its_own_names_of_arguments_that_had_to_be_renamed(
    start: StartServers, ours: HttpMcp
) -> None:
    stage = start({"ours": ours.settings()})
    tool = replace(await stage.tool("bmcp_ours_add"), original_keys={"first": "a"})
    done = await invoke(stage.servers, tool, call("add", {"first": 1, "b": 2}), SETTINGS)
    assert done.result.parts == (Text("3"),)


@pytest.mark.parametrize("value", ["{broken", "text", 7, [], [{"a": 1}], True])
async def test_arguments_that_are_no_object_are_an_error_without_a_call(value: Any) -> None:
    done = await invoke(Servers({}), UNKNOWN, call("x", value), SETTINGS)
    assert done.error == "the arguments are not a JSON object"
    assert done.result.is_error


@pytest.mark.parametrize("value", [{"a": "\ud83d"}, {"a": float("nan")}, {"a": {1}}])
async def test_arguments_that_cannot_be_sent_are_an_error_without_a_call(value: Any) -> None:
    done = await invoke(Servers({}), UNKNOWN, call("x", value), SETTINGS)
    assert done.error == "the arguments cannot be sent: they are not valid JSON in UTF-8"


async def test_a_tool_that_nobody_knows_is_an_error() -> None:
    done = await invoke(Servers({}), None, call("x", {}), SETTINGS)
    assert done.error == "there is no tool 'bmcp_ours_x'"


async def test_a_tool_whose_server_has_gone_is_an_error() -> None:
    done = await invoke(Servers({}), UNKNOWN, call("x", {}), SETTINGS)
    assert done.error == "there is no MCP server gone"


async def test_big_numbers_and_odd_text_reach_the_tool_as_they_are(start: StartServers, ours: HttpMcp) -> None:
    stage = start({"ours": ours.settings()})
    result, _ = await run(stage, call("add", {"a": 10**30, "b": 1}))
    assert result.parts == (Text(str(10**30 + 1)),)
    result, _ = await run(stage, call("echo", {"text": "ä\u2028\0😀\n"}))
    assert result.parts == (Text("ä\u2028\0😀\n"),)


async def test_several_calls_run_at_once_and_keep_their_order(start: StartServers, ours: HttpMcp) -> None:
    with ToolGate() as gate:
        stage = start({"ours": ours.settings(), "other": stdio()})
        await stage.tool("bmcp_other_slow")
        asked = [call("slow", {"port": gate.port}), call("add", {"a": 1, "b": 2}), call("fail"), call("nothing")]
        asked.append(Call("call_5", "bmcp_other_slow", {"port": gate.port}, {}))
        pairs = [(stage.catalog.get(one.name), one) for one in asked]
        running = RunningCalls(stage.servers, pairs, SETTINGS)
        await asyncio.to_thread(gate.wait_reached)
        await asyncio.to_thread(gate.wait_reached)  # both stand here: neither waited for the other
        gate.open()
        assert await running.done(timeout=WITHIN)
        done = running.invocations()
    assert [one.result.call for one in done] == asked
    assert [one.error is None for one in done] == [True, True, False, False, True]
    assert done[0].result.parts == done[4].result.parts == (Text("at last"),)


async def test_cancelling_cancels_every_call_at_its_server(start: StartServers) -> None:
    with HttpMcp("--legacy") as server, ToolGate() as gate:
        stage = start({"ours": server.settings(), "other": stdio()})
        await stage.tool("bmcp_ours_slow")
        await stage.tool("bmcp_other_slow")
        asked = [Call(name, f"bmcp_{name}_slow", {"port": gate.port}, {}) for name in ("ours", "other")]
        pairs = [(stage.catalog.get(one.name), one) for one in asked]
        seconds = itertools.count(100, 2.5)
        running = RunningCalls(stage.servers, pairs, SETTINGS, clock=lambda: next(seconds))
        await asyncio.to_thread(gate.wait_reached)
        await asyncio.to_thread(gate.wait_reached)
        running.cancel()
        assert await running.done(timeout=WITHIN)
        await asyncio.to_thread(gate.wait_abandoned)
    invocations = running.invocations()
    assert [(one.result.call, one.tool, one.error) for one in invocations] == [
        (asked_for, tool, CANCELLED) for tool, asked_for in pairs
    ]
    assert all(one.duration_ms >= 2500 for one in invocations)


async def test_cancelling_keeps_what_has_been_answered_already(start: StartServers, ours: HttpMcp) -> None:
    with ToolGate() as gate:
        stage = start({"ours": ours.settings()})
        await stage.tool("bmcp_ours_slow")
        asked = [call("add", {"a": 1, "b": 2}), call("slow", {"port": gate.port})]
        running = RunningCalls(stage.servers, [(stage.catalog.get(one.name), one) for one in asked], SETTINGS)
        await asyncio.to_thread(gate.wait_reached)
        while running.invocations()[0].error is not None:
            await running.done(timeout=0.01)
        running.cancel()
        assert await running.done(timeout=WITHIN)
    first, second = running.invocations()
    assert (first.error, second.error) == (None, CANCELLED)
