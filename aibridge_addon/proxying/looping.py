"""Between two turns: run the injected calls, and decide what comes next."""

from __future__ import annotations

import asyncio

from mitmproxy import http

from aibridge_addon.exchange import Exchange
from aibridge_addon.invocation import Invocation
from aibridge_addon.proxying import answering
from aibridge_addon.proxying.flow_state import FlowState, set_body, state_of
from aibridge_addon.tooling.invoke import invoke_all


async def turn_ended(flow: http.HTTPFlow) -> None:
    """A turn's answer is complete. Returns after at most one keep-alive interval; see `FlowState.tools_running`."""
    state = state_of(flow)
    assert state is not None and state.exchange is not None and flow.response is not None
    exchange = state.exchange
    if not exchange.streaming and not exchange.waiting and not exchange.ended:
        exchange.take_body(flow.response.raw_content or b"")
    if exchange.waiting:
        await _run_tools(flow, state, exchange)
    if exchange.ended and not exchange.streaming:
        _merge(flow.response, exchange)
        await answering.commit(flow)


async def _run_tools(flow: http.HTTPFlow, state: FlowState, exchange: Exchange) -> None:
    if state.tools is None:
        state.tools = asyncio.create_task(_invoke(state, exchange))
    await asyncio.wait({state.tools}, timeout=state.bridge.settings.mcp.keepalive_interval)
    state.tools_running = not state.tools.done()
    if state.tools_running:
        return
    ran, state.tools = state.tools, None
    if ran.cancelled():
        return  # the client has gone, which the layer is about to see
    request = exchange.tools_ran(ran.result())
    if request is not None:
        set_body(flow.request, request)
        state.another_turn = True


async def _invoke(state: FlowState, exchange: Exchange) -> list[Invocation]:
    bridge, catalog = state.bridge, state.catalog
    assert exchange.loop is not None and bridge.servers is not None and catalog is not None
    calls = [(catalog.get(call.name), call) for call in exchange.loop.to_run]
    ran = await invoke_all(bridge.servers, calls, bridge.settings.mcp)
    return [
        Invocation(outcome.result, tool, outcome.error, outcome.duration_ms)
        for (tool, _), outcome in zip(calls, ran, strict=True)
    ]


def _merge(response: http.Response, exchange: Exchange) -> None:
    """Put the answer of all turns in place of the last one's, where it differs."""
    body = exchange.merged_body()
    if body is None:
        return
    for name in ("content-encoding", "transfer-encoding", "content-length"):
        response.headers.pop(name, None)
    response.raw_content = body
    response.headers["content-length"] = str(len(body))
