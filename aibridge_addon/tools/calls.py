"""Run a model's calls to injected tools. Every failure becomes a result that describes it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from aibridge_addon.config.schema import Mcp
from aibridge_addon.dialects.turns import Call, Invocation, Part, Result, Text
from aibridge_addon.tools import CallError, ErrorKind, results, schemas
from aibridge_addon.tools.caller import Caller
from aibridge_addon.tools.catalog import Tool
from aibridge_addon.tools.fair_share import LARGE, is_large
from aibridge_addon.wire.printable import printable_line
from aibridge_addon.wire.trace_context import TraceContext

if TYPE_CHECKING:
    from aibridge_addon.tools.servers import Servers

logger = logging.getLogger(__name__)

Clock = Callable[[], float]
Outcome = tuple[tuple[Part, ...], str | None]
"""The parts of a result, and the error if it is one."""

CANCELLED = "cancelled before the tool answered"
"""The error in the record of a cancelled invocation."""


class RunningCalls:
    """The invocations of one turn, all at once. Create it on a running event loop."""

    def __init__(
        self,
        servers: Servers,
        calls: Sequence[tuple[Tool | None, Call]],
        settings: Mcp,
        *,
        contexts: Sequence[TraceContext] = (),
        caller: Caller | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Start the invocations.

        Args:
            contexts: the trace contexts that the servers get, one for each call. Empty: there are none.
            caller: who the calls run for.
        """
        self._clock = clock
        self._began = clock()
        self._calls = [
            (
                tool,
                call,
                asyncio.create_task(invoke(servers, tool, call, settings, context=context, caller=caller, clock=clock)),
            )
            for (tool, call), context in zip_longest(calls, contexts)
        ]

    async def done(self, timeout: float) -> bool:
        """Wait for at most `timeout` seconds. Return whether every invocation has ended."""
        tasks = [task for *_, task in self._calls]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
        return all(task.done() for task in tasks)

    def cancel(self) -> None:
        """Cancel running invocations and their MCP requests."""
        for *_, task in self._calls:
            task.cancel()

    def invocations(self) -> list[Invocation]:
        """Return the invocations in the order of the calls. Those without a result count as cancelled."""
        return [
            task.result() if task.done() and not task.cancelled() else self._cancelled(tool, call)
            for tool, call, task in self._calls
        ]

    def _cancelled(self, tool: Tool | None, call: Call) -> Invocation:
        duration_ms = round((self._clock() - self._began) * 1000)
        return Invocation(Result(call, (), is_error=True), tool, CANCELLED, duration_ms, "cancelled")


async def invoke(
    servers: Servers,
    tool: Tool | None,
    call: Call,
    settings: Mcp,
    *,
    context: TraceContext | None = None,
    caller: Caller | None = None,
    clock: Clock = time.monotonic,
) -> Invocation:
    """Run one call. `tool` is None if the model called a tool that does not exist.

    Cancelling this also cancels the MCP request.
    """
    began = clock()
    kind: ErrorKind = "tool"
    try:
        parts, error = await _outcome(servers, tool, call, settings, context, caller)
    except CallError as e:
        kind = e.kind
        parts, error = _failure(str(e))
    except Exception:
        kind = "internal"
        logger.exception("invocation failed: tool=%s", printable_line(tool.name) if tool else "unknown")
        parts, error = _failure("internal error")
    duration_ms = round((clock() - began) * 1000)
    if tool is not None:
        level = logging.DEBUG if error is None else logging.WARNING
        outcome = "failed" if error else "done"
        name = printable_line(tool.original_name)
        logger.log(level, "MCP tool %s of %s: %s, %d ms", name, tool.server_name, outcome, duration_ms)
    is_error = error is not None
    return Invocation(Result(call, parts, is_error=is_error), tool, error, duration_ms, kind if is_error else None)


async def _outcome(
    servers: Servers,
    tool: Tool | None,
    call: Call,
    settings: Mcp,
    context: TraceContext | None,
    caller: Caller | None,
) -> Outcome:
    if tool is None:
        raise CallError(f"there is no tool {call.name[:200]!r}", "request")
    arguments = schemas.original(_arguments(call.input), tool.original_keys)
    returned = await servers.call(
        tool,
        arguments,
        settings.tool_timeout_of(tool.server_name),
        _meta(context, caller),
        caller,
        total=settings.tool_timeout_total,
    )
    parts, is_error, error_text = await servers.worker.run(
        LARGE + 1 if is_large(returned) else 0,
        results.to_parts,
        returned,
        settings.max_result_bytes_of(tool.server_name),
    )
    return parts, error_text if is_error else None


def _meta(context: TraceContext | None, caller: Caller | None) -> dict[str, Any]:
    """Return the request's `_meta` (MCP SEP-414: W3C Trace Context under its own names)."""
    meta = caller.meta() if caller is not None else {}
    if context is not None:
        meta |= {"traceparent": context.traceparent, **({"tracestate": context.state} if context.state else {})}
    return meta


def _arguments(value: Any) -> dict[str, Any]:
    if value is None or value == "":  # OpenAI's models call a tool without parameters so
        return {}
    if not isinstance(value, dict):
        raise CallError("the arguments are not a JSON object", "request")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (RecursionError, TypeError, ValueError):
        # The same error in the MCP library's encoder would end the connection.
        raise CallError("the arguments cannot be sent: they are not valid JSON in UTF-8", "request") from None
    return value


def _failure(text: str) -> Outcome:
    return (Text(f"Error: {text}"),), text
