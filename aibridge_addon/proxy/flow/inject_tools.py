"""Complete a bridged request from earlier turns and inject the tools of the MCP servers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import partial

from mitmproxy import http

from aibridge_addon.credentials.client import signs_request
from aibridge_addon.dialects import RESPONSES
from aibridge_addon.dialects.history import RequestHistory
from aibridge_addon.dialects.our_calls import PREFIX
from aibridge_addon.dialects.place import NOWHERE, Position
from aibridge_addon.dialects.turns import Injection
from aibridge_addon.interception import clients
from aibridge_addon.interception.continuations import Continuations, StoredTurns
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.refused_tools import circumstances
from aibridge_addon.interception.result_bounds import Bounds
from aibridge_addon.interception.routing import Route
from aibridge_addon.interception.scope import Scope
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.interception.tool_loop import ToolLoop
from aibridge_addon.proxy.flow.state import Bridged, Completion, Head, ToolRun, set_body
from aibridge_addon.records import Record, RequestClass
from aibridge_addon.tools.caller import Caller
from aibridge_addon.tools.catalog import Catalog
from aibridge_addon.wire.json_object import JSONObject

logger = logging.getLogger(__name__)

LARGE = 256 * 1024
"""Bytes. The history of a larger request is read on a worker thread, because it takes more than a millisecond."""

SIGNATURE = "aws_signature"
"""The interception's `not_injected`: why it has got no tools."""
PRESIGNED = "X-Amz-Signature="
"""Part of the query of a presigned URL."""


async def read_history(request: http.Request, state: Bridged, exchange: Exchange, body: JSONObject) -> RequestHistory:
    """Read the complete history of a request. In a session, only what its client does not change counts."""
    assert exchange.history is not None
    read = partial(exchange.history.read, body, whole=not _scope(state.head, exchange).session)
    large = len(request.raw_content or b"") > LARGE or "content-encoding" in request.headers
    return await asyncio.to_thread(read) if large else read()


async def resume_and_inject(
    request: http.Request,
    state: Bridged,
    exchange: Exchange,
    body: JSONObject,
    history: RequestHistory | None,
    request_class: RequestClass,
    held: ToolRun | None = None,
) -> JSONObject:
    """Insert hidden turns that were kept for this request, then the tools. Returns the resulting body.

    `held`: tools that the provider has from an earlier request of the same connection, so that none are inserted.
    """
    continuations = state.head.bridge.continuations
    assert continuations is not None
    position = NOWHERE
    if history is not None:
        position = history.position
        scope = _scope(state.head, exchange)
        found = await continuations.find(scope, history.references())
        completed = history.completed(found) if found else None
        if completed is not None:
            if found.turns or found.followers:
                state.completion = Completion(scope, body, history, found)
            _set(request, completed)
            body = JSONObject(completed)
    if held is not None:
        names, catalog = frozenset(held.exchange.loop.splice.injected), held.catalog
        state.tools = tool_run(state, exchange, body, names, catalog, position)
        return body
    injection, bridge = _injection(state.head, body, request_class), state.head.bridge
    if injection is None or bridge.servers is None:
        return body
    if bridge.servers.is_connecting and injection.may_inject(body):
        await bridge.servers.connected(bridge.settings.mcp.startup_wait)
    if bridge.servers.needs_actor and injection.may_inject(body):
        hidden = bridge.tool_access.hidden(state.head.actor)
        await bridge.servers.prepare(caller_of(state.head, exchange), hidden, bridge.settings.mcp.startup_wait)
    return _injected(request, state, exchange, body, injection, position)


def _injection(head: Head, body: JSONObject, request_class: RequestClass) -> Injection | None:
    """Return what adds tools to this request. None: it takes none."""
    route = head.route
    assert route.dialect is not None
    takes_tools = route.provider.inject_tools and request_class != "auxiliary" and body.verbatim
    return _for_model(route) if takes_tools else None


def _for_model(route: Route) -> Injection | None:
    """Return the injection for the model in the path, if it is there."""
    injection = route.dialect.injection if route.dialect is not None else None
    models = route.provider.models
    return None if injection is None else injection.for_model(models.get(route.model, route.model))


