"""Run the injected calls between two turns, and decide whether another turn follows."""

from __future__ import annotations

import logging

from mitmproxy import http

from aibridge_addon.dialects.errors import error_of_body
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.proxy.flow import answer
from aibridge_addon.proxy.flow.inject_tools import caller_of
from aibridge_addon.proxy.flow.refused import decoded_body
from aibridge_addon.proxy.flow.state import Bridged, ToolRun, error_response, set_body
from aibridge_addon.proxy.flow.traces import call_contexts
from aibridge_addon.tools.calls import RunningCalls
from aibridge_addon.wire.framing import media_type
from aibridge_addon.wire.printable import printable_line

logger = logging.getLogger(__name__)


async def turn_ended(flow: http.HTTPFlow, state: Bridged, tools: ToolRun) -> None:
    """Handle a complete answer of a turn. Returns after at most one keep-alive interval; see `ToolRun.calls`.

    Sets `flow.response` to None if another turn follows.
    """
    response, exchange = flow.response, tools.exchange.exchange
    assert response is not None
    if tools.exchange.is_refused:
        _ask_again(flow, state, tools, response)
        return
    if tools.exchange.waiting:
        await _run_tools(flow, state, tools)
    if exchange.ended and not tools.exchange.streamed:
        if (error := tools.exchange.error) is None:
            _merge(response, tools.exchange)
        else:  # forwarded, it might show the client an injected call, or look like a whole answer
            flow.response = error_response(state.head.route.errors, 502, error.message or "the upstream failed")
        await answer.commit(flow, state)


async def _run_tools(flow: http.HTTPFlow, state: Bridged, tools: ToolRun) -> None:
    calls = tools.calls = tools.calls or start_calls(state, tools)
    if not await calls.done(timeout=state.head.bridge.settings.mcp.keepalive_interval):
        return
    tools.calls = None
    if not tools.exchange.waiting:  # the client has disconnected; the stream handles that next
        return
    request = tools.exchange.tools_ran(calls.invocations())
    if request is not None:
        state.head.dispatch.attempts.later_turn(state.head.bridge.settings.mcp.later_turn_retries)
        set_body(flow.request, request)
        flow.response = None


def _ask_again(flow: http.HTTPFlow, state: Bridged, tools: ToolRun, response: http.Response) -> None:
    """Send a later turn that was refused again, if its results may be the reason."""
    error = error_of_body(decoded_body(response), default_type="")
    request = tools.exchange.asked_again(error)
    if request is None:
        return
    logger.info(
        "a turn was refused, and is asked again with shorter results: interception=%s: %s",
        *(tools.exchange.exchange.id, printable_line(error.message)),
    )
    set_body(flow.request, request)
    flow.response = None


def start_calls(state: Bridged, tools: ToolRun) -> RunningCalls:
    """Start the invocations of a turn."""
    bridge = state.head.bridge
    assert bridge.servers is not None
    calls = [(tools.catalog.get(call.name), call) for call in tools.exchange.loop.to_run]
    contexts = call_contexts(state.head, tools.exchange.exchange, len(calls))
    caller = caller_of(state.head, tools.exchange.exchange)
    return RunningCalls(bridge.servers, calls, bridge.settings.mcp, contexts=contexts, caller=caller)


def _merge(response: http.Response, exchange: ToolExchange) -> None:
    """Replace the last turn's body by the merged one, if they differ."""
    body = exchange.merged_body()
    if body is None:
        return
    for name in ("content-encoding", "transfer-encoding", "content-length"):
        response.headers.pop(name, None)
    if media_type(response.headers.get("content-type", "")) in exchange.exchange.framings:
        response.headers["content-type"] = "application/json"
    for name, value in exchange.loop.splice.headers.items():
        response.headers[name] = value
    response.raw_content = body
    response.headers["content-length"] = str(len(body))
