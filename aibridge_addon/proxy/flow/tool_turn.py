"""Between two turns: run the injected calls, and decide what comes next."""

from __future__ import annotations

from mitmproxy import http

from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.proxy.flow import answer
from aibridge_addon.proxy.flow.state import FlowState, error_response, set_body, state_of
from aibridge_addon.tools.calls import RunningCalls


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
        if exchange.tap is not None and exchange.tap.readable:
            _merge(flow.response, exchange)
        else:  # passed on as it is, it might show a call that is not the client's
            message = "the upstream's answer cannot be decoded"
            flow.response = error_response(state.route.errors, 502, message)
        await answer.commit(flow)


async def _run_tools(flow: http.HTTPFlow, state: FlowState, exchange: Exchange) -> None:
    if state.tools is None:
        state.tools = _started(state, exchange)
    state.tools_running = not await state.tools.done(timeout=state.bridge.settings.mcp.keepalive_interval)
    if state.tools_running or not exchange.waiting:  # not waiting: the client has gone, which the layer is about to see
        return
    ran, state.tools = state.tools, None
    request = exchange.tools_ran(ran.invocations())
    if request is not None:
        set_body(flow.request, request)
        state.another_turn = True


def _started(state: FlowState, exchange: Exchange) -> RunningCalls:
    bridge, catalog = state.bridge, state.catalog
    assert exchange.loop is not None and bridge.servers is not None and catalog is not None
    calls = [(catalog.get(call.name), call) for call in exchange.loop.to_run]
    return RunningCalls(bridge.servers, calls, bridge.settings.mcp)


def _merge(response: http.Response, exchange: Exchange) -> None:
    """Put the answer of all turns in place of the last one's, where it differs."""
    body = exchange.merged_body()
    if body is None:
        return
    for name in ("content-encoding", "transfer-encoding", "content-length"):
        response.headers.pop(name, None)
    response.raw_content = body
    response.headers["content-length"] = str(len(body))