def _injected(
    request: http.Request,
    state: Bridged,
    exchange: Exchange,
    body: JSONObject,
    injection: Injection,
    position: Position,
) -> JSONObject:
    bridge = state.head.bridge
    assert bridge.continuations is not None
    catalog, settings = catalog_for(state.head), bridge.settings.mcp
    if injection.demands_call(body) and settings.max_turns == 1:
        return body  # a call of ours would leave the demand unmet
    provider, refused = state.head.route.provider.name, bridge.refused_tools
    model, template = exchange.request.model, state.head.route.template
    if refused.knows_models and refused.takes_none(provider, model, circumstances(template, body)):
        return body
    offered = injection.offered(body, refused.accepted(provider, injection, catalog.injected))
    _report_left_out(injection, body, catalog, len(offered))
    if not offered and not _may_call_ours(injection, exchange, body):
        return body
    if offered:
        _set(request, injection.inject(body, offered))
        body = JSONObject(request.raw_content or b"")
    request.headers["accept-encoding"] = "identity"  # the answer is merged from several turns
    names = frozenset(tool.name for tool in offered)
    state.tools = tool_run(state, exchange, body, names, catalog, position)
    return body


def _may_call_ours(injection: Injection, exchange: Exchange, body: JSONObject) -> bool:
    """Return whether the history has calls of our tools, although none is offered now. Models repeat such calls."""
    if exchange.history is None or not injection.may_inject(body):
        return False
    return b'"' + PREFIX.encode() in body.raw(exchange.history.member)


def tool_run(
    state: Bridged,
    exchange: Exchange,
    body: JSONObject,
    names: Collection[str],
    catalog: Catalog,
    position: Position = NOWHERE,
) -> ToolRun:
    """Return the loop for a request whose answer may call the tools with these names."""
    bridge, injection = state.head.bridge, _for_model(state.head.route)
    assert injection is not None and bridge.continuations is not None
    settings = bridge.settings.mcp
    own = injection.own_names(body)
    bounds = Bounds(settings.largest_result_bytes, settings.max_result_parts)
    loop = ToolLoop(
        injection, body, names, max_turns=settings.max_turns, max_calls=settings.max_calls, own=own, bounds=bounds
    )
    keep = partial(_remembered, _scope(state.head, exchange), position, bridge.continuations)
    return ToolRun(ToolExchange(exchange, loop, keep), catalog)


def caller_of(head: Head, exchange: Exchange) -> Caller:
    """Return who the request's calls run for."""
    actor, bridge = head.actor, head.bridge
    any_name = actor.source == "default" or (actor.source == "user" and bridge.accepts_any_user)
    return Caller(actor.id, exchange.id, actor.metadata, anonymous=bridge.is_exposed and any_name)


def catalog_for(head: Head) -> Catalog:
    """Return the tools that the request's actor may use."""
    bridge = head.bridge
    assert bridge.servers is not None
    return bridge.servers.catalog.without(bridge.tool_access.hidden(head.actor))


def is_signed(head: Head) -> bool:
    """Return whether the client's AWS signature covers the body, so that it cannot be changed."""
    return signs_request(head.headers) or PRESIGNED in head.route.query


def note_signature(head: Head, exchange: Exchange, body: JSONObject, request_class: RequestClass) -> None:
    """Note in the interception's metadata that a signed request gets no tools, if it would get any without it."""
    if head.bridge.servers is None or not is_signed(head):
        return
    injection = _injection(head, body, request_class)
    if injection is not None and injection.offered(body, catalog_for(head).injected):
        exchange.note(not_injected=SIGNATURE)


def _report_left_out(injection: Injection, body: JSONObject, catalog: Catalog, offered: int) -> None:
    """Log once for each catalogue and form that a request has no room for all tools."""
    if offered == injection.room(body) and offered < len(catalog.tools) and injection.form not in catalog.reported:
        catalog.reported.add(injection.form)
        logger.warning(
            "MCP tools do not fit into a request: the API takes %d, the client has %d, %d of %d are offered",
            *(injection.MAX_TOOLS, len(injection.own_definitions(body)), offered, len(catalog.tools)),
        )


def _remembered(scope: Scope, position: Position, continuations: Continuations, loop: ToolLoop) -> Iterable[Record]:
    """Return the continuation records that the client's next requests may need."""
    alias = loop.response_ids[0], loop.response_ids[-1]
    stored = None
    if scope.dialect is RESPONSES and loop.stores and (len(loop.response_ids) > 1 or loop.mixed or loop.hidden):
        stored = StoredTurns(tuple(loop.response_ids), tuple(sorted(loop.splice.injected)))
    return continuations.remember(
        scope, position=position, mixed=loop.mixed, alias=alias, hidden=loop.hidden, stored=stored
    )


def _scope(head: Head, exchange: Exchange) -> Scope:
    """Return the scope of what is kept. A session that is shorter than a conversation is left out."""
    scope = exchange.scope
    return scope if clients.program(head.headers).session_lasts else replace(scope, session="")


def _set(request: http.Request, body: bytes) -> None:
    set_body(request, body)
    request.headers.pop("content-encoding", None)
