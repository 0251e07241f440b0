"""Count the tokens of a request with the injected tools, so that the count fits what the request will be billed.

The request gets what the same request would get at the route of its dialect: its hidden turns, and the tools. It is a
passthrough all the same: it has no row.
"""

from __future__ import annotations

import asyncio

from mitmproxy import http

from aibridge_addon.interception import clients
from aibridge_addon.proxy.flow import inject_tools
from aibridge_addon.proxy.flow.request import exchange_for, read_body, upstream_host
from aibridge_addon.proxy.flow.state import Bridged


async def prepare(flow: http.HTTPFlow, state: Bridged) -> None:
    """Complete the request and inject tools. One that cannot be read is sent on as it is."""
    head, dialect = state.head, state.head.route.dialect
    assert dialect is not None
    read = await asyncio.to_thread(read_body, flow.request.raw_content or b"", head)
    if (body := read.body) is None:
        return
    sender = clients.sender(head.headers, read.reading, has_tools=dialect.has_tools(body))
    exchange = exchange_for(head, read.reading, sender, upstream_host(flow, head))  # never started
    history = None
    if exchange.history is not None:
        history = await inject_tools.read_history(flow.request, state, exchange, body)
    await inject_tools.resume_and_inject(flow.request, state, exchange, body, history, sender.request_class)
    state.tools = None  # a count has no turns
