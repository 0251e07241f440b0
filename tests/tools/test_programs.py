"""Servers that we start ourselves: what they get, what they say, and that none of them is left behind."""

import asyncio
import itertools
import logging
import os
import shlex
import sys

import pytest

from aibridge_addon.config.schema import StdioServer
from aibridge_addon.tools import CallError
from tests.support.mcp_servers import stdio
from tests.tools.conftest import Log, StartServers, ended, runs

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(f"my id is {os.getpid()}", file=sys.stderr, flush=True)
time.sleep(600)
"""


async def test_tools_are_offered_and_called(start: StartServers) -> None:
    stage = start({"ours": stdio()})
    assert await stage.call("bmcp_ours_add", a=1, b=2) == "3"
    assert (await stage.tool("bmcp_ours_add")).server_url is None


async def test_a_changed_list_is_fetched_at_once(start: StartServers) -> None:
    stage = start({"ours": stdio()})
    await stage.call("bmcp_ours_grow")
    assert await stage.call("bmcp_ours_grown") == "grown"


async def test_a_program_gets_the_configured_environment_and_little_else(
    start: StartServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS_ALONE", "secret")
    stage = start({"ours": stdio(env={"TOKEN": "t0ken"})})
    assert await stage.call("bmcp_ours_environment", name="TOKEN") == "t0ken"
    assert await stage.call("bmcp_ours_environment", name="PATH") == os.environ["PATH"]
    assert await stage.call("bmcp_ours_environment", name="OURS_ALONE") == "(not set)"


async def test_a_program_that_is_not_there_is_logged_and_holds_nobody_up(start: StartServers, log: Log) -> None:
    stage = start({"none": StdioServer(command="/no/such/program"), "ours": stdio()})
    await stage.call("bmcp_ours_add", a=1, b=2)
    await stage.failures(2)
    assert log.said("none") == [
        "MCP server none: away: its command was not found: name its full path, or put its folder on PATH; trying again"
    ]


async def test_a_program_that_ends_when_it_does_not_know_the_newest_protocol_is_asked_in_the_old_one(
    start: StartServers,
) -> None:
    assert await start({"old": stdio("--strictly-old")}).call("bmcp_old_old") == "still here"


async def test_output_that_is_no_message_is_skipped(start: StartServers) -> None:
    program = stdio()
    line = f"echo Welcome!; echo '{{\"no\": 1}}'; exec {shlex.join([program.command, *program.args])}"
    stage = start({"ours": StdioServer(command="sh", args=("-c", line))})
    assert await stage.call("bmcp_ours_add", a=1, b=2) == "3"


async def test_stderr_is_logged_at_debug_without_secrets_and_not_without_end(start: StartServers, log: Log) -> None:
    stage = start({"ours": stdio(env={"TOKEN": "t0ken-of-ours"})})
    await stage.call("bmcp_ours_complain", text="my token is t0ken-of-ours")
    assert await log.line("my token") == "MCP server ours: stderr: my token is [redacted]"
    await stage.call("bmcp_ours_complain", text="noise\n" * 100_000)
    assert await stage.call("bmcp_ours_add", a=1, b=2) == "3"
    lines = [record for record in log.records if "stderr" in record.getMessage()]
    assert {record.levelno for record in lines} == {logging.DEBUG}
    assert len(lines) <= 200


async def test_a_program_that_crashes_fails_its_calls_and_is_started_again(start: StartServers) -> None:
    stage = start({"ours": stdio()})
    first = await stage.call("bmcp_ours_pid")
    with pytest.raises(CallError, match="the connection to MCP server ours was lost"):
        await stage.call("bmcp_ours_crash")
    second = await stage.call("bmcp_ours_pid")
    assert first != second
    assert stage.delays == [1]


async def test_a_program_that_crashes_after_a_good_while_is_started_again_at_once(start: StartServers) -> None:
    hours = itertools.count(step=3600)
    stage = start({"ours": stdio()}, clock=lambda: float(next(hours)))
    with pytest.raises(CallError):
        await stage.call("bmcp_ours_crash")
    await stage.call("bmcp_ours_add", a=1, b=2)
    assert stage.delays == []


async def test_an_answer_beyond_all_bounds_costs_nothing_but_itself(start: StartServers, log: Log) -> None:
    stage = start({"ours": stdio()})
    answer = await stage.call("bmcp_ours_big", n=17 << 20)
    assert answer == "[The tool has run, but its answer cannot be read: larger than 16777216 bytes]"
    assert not log.said("away")
    assert await stage.call("bmcp_ours_add", a=1, b=2) == "3"


async def test_a_large_answer_arrives(start: StartServers) -> None:
    assert await start({"ours": stdio()}).call("bmcp_ours_big", n=4 << 20) == "x" * (4 << 20)


# --- ends -----------------------------------------------------------------------------------------


async def test_after_close_neither_the_program_nor_what_it_started_is_left(start: StartServers) -> None:
    stage = start({"ours": stdio()})
    program, child = int(await stage.call("bmcp_ours_pid")), int(await stage.call("bmcp_ours_spawn"))
    assert runs(program) and runs(child)
    await stage.servers.close()
    assert not runs(program)
    assert not runs(child)
    assert not stage.catalog.tools


async def test_what_a_crashed_program_had_started_ends_too(start: StartServers) -> None:
    stage = start({"ours": stdio()})
    child = int(await stage.call("bmcp_ours_spawn"))
    with pytest.raises(CallError):
        await stage.call("bmcp_ours_crash")
    await ended(child)


async def test_a_program_that_will_not_end_is_killed(start: StartServers, log: Log) -> None:
    stage = start({"stubborn": StdioServer(command=sys.executable, args=("-c", STUBBORN))})
    program = int((await log.line("my id is")).rpartition(" ")[2])
    assert runs(program)
    await stage.servers.close()
    assert not runs(program)


async def test_a_close_that_is_cancelled_leaves_nothing_behind(start: StartServers, log: Log) -> None:
    stage = start({"ours": stdio(), "stubborn": StdioServer(command=sys.executable, args=("-c", STUBBORN))})
    child = int(await stage.call("bmcp_ours_spawn"))
    program = int((await log.line("my id is")).rpartition(" ")[2])
    closing = asyncio.create_task(stage.servers.close())
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await ended(program)
    await ended(child)


async def test_a_close_that_may_take_no_time_leaves_nothing_behind(start: StartServers) -> None:
    stage = start({"ours": stdio()})
    child = int(await stage.call("bmcp_ours_spawn"))
    await stage.servers.close(timeout=0)
    await ended(child)


async def test_kill_ends_all_without_waiting(start: StartServers) -> None:
    stage = start({"ours": stdio()})
    program, child = int(await stage.call("bmcp_ours_pid")), int(await stage.call("bmcp_ours_spawn"))
    stage.servers.kill()
    await ended(program)
    await ended(child)
