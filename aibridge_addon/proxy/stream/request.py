"""Where a request enters and leaves a stream: mark gateway requests, and send upstream what only the upstream gets."""

from __future__ import annotations

from mitmproxy import http
from mitmproxy.proxy import context, layer
from mitmproxy.proxy.layers.http import HTTPMode, SendHttp, validate_request
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.proxy.connection.ourselves import is_own_address
from aibridge_addon.proxy.flow import dispatch
from aibridge_addon.proxy.flow.destination import PROXIES
from aibridge_addon.proxy.flow.http1 import host_header
from aibridge_addon.proxy.flow.state import ORIGIN_FORM, Dispatch, Served, state_of
from aibridge_addon.proxy.stream.heads import problem_of_request
from aibridge_addon.proxy.stream.http1 import UnsafeHeaders

UNSAFE = "aibridge_unsafe"
"""Key in `flow.metadata`: what is wrong with the lines of the request's head."""


def problem_of(flow: http.HTTPFlow, ctx: context.Context, mode: HTTPMode) -> str | None:
    """Return why a request is refused by its head alone. None: it is not."""
    unsafe: str | None = flow.metadata.get(UNSAFE)
    return (
        unsafe
        or validate_request(mode, flow.request, ctx.options.validate_inbound_headers)
        or problem_of_request(flow.request)
    )


def bring_flow(event: http_events.RequestHeaders, ctx: context.Context, mode: HTTPMode) -> None:
    """Create the flow of a request, and mark a gateway request: one in origin form to a port that proxies.

    A request through the proxy to the proxy's own address is one, too.

    mitmproxy fills in a missing host, and then gateway and proxy requests look alike. It uses `replay_flow` if there is
    one, so the mark is set before the first hook.
    """
    if event.replay_flow is not None:
        return
    event.replay_flow = flow = http.HTTPFlow(ctx.client, ctx.server)
    if isinstance(event, UnsafeHeaders):
        flow.metadata[UNSAFE] = event.problem
    request = event.request
    if request.method == "CONNECT" or ctx.client.proxy_mode.type_name not in PROXIES:
        return
    if mode is HTTPMode.transparent:
        if is_own_address(ctx.server.address, ctx.client):
            flow.metadata[ORIGIN_FORM] = True
    elif request.host:
        if request.scheme == "http" and is_own_address((request.host, request.port), ctx.client):
            flow.metadata[ORIGIN_FORM] = True
    else:
        flow.metadata[ORIGIN_FORM] = True
        if not request.host_header:  # HTTP/1.0 has none
            request.host_header = host_header("http", *ctx.client.sockname[:2])
        if ctx.options.proxyauth:
            _offer_basic_authentication(event.request.headers)


def _offer_basic_authentication(headers: http.Headers) -> None:
    """Accept user and password of a gateway client as `Authorization: Basic`."""
    basic = headers.get("authorization", "").lower().startswith("basic ")
    if basic and "proxy-authorization" not in headers:
        headers["proxy-authorization"] = headers.pop("authorization")


def for_upstream(flow: http.HTTPFlow) -> http.Request:
    """Return the flow's request as the upstream gets it."""
    state = state_of(flow)
    return dispatch.for_upstream(flow.request, state.head.dispatch if isinstance(state, Served) else Dispatch())


def sent_upstream(commands: layer.CommandGenerator[None], flow: http.HTTPFlow) -> layer.CommandGenerator[None]:
    """Run mitmproxy's `commands` that send a request upstream, with the request as the upstream gets it."""
    reply = None
    while True:
        try:
            command = commands.send(reply)
        except StopIteration:
            return
        if isinstance(command, SendHttp) and isinstance(command.event, http_events.RequestHeaders):
            command.event.request = for_upstream(flow)
        reply = yield command
