"""Run the calls of injected tools that a model asked for. Whatever goes wrong becomes a result that says so."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from aibridge_addon.config.schema import Mcp
from aibridge_addon.dialects.turns import Call, Invocation, Part, Result, Text
from aibridge_addon.tools import CallError, results
from aibridge_addon.tools.catalog import Tool

if TYPE_CHECKING:
    from aibridge_addon.tools.servers import Servers

logger = logging.getLogger(__name__)

Clock = Callable[[], float]
Outcome = tuple[tuple[Part, ...], str | None]


CANCELLED = "cancelled before the tool had answered"


class RunningCalls:
    """The calls of one turn, all run at once. Must be made on a running event loop."""

    def __init__(
        self,
        servers: Servers,
        calls: Sequence[tuple[Tool | None, Call]],
        settings: Mcp,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._clock = clock
        self._began = clock()
        self._calls = [
            (tool, call, asyncio.create_task(invoke(servers, tool, call, settings, clock=clock)))
            for tool, call in calls
        ]

    async def done(self, timeout: float) -> bool:
        """Wait for at most `timeout` seconds; returns whether every call has ended."""
        tasks = [task for *_, task in self._calls]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
        return all(task.done() for task in tasks)

    def cancel(self) -> None:
        """Nobody waits for the results any more: end what still runs, and the MCP requests with it."""
        for *_, task in self._calls:
            task.cancel()

    def invocations(self) -> list[Invocation]:
        """What came of each, in the order of the calls. One that has no result is told as cancelled."""
        return [
            task.result() if task.done() and not task.cancelled() else self._cancelled(tool, call)
            for tool, call, task in self._calls
        ]

    def _cancelled(self, tool: Tool | None, call: Call) -> Invocation:
        duration_ms = round((self._clock() - self._began) * 1000)
        return Invocation(Result(call, (), is_error=True), tool, CANCELLED, duration_ms)


async def invoke(
    servers: Servers, tool: Tool | None, call: Call, settings: Mcp, *, clock: Clock = time.monotonic
) -> Invocation:
    """Run one call of `tool`; None: the name that the model called is of no tool that we know.

    When this is cancelled, so is the MCP request.
    """
    began = clock()
    try:
        parts, error = await _outcome(servers, tool, call, settings)
    except CallError as e:
        parts, error = _failure(str(e))
    except Exception:
        logger.exception("injected tool %s", tool.name if tool else "unknown")
        parts, error = _failure("internal error")
    duration_ms = round((clock() - began) * 1000)
    if tool is not None:
        level = logging.DEBUG if error is None else logging.WARNING
        outcome = "failed" if error else "done"
        logger.log(level, "MCP tool %s of %s: %s, %d ms", tool.original_name, tool.server_name, outcome, duration_ms)
    return Invocation(Result(call, parts, is_error=error is not None), tool, error, duration_ms)


async def _outcome(servers: Servers, tool: Tool | None, call: Call, settings: Mcp) -> Outcome:
    if tool is None:
        raise CallError(f"there is no tool {call.name[:200]!r}")
    returned = await servers.call(tool, _arguments(call.input), settings.tool_timeout)
    parts, is_error, error_text = results.to_parts(returned, settings.max_result_bytes)
    return parts, error_text if is_error else None


def _arguments(value: Any) -> dict[str, Any]:
    if value is None or value == "":  # how OpenAI's models call a tool without parameters
        return {}
    if not isinstance(value, dict):
        raise CallError("the arguments are not a JSON object")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (RecursionError, TypeError, ValueError):
        # Of the connection's own encoder, it would be the end.
        raise CallError("the arguments cannot be sent: they are not JSON in UTF-8") from None
    return value


def _failure(text: str) -> Outcome:
    return (Text(f"Error: {text}"),), text
