"""Send a request of a WebSocket again after an error that the client need not see.

    error in place of an answer ─┬─ first turn: it may be about what was added ─▶ without that, see `refused`
                                 ├─ later turn, retriable                      ─▶ the same, after a pause
                                 ├─ later turn, its context is full            ─▶ with shorter results
                                 └─ anything else                              ─▶ the client gets it

A request that names the answer before it (`previous_response_id`) with `store: false` is repeated with the whole
conversation as its input: the connection has dropped that answer (guide "WebSocket mode").
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mitmproxy import http

from aibridge_addon.dialects.errors import error_of_body
from aibridge_addon.dialects.responses.inject import conversation, with_conversation
from aibridge_addon.interception.attempts import Step, outcome_of
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.proxy.flow import refused
from aibridge_addon.proxy.flow.bridged_socket import BridgedSocket
from aibridge_addon.proxy.flow.state import Bridged, ToolRun
from aibridge_addon.records import UpstreamAttempt, utc_now
from aibridge_addon.wire.json_object import encode
from aibridge_addon.wire.json_values import as_dict, as_text
from aibridge_addon.wire.printable import printable_line

logger = logging.getLogger(__name__)

STATUSES: Mapping[str, int] = MappingProxyType(
    {"rate_limit_exceeded": 429, "server_error": 500, "server_is_overloaded": 503, "slow_down": 503}
)
"""The HTTP status of codes in errors that name no status. Others stand for a request that is refused."""
INVALID_REQUEST = 400
ACCEPTED = 200


def accepted(socket: BridgedSocket, exchange: Exchange) -> None:
    """Note that the provider has accepted the request of a turn."""
    state = socket.state_of(exchange)
    state.head.dispatch.attempts.answered(ACCEPTED)
    if not exchange.turns:
        refused.accepted(state, exchange)


def is_sent_again(socket: BridgedSocket, exchange: Exchange, status: int, message: Any) -> bool:
    """Decide about an error in place of a turn's answer. Returns whether the turn's request is sent again."""
    state = socket.state_of(exchange)
    status = status or _status_of(message)
    if not exchange.turns:
        return _first_turn_again(socket, state, exchange, status, message)
    return state.tools is not None and _later_turn_again(socket, state, state.tools, status, message)


def _status_of(message: Any) -> int:
    members = as_dict(message)
    inner = as_dict(members.get("error"))
    named = map(as_text, (inner.get("code"), inner.get("type"), members.get("code")))
    return next((STATUSES[name] for name in named if name in STATUSES), INVALID_REQUEST)


def _first_turn_again(socket: BridgedSocket, state: Bridged, exchange: Exchange, status: int, message: Any) -> bool:
    """Ask again without what was added, as far as the error is about that. The message is handled as over HTTP."""
    if not refused.may_ask_again(state, status):
        return False
    opened: Exchange | ToolExchange = exchange if state.tools is None else state.tools.exchange
    opened.open_answer(status, "application/json", "")
    flow = http.HTTPFlow(socket.flow.client_conn, socket.flow.server_conn)
    flow.request = http.Request.make("POST", "http://localhost/")
    flow.response = http.Response.make(status, encode(message))
    if not refused.ask_again(flow, state, exchange):
        opened.discard_answer()
        return False
    if state.tools is not None:
        restore_conversation(socket, state.tools)
        request = state.tools.exchange.loop.request.replaced({})
    else:
        request = flow.request.raw_content or b""
    socket.outbox.to_server(request)
    return True


def _later_turn_again(socket: BridgedSocket, state: Bridged, tools: ToolRun, status: int, message: Any) -> bool:
    exchange = tools.exchange
    exchange.open_answer(status, "application/json", "")
    if _is_retried(state, status, message):
        exchange.discard_answer()
        restore_conversation(socket, tools)
        send_after_pause(socket, state, tools)
        return True
    error = error_of_body(encode(message), default_type="")
    if exchange.is_refused and exchange.asked_again(error) is not None:
        logger.info(
            "a turn was refused, and is asked again with shorter results: interception=%s: %s",
            *(exchange.exchange.id, printable_line(error.message)),
        )
        restore_conversation(socket, tools)
        socket.outbox.to_server(exchange.loop.request.replaced({}))
        return True
    exchange.discard_answer()
    return False


def _is_retried(state: Bridged, status: int, message: Any) -> bool:
    """Decide by the table of attempts. The headers that an answer over HTTP would have are in the message."""
    attempts, route = state.head.dispatch.attempts, state.head.route
    headers = {name.lower(): str(value) for name, value in as_dict(as_dict(message).get("headers")).items()}
    step = attempts.after(outcome_of(status, headers, utc_now()), jitter=random.random())  # noqa: S311 (spreads load)
    state.head.bridge.emit(UpstreamAttempt(route.provider.name, route.template, step.value))
    if step is Step.SHOW:
        attempts.answered(status)
    return step is Step.RETRY


def send_after_pause(socket: BridgedSocket, state: Bridged, tools: ToolRun) -> None:
    """Send the request of the current turn again after the pause that its attempts demand."""
    tools.exchange.wait_again()
    chosen = state.head.dispatch
    chosen.pause = asyncio.create_task(asyncio.sleep(chosen.attempts.pause))
    task = asyncio.create_task(socket.safely(_send_again(socket, state, tools, chosen.pause)))
    socket.tasks.add(task)
    task.add_done_callback(socket.tasks.discard)


async def _send_again(socket: BridgedSocket, state: Bridged, tools: ToolRun, pause: asyncio.Task[None]) -> None:
    interval = state.head.bridge.settings.mcp.keepalive_interval
    while not (await asyncio.wait({pause}, timeout=interval))[0]:
        socket.outbox.to_client([None])
        socket.outbox.send()
    state.head.dispatch.pause = None
    if tools.exchange.exchange.ended or pause.cancelled():
        return
    request = tools.exchange.tools_ran(())
    assert request is not None
    socket.outbox.to_server(request)


# --- the whole conversation ------------------------------------------------------------------------------------------


def restore_conversation(socket: BridgedSocket, tools: ToolRun) -> None:
    """Replace the name of an answer that the provider has lost by the whole conversation up to it."""
    loop = tools.exchange.loop
    first = loop.first_request
    previous = first.text("previous_response_id")
    if previous is None or first.get("store") is not False:
        return
    before = socket.conversations.before(previous)
    if before is not None:
        loop.restart(with_conversation(first, before))


def remember_conversation(socket: BridgedSocket, tools: ToolRun) -> None:
    """Keep the conversation up to an answer that the provider does not store."""
    loop = tools.exchange.loop
    first = loop.first_request
    if tools.exchange.error is not None or not loop.response_ids or first.get("store") is not False:
        return
    previous = first.text("previous_response_id")
    before = socket.conversations.before(previous)
    if before is not None:
        said = conversation(first, loop.hidden, loop.last_end)
        socket.conversations.answered(previous, loop.response_ids[-1], [*before, *said])
