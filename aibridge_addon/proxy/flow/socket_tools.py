"""Inject tools into requests of a WebSocket, and run their calls between two turns of an answer.

    client's response.create ─▶ prepare ─▶ injected request ─▶ upstream
    upstream's events ─▶ ResponsesSocket ─┬─ visible ─▶ client
                                          └─ the turn waits for tools ─▶ run ─┬─ the next response.create ─▶ upstream
                                                                              └─ the held end ─▶ client

The next turn goes over the same connection, which alone has the answer before it (guide "WebSocket mode").
"""

from __future__ import annotations

import asyncio
from functools import partial

from mitmproxy import http

from aibridge_addon.dialects.responses.inject import brings_tools, brings_tools_as_item
from aibridge_addon.dialects.responses.reader import error_message
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.proxy.flow import inject_tools, tool_turn
from aibridge_addon.proxy.flow.bridged_socket import BridgedSocket, Deferred
from aibridge_addon.proxy.flow.socket_attempts import (
    accepted,
    is_sent_again,
    remember_conversation,
    restore_conversation,
)
from aibridge_addon.proxy.flow.state import Bridged, ToolRun
from aibridge_addon.wire.json_object import JSONObject, encode

INTERRUPTED = "the client has interrupted the answer"
NOT_RECORDED = "the record of this answer could not be written"


async def prepare(socket: BridgedSocket, exchange: Exchange, deferred: Deferred, content: bytes) -> bytes:
    """Complete a request from earlier turns, inject tools, and start its interception. Return it as it goes upstream.

    The message is handled as the body of the same request over HTTP.
    """
    state, body = socket.state_of(exchange), deferred.body
    dialect = state.head.route.dialect
    assert dialect is not None
    request = http.Request.make("POST", "http://localhost/", content)
    history = await inject_tools.read_history(request, state, exchange, body)
    held = socket.held if body.get("previous_response_id") is not None and not brings_tools(body) else None
    body = await inject_tools.resume_and_inject(request, state, exchange, body, history, deferred.request_class, held)
    schemas = state.tools.schema_bytes if state.tools is not None and held is None else {}
    socket.reader.start(exchange, body, history, schemas)
    if state.tools is not None:
        lane = socket.reader.splice(exchange, state.tools.exchange)
        socket.remember(lane, state.tools)
        if brings_tools_as_item(body):
            socket.held = state.tools
    return request.raw_content or b""


def tools_of_successor(socket: BridgedSocket, exchange: Exchange, lane: str, before: str) -> ToolExchange | None:
    """Return the tools of an answer that follows a steering input. It has the settings of the answer `before` it."""
    tools = socket.last.get(lane)
    if tools is None:
        return None
    first = tools.exchange.loop.first_request
    continued = JSONObject(first.replaced({"previous_response_id": encode(before), "input": b"[]"}))
    state = socket.state_of(exchange)
    names = tools.exchange.loop.splice.injected
    state.tools = inject_tools.tool_run(state, exchange, continued, names, tools.catalog)
    return state.tools.exchange


def run_waiting(socket: BridgedSocket, exchange: Exchange) -> None:
    """Start the invocations of a turn that has ended, if it has any."""
    state = socket.maybe_state_of(exchange)
    tools = state.tools if state is not None else None
    if state is None or tools is None or not tools.exchange.waiting or tools.calls is not None:
        return
    if state.head.dispatch.pause is not None:  # no tools: the turn is asked again after the pause
        return
    tools.calls = tool_turn.start_calls(state, tools)
    task = asyncio.create_task(socket.safely(_run(socket, exchange, state, tools)))
    socket.tasks.add(task)
    task.add_done_callback(socket.tasks.discard)


async def _run(socket: BridgedSocket, exchange: Exchange, state: Bridged, tools: ToolRun) -> None:
    calls = tools.calls
    assert calls is not None
    while not await calls.done(timeout=state.head.bridge.settings.mcp.keepalive_interval):
        socket.outbox.to_client([None])
        socket.outbox.send()
    tools.calls = None
    if not tools.exchange.waiting:  # the answer has ended meanwhile
        return
    if tools.exchange.is_repeated:
        restore_conversation(socket, tools)
    request = tools.exchange.tools_ran(calls.invocations())
    if request is not None:
        state.head.dispatch.attempts.later_turn(state.head.bridge.settings.mcp.later_turn_retries)
        socket.outbox.to_server(request)
        return
    lane = socket.reader.lane_of(exchange)
    ending = socket.reader.ending(exchange)
    socket.reader.withdraw(exchange)
    is_recorded = await committed(socket, exchange)
    socket.outbox.to_client(ending if is_recorded else [error_message(503, NOT_RECORDED, stream_id=lane)])
    socket.left(exchange)


async def committed(socket: BridgedSocket, exchange: Exchange) -> bool:
    """Wait for the rows of an answer that has ended. Return False if its end must not be sent without them."""
    if (tools := socket.state_of(exchange).tools) is not None:
        remember_conversation(socket, tools)
    bridge = socket.bridge_of(exchange)
    recording = bridge.settings.recording
    return not recording.durable or await bridge.committed() or recording.on_failure != "closed"


def stop_failed(socket: BridgedSocket, content: bytes) -> None:
    """Cancel and record the tools of an answer that the server's message ends with an error."""
    socket.reader.fail_waiting(content, lambda exchange: socket.state_of(exchange).client_gone())


def interrupted(socket: BridgedSocket, content: bytes) -> bool:
    """End the answer whose tools run if a message of the client interrupts it. Return whether it does."""
    exchange = socket.reader.interrupted(content) if socket.tasks else None
    if exchange is None:
        return False
    lane = socket.reader.lane_of(exchange)
    socket.state_of(exchange).client_gone()
    exchange.end("interrupted", INTERRUPTED)
    socket.reader.withdraw(exchange)
    socket.left(exchange)
    socket.outbox.to_client([error_message(400, INTERRUPTED, stream_id=lane)])
    return True


def use_tools(socket: BridgedSocket) -> None:
    """Have requests sent again without what a provider refuses, and answers that follow steering inputs spliced."""
    socket.succeeds = partial(tools_of_successor, socket)
    socket.accepts = partial(accepted, socket)
    socket.repeats = partial(is_sent_again, socket)
