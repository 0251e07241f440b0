"""Mark gateway requests before mitmproxy fills in their missing host."""

from __future__ import annotations

from mitmproxy import http
from mitmproxy.proxy import context
from mitmproxy.proxy.layers.http import HTTPMode, validate_request
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.proxy.flow.state import ORIGIN_FORM
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

    mitmproxy fills in a missing host, and then gateway and proxy requests look alike. It uses `replay_flow` if there is
    one, so the mark is set before the first hook.
    """
    if event.replay_flow is not None:
        return
    event.replay_flow = flow = http.HTTPFlow(ctx.client, ctx.server)
    if isinstance(event, UnsafeHeaders):
        flow.metadata[UNSAFE] = event.problem
    if mode is not HTTPMode.transparent and event.request.method != "CONNECT" and not event.request.host:
        flow.metadata[ORIGIN_FORM] = True
        if ctx.options.proxyauth:
            _offer_basic_authentication(event.request.headers)


def _offer_basic_authentication(headers: http.Headers) -> None:
    """Accept user and password of a gateway client as `Authorization: Basic`."""
    basic = headers.get("authorization", "").lower().startswith("basic ")
    if basic and "proxy-authorization" not in headers:
        headers["proxy-authorization"] = headers.pop("authorization")
