"""Complete a bridged request from earlier turns and inject the tools of the MCP servers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from mitmproxy import http

from aibridge_addon.credentials.client import signs_request
from aibridge_addon.dialects.history import RequestHistory
from aibridge_addon.dialects.place import NOWHERE, Position
from aibridge_addon.dialects.turns import Injection
from aibridge_addon.interception import clients
from aibridge_addon.interception.continuations import Continuations
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.scope import Scope
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.interception.tool_loop import ToolLoop
from aibridge_addon.proxy.flow.state import Bridged, Head, ToolRun, set_body
from aibridge_addon.records import Record, RequestClass
from aibridge_addon.tools.catalog import Catalog
from aibridge_addon.wire.json_object import JSONObject

logger = logging.getLogger(__name__)

LARGE = 256 * 1024
"""Bytes. The history of a larger request is read on a worker thread, because it takes more than a millisecond."""

SIGNATURE = "aws_signature"
"""The interception's `not_injected`: why it has got no tools."""
PRESIGNED = "X-Amz-Signature="
"""Part of the query of a presigned URL."""


async def read_history(flow: http.HTTPFlow, state: Bridged, exchange: Exchange, body: JSONObject) -> RequestHistory:
    """Read the complete history of a request. In a session, only what its client does not change counts."""
    assert exchange.history is not None
    read = partial(exchange.history.read, body, whole=not _scope(state.head, exchange).session)
    large = len(flow.request.raw_content or b"") > LARGE or "content-encoding" in flow.request.headers
    return await asyncio.to_thread(read) if large else read()


async def resume_and_inject(
    flow: http.HTTPFlow,
    state: Bridged,
    exchange: Exchange,
    body: JSONObject,
    history: RequestHistory | None,
    request_class: RequestClass,
) -> JSONObject:
    """Insert hidden turns that were kept for this request, then the tools. Returns the resulting body."""
    continuations = state.head.bridge.continuations
    assert continuations is not None
    position = NOWHERE
    if history is not None:
        position = history.position
        completed = await continuations.completed(_scope(state.head, exchange), history)
        if completed is not None:
            _set(flow.request, completed)
            body = JSONObject(completed)
    return _injected(flow, state, exchange, body, request_class, position)


def _injected(
    flow: http.HTTPFlow,
    state: Bridged,
    exchange: Exchange,
    body: JSONObject,
    request_class: RequestClass,
    position: Position,
) -> JSONObject:
    bridge = state.head.bridge
    assert bridge.servers is not None and bridge.continuations is not None
    catalog = bridge.servers.catalog
    injection = _injection(state.head, catalog, body, request_class)
    if injection is None:
        return body
    offered = injection.offered(body, catalog.injected)
    _report_left_out(injection, body, catalog, len(offered))
    if not offered:
        return body
    request = injection.inject(body, offered)
    _set(flow.request, request)
    flow.request.headers["accept-encoding"] = "identity"  # the answer is merged from several turns
    injected = JSONObject(request)
    names = frozenset(tool.name for tool in offered)
    settings = bridge.settings.mcp
    loop = ToolLoop(injection, injected, names, max_turns=settings.max_turns, max_calls=settings.max_calls)
    keep = partial(_remembered, _scope(state.head, exchange), position, bridge.continuations)
    state.tools = ToolRun(ToolExchange(exchange, loop, keep), catalog)
    return injected


def _injection(head: Head, catalog: Catalog, body: JSONObject, request_class: RequestClass) -> Injection | None:
    """Return what injects tools into a request. None: it gets none, whatever tools it has."""
    route = head.route
    injection = route.dialect.injection if route.dialect is not None else None
    if (
        injection is None
        or not catalog.tools
        or not route.provider.inject_tools
        or request_class == "auxiliary"
        or not body.verbatim
    ):
        return None
    return injection.for_model(route.provider.models.get(route.model, route.model))


def is_signed(head: Head) -> bool:
    """Return whether the client's AWS signature covers the body, so that it cannot be changed."""
    return signs_request(head.headers) or PRESIGNED in head.route.query


def note_signature(head: Head, exchange: Exchange, body: JSONObject, request_class: RequestClass) -> None:
    """Note in the interception's metadata that a signed request gets no tools, if it would get any without it."""
    servers = head.bridge.servers
    if servers is None or not is_signed(head):
        return
    injection = _injection(head, servers.catalog, body, request_class)
    if injection is not None and injection.offered(body, servers.catalog.injected):
        exchange.note(not_injected=SIGNATURE)


def _report_left_out(injection: Injection, body: JSONObject, catalog: Catalog, offered: int) -> None:
    """Log once for each catalogue and dialect that a request has no room for all tools."""
    if offered == injection.room(body) and offered < len(catalog.tools) and injection not in catalog.reported:
        catalog.reported.add(injection)
        logger.warning(
            "MCP tools do not fit into a request: the API takes %d, the client has %d, %d of %d are offered",
            *(injection.MAX_TOOLS, len(injection.own_definitions(body)), offered, len(catalog.tools)),
        )


def _remembered(scope: Scope, position: Position, continuations: Continuations, loop: ToolLoop) -> Iterable[Record]:
    """Return the continuation records that the client's next requests may need."""
    alias = loop.response_ids[0], loop.response_ids[-1]
    return continuations.remember(scope, position=position, mixed=loop.mixed, alias=alias, hidden=loop.hidden)


def _scope(head: Head, exchange: Exchange) -> Scope:
    """Return the scope of what is kept. A session that is shorter than a conversation is left out."""
    scope = exchange.scope
    return scope if clients.program(head.headers).session_lasts else replace(scope, session="")


def _set(request: http.Request, body: bytes) -> None:
    set_body(request, body)
    request.headers.pop("content-encoding", None)
