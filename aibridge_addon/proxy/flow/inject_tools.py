"""A bridged request on its way up, where there are MCP servers: what earlier turns left for it, and the tools."""

from __future__ import annotations

from collections.abc import Iterable

from mitmproxy import http

from aibridge_addon.dialects import INJECTIONS
from aibridge_addon.dialects.base import RequestReading
from aibridge_addon.interception.clients import Speaker
from aibridge_addon.interception.continuations import Continuations, Scope
from aibridge_addon.interception.tool_loop import ToolLoop
from aibridge_addon.proxy.flow.state import FlowState, set_body
from aibridge_addon.records import Record
from aibridge_addon.wire.json_object import JSONObject


async def resume_and_inject(
    flow: http.HTTPFlow, state: FlowState, body: JSONObject, reading: RequestReading, speaker: Speaker
) -> JSONObject:
    """Put in what was kept for this request, then the tools; returns the body as it is now."""
    assert state.bridge.continuations is not None
    resumed = await state.bridge.continuations.resumed(_scope(state), body)
    if resumed is not None:
        _set(flow.request, resumed)
        body = JSONObject(resumed)
    return _injected(flow, state, body, reading, speaker)


def _injected(
    flow: http.HTTPFlow, state: FlowState, body: JSONObject, reading: RequestReading, speaker: Speaker
) -> JSONObject:
    route, servers = state.route, state.bridge.servers
    assert route.dialect is not None and state.exchange is not None and servers is not None
    if (
        not (catalog := servers.catalog).tools
        or not route.provider.inject_tools
        or reading.side_call
        or speaker is Speaker.ASIDE
        or not body.verbatim
    ):
        return body
    injection = INJECTIONS[route.dialect.name]
    request = injection.inject(body, catalog.injected)
    if request is None:
        return body
    _set(flow.request, request)
    flow.request.headers["accept-encoding"] = "identity"  # its answer is put together out of several
    injected = JSONObject(request)
    names = frozenset(tool.name for tool in injection.offered(body, catalog.injected))
    state.catalog = catalog
    state.exchange.loop = ToolLoop(injection, injected, names, max_turns=state.bridge.settings.mcp.max_turns)
    return injected


def remembered(state: FlowState, continuations: Continuations, loop: ToolLoop) -> Iterable[Record]:
    """What an interception with tools leaves for the client's next requests."""
    first, last = loop.response_ids[0], loop.response_ids[-1]
    alias = (first, last) if first and last and first != last else None
    return continuations.remember(_scope(state), held=loop.held, alias=alias, hidden=loop.hidden)


def _scope(state: FlowState) -> Scope:
    assert state.actor is not None and state.route.dialect is not None
    return Scope(state.route.provider.name, state.actor.id, state.route.dialect.name)


def _set(request: http.Request, body: bytes) -> None:
    set_body(request, body)
    request.headers.pop("content-encoding", None)
