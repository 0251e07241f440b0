"""Send a request that the provider has refused again, without what the bridge has added to it.

    first answer ─┬─ accepted ─▶ what was taken out before is remembered
                  └─ refused  ─┬─ it names the usage option          ─▶ without the option
                               ├─ it names tools of ours             ─▶ without these tools
                               ├─ kept results were put into it      ─▶ with notes in place of the results
                               ├─ it is about tools                  ─▶ without any tool of ours
                               ├─ it does not say which member it is ─▶ without the option
                               └─ anything else                      ─▶ the client gets it

Each step takes something out, so the steps end. What a client sends itself is never changed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from mitmproxy import http

from aibridge_addon.dialects.chat_completions.usage import (
    REFUSALS,
    ask_for_usage,
    may_refuse_usage,
    refuses_usage,
)
from aibridge_addon.dialects.errors import error_of_body
from aibridge_addon.dialects.refusals import REFUSED, named_tools, names_tools_at_all, takes_no_tools
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.refused_tools import circumstances
from aibridge_addon.proxy.flow.state import RETRY_BODY_LIMIT, Bridged, Completion, ToolRun, UsageAsk, set_body
from aibridge_addon.records import Headers
from aibridge_addon.wire.codings import CodingError, decode_all
from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.printable import printable_line

logger = logging.getLogger(__name__)

MAX_TAKEN_OUT = 16
"""Tools that are taken out of one request by their names. If further ones are refused, all of ours are."""


def may_ask_again(state: Bridged, status: int) -> bool:
    """Return whether a refusal of the first request may be about what the bridge has added to it."""
    if state.usage is not None and state.usage.original is not None and status in REFUSALS:
        return True
    return status in REFUSED and (state.completion is not None or _has_tools(state))


def _has_tools(state: Bridged) -> bool:
    """Return whether the request itself offers tools of ours. A connection may have them from an earlier one."""
    if state.tools is None or not state.tools.exchange.loop.splice.injected:
        return False
    loop = state.tools.exchange.loop
    return not frozenset(loop.splice.injected).isdisjoint(loop.injection.sent_names(loop.first_request))


def accepted(state: Bridged, exchange: Exchange) -> None:
    """Note that the provider has accepted the first request: what was taken out of it was the reason before."""
    if state.usage_withdrawn:
        _remember_usage(state, exchange)
    if state.usage is not None and state.splicing is not None:
        state.usage.original = None
    state.completion = None
    tools, memory, route = state.tools, state.head.bridge.refused_tools, state.head.route
    if tools is None or not (tools.taken_out or tools.takes_none):
        return
    provider, loop = route.provider.name, tools.exchange.loop
    if tools.takes_none and not any(loop.injection.own_names(loop.first_request)):
        logger.warning(
            "%s accepts no tools for %s now: none is injected",
            provider,
            exchange.request.model or "a model",
        )
        memory.add_model(provider, exchange.request.model, circumstances(route.template, loop.first_request))
    for tool in tools.catalog.injected:
        if tool.name in tools.taken_out:
            memory.add(provider, loop.injection, tool)
    tools.taken_out.clear()
    tools.takes_none = False


def ask_again(flow: http.HTTPFlow, state: Bridged, exchange: Exchange) -> bool:
    """Decide about a refusal of the first request. `flow.response` becomes None if the request is sent again."""
    assert flow.response is not None
    error, status = decoded_body(flow.response), flow.response.status_code
    usage = state.usage if status in REFUSALS else None
    if usage is not None and usage.original is not None and refuses_usage(error):
        _remember_usage(state, exchange)
        _withdraw_usage(flow, state, exchange, usage.original)
    elif status in REFUSED and (names := _named_tools(state, error)):
        _take_out(flow, state, names)
    elif status in REFUSED and state.completion is not None:
        _leave_out_results(flow, state, exchange, state.completion)
    elif status in REFUSED and state.tools is not None and _has_tools(state) and names_tools_at_all(error):
        state.tools.takes_none = takes_no_tools(error)
        _take_out(flow, state, frozenset(state.tools.exchange.loop.splice.injected))
    elif usage is not None and usage.original is not None and may_refuse_usage(error):
        state.usage_withdrawn = True  # the second try decides
        _withdraw_usage(flow, state, exchange, usage.original)
    else:
        state.usage = None
        return False
    flow.response = None
    return True


def decoded_body(response: http.Response) -> bytes:
    """Return the body of an error answer without its coding; empty if it cannot be decoded."""
    try:
        return decode_all(response.raw_content or b"", response.headers.get("content-encoding"), RETRY_BODY_LIMIT)
    except CodingError:
        return b""


# --- the usage option ------------------------------------------------------------------------------------------------


def _withdraw_usage(flow: http.HTTPFlow, state: Bridged, exchange: Exchange, original: bytes) -> None:
    state.usage = None
    set_body(flow.request, original)
    if state.tools is not None:
        state.tools.exchange.loop.replace_request(JSONObject(original))
        state.tools.exchange.discard_answer()
    else:
        _restore_accept_encoding(flow.request, state.head.headers)
        exchange.discard_answer()


def _remember_usage(state: Bridged, exchange: Exchange) -> None:
    """Do not add the option to requests for this model any more."""
    provider_name, model = state.head.route.provider.name, exchange.request.model
    logger.info("%s refuses stream_options for %s; the option is not added any more", provider_name, model or "a model")
    state.head.bridge.refuses_usage.add(provider_name, model)
    state.usage_withdrawn = False


def _restore_accept_encoding(request: http.Request, headers: Headers) -> None:
    accepted = headers.get(b"accept-encoding")
    if accepted is None:
        request.headers.pop("accept-encoding", None)
    else:
        request.headers["accept-encoding"] = accepted.decode("utf-8", "surrogateescape")


# --- tools -----------------------------------------------------------------------------------------------------------


def _named_tools(state: Bridged, error: bytes) -> Collection[str]:
    """Return the names of the tools to take out, because the error names some of ours. Empty: it names none."""
    tools = state.tools
    if tools is None or not _has_tools(state):
        return ()
    injected = frozenset(tools.exchange.loop.splice.injected)
    named = named_tools(error, tools.exchange.loop.injection.sent_names(tools.exchange.loop.first_request), injected)
    _log_refusal(state, named, error)
    tools.taken_out += named
    return named if len(tools.taken_out) <= MAX_TAKEN_OUT else injected


def _log_refusal(state: Bridged, named: Collection[str], error: bytes) -> None:
    words = printable_line(error_of_body(error, default_type="").message)
    for name in named:
        logger.warning("%s refuses the tool %s, which is left out: %s", state.head.route.provider.name, name, words)


def _take_out(flow: http.HTTPFlow, state: Bridged, names: Collection[str]) -> None:
    tools = state.tools
    assert tools is not None
    injection = tools.exchange.loop.injection
    request = injection.without(tools.exchange.loop.first_request, names)
    if state.usage is not None and state.usage.original is not None:
        state.usage.original = injection.without(JSONObject(state.usage.original), names)
    left = frozenset(tools.exchange.loop.splice.injected) - frozenset(names)
    _replace_request(flow, tools, request, left)


def _replace_request(flow: http.HTTPFlow, tools: ToolRun, request: bytes, injected: Collection[str]) -> None:
    set_body(flow.request, request)
    tools.exchange.replace_tools(JSONObject(request), injected)
    tools.exchange.discard_answer()


# --- kept results ----------------------------------------------------------------------------------------------------


def _leave_out_results(flow: http.HTTPFlow, state: Bridged, exchange: Exchange, completion: Completion) -> None:
    bridge, tools = state.head.bridge, state.tools
    assert bridge.continuations is not None
    found, records = bridge.continuations.leave_out(completion.scope, completion.found)
    for record in records:
        bridge.emit(record)
    logger.info("a request with kept results was refused; they are left out: interception=%s", exchange.id)
    state.completion = None
    if tools is not None:
        tools.taken_out.clear()  # an error about these results may have named the tools
    request = completion.history.completed(found) or completion.body.replaced({})
    if tools is not None:
        injected = tools.exchange.loop.splice.injected
        offered = [tool for tool in tools.catalog.injected if tool.name in frozenset(injected)]
        request = tools.exchange.loop.injection.inject(JSONObject(request), offered) if offered else request
    request = _asking_for_usage(state.usage, request)
    if tools is not None:
        _replace_request(flow, tools, request, frozenset(tools.exchange.loop.splice.injected))
    else:
        set_body(flow.request, request)
        exchange.discard_answer()


def _asking_for_usage(usage: UsageAsk | None, request: bytes) -> bytes:
    """Add the option again to a request that was built anew."""
    if usage is None or usage.original is None:
        return request
    usage.original = request
    return ask_for_usage(JSONObject(request)) or request
