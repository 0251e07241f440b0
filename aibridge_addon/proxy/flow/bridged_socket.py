"""The interceptions of one WebSocket: each is in the state that its request would have over HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mitmproxy import http

from aibridge_addon.bridge import Bridge
from aibridge_addon.dialects.base import RequestReading
from aibridge_addon.dialects.limits import limits_in_event
from aibridge_addon.dialects.responses.reader import error_message
from aibridge_addon.interception import clients
from aibridge_addon.interception.attempts import Attempts
from aibridge_addon.interception.conversations import Conversations
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.responses_socket import (
    MAX_OPEN,
    Accepts,
    Repeats,
    ResponsesSocket,
    Succeeds,
    ignore,
    never_again,
    without_tools,
)
from aibridge_addon.proxy.flow.outbox import Outbox
from aibridge_addon.proxy.flow.plan_limits import limits_said
from aibridge_addon.proxy.flow.request import exchange_for, takes_tools_of
from aibridge_addon.proxy.flow.state import Bridged, Dispatch, Head, ToolRun, Uncopied, describe
from aibridge_addon.proxy.flow.traces import continue_trace
from aibridge_addon.records import RequestClass, utc_now
from aibridge_addon.wire.json_object import JSONObject

logger = logging.getLogger(__name__)

INTERNAL_ERROR = "an internal error of the bridge, which its log describes"
SOCKET = "aibridge_socket"
"""Key in `flow.metadata`: the `BridgedSocket` of this flow."""

Began = Callable[[Exchange, Bridge], None]
"""Takes an interception of a WebSocket, and the bridge with which it began."""


@dataclass(slots=True)
class Deferred:
    """A request that may take tools. Its interception is started when they were injected."""

    body: JSONObject
    request_class: RequestClass


@dataclass(frozen=True, slots=True)
class Instead:
    """The messages that the client gets in place of one of the server's."""

    exchange: Exchange
    messages: Sequence[bytes]


class BridgedSocket(Uncopied):
    def __init__(self, flow: http.HTTPFlow, head: Head, host: str, began: Began | None = None) -> None:
        self.head = head
        """The head of the upgrade request. Its bridge is used for the next interception."""
        self.flow = flow
        self.outbox = Outbox(flow)
        self.conversations = self._new_conversations()
        self.instead: Instead | None = None
        """What the client gets in place of the server's last message. None: that message."""
        self.last: dict[str, ToolRun] = {}
        """The last request with injected tools in each lane."""
        self.held: ToolRun | None = None
        """Tools that the server has got as an item of a history. Codex sends its own there, once for a connection."""
        self.tasks: set[asyncio.Task[None]] = set()
        """Running tools."""
        self._host = host
        self._path = flow.request.path
        self._began = began
        self._states: dict[str, Bridged] = {}
        self._classes: dict[str, RequestClass] = {}
        self._deferred: Deferred | None = None
        self.succeeds: Succeeds = without_tools
        self.accepts: Accepts = ignore
        self.repeats: Repeats = never_again
        self.reader = self._new_reader()

    def _new_conversations(self) -> Conversations:
        return Conversations(self.head.bridge.settings.limits.request_body, self.head.bridge.buffers.share())

    def _new_reader(self) -> ResponsesSocket:
        return ResponsesSocket(
            self._begin,
            self.head.bridge.settings.limits,
            self._limits_came,
            defers=self._defers,
            in_place=self._in_place,
            succeeds=lambda exchange, lane, before: self.succeeds(exchange, lane, before),
            accepts=lambda exchange: self.accepts(exchange),
            repeats=lambda exchange, status, message: self.repeats(exchange, status, message),
        )

    def _begin(self, reading: RequestReading, has_tools: bool) -> Exchange:
        head = self.head
        sender = clients.sender(head.headers, reading, has_tools=has_tools)
        share = head.bridge.buffers.share()
        # The connection has its key for good, so only retries are left to decide about.
        attempts = Attempts(max_retries=head.route.provider.max_retries, key=head.dispatch.attempts.key)
        exchange = exchange_for(head, reading, sender, self._host, share=share, attempts=attempts)
        continue_trace(head, exchange, utc_now(), self._path)
        left = head.bridge.in_flight.enter(partial(self._cut_off, exchange), partial(describe, head, exchange))
        own = replace(head, dispatch=Dispatch(attempts))
        self._states[exchange.id] = Bridged(own, share.ending(left), share, exchange)
        self._classes[exchange.id] = sender.request_class
        if self._began is not None:
            self._began(exchange, head.bridge)
        return exchange

    def _cut_off(self, exchange: Exchange) -> None:
        if (state := self._states.get(exchange.id)) is not None:
            state.cut_off()

    def _defers(self, exchange: Exchange, body: JSONObject) -> bool:
        if self.head.bridge.settings.websockets != "auto" or not takes_tools_of(self.head):
            return False
        request_class = self._classes[exchange.id]
        # What Codex warms up is the beginning of its next request, so both need the same tools.
        is_prewarm = body.get("generate") is False
        self._deferred = Deferred(body, "prompt" if is_prewarm else request_class)
        return True

    def take_deferred(self) -> Deferred | None:
        """Return the request that was read last if it may take tools."""
        deferred, self._deferred = self._deferred, None
        return deferred

    def _in_place(self, exchange: Exchange, messages: Sequence[bytes]) -> None:
        self.instead = Instead(exchange, messages)

    def remember(self, lane: str, tools: ToolRun) -> None:
        """Keep a request with injected tools for answers that follow without a request of their own."""
        self.last.pop(lane, None)
        self.last[lane] = tools
        if len(self.last) > MAX_OPEN:
            del self.last[next(iter(self.last))]

    def _limits_came(self, event: Any) -> None:
        limits_said(self.head, limits_in_event(event, utc_now()))

    def use(self, bridge: Bridge) -> None:
        """Use this bridge from now on, if no answer is open."""
        if bridge is not self.head.bridge:
            self.head = replace(self.head, bridge=bridge)
            self.conversations.end()
            self.conversations = self._new_conversations()
            self.last.clear()
            self.held = None

    def state_of(self, exchange: Exchange) -> Bridged:
        """Return the state of an interception that has not ended."""
        return self._states[exchange.id]

    def maybe_state_of(self, exchange: Exchange) -> Bridged | None:
        """Return the state of an interception; None if it has ended."""
        return self._states.get(exchange.id)

    def bridge_of(self, exchange: Exchange) -> Bridge:
        """Return the bridge with which an interception began. After a reload, the next one has another."""
        return self._states[exchange.id].head.bridge

    def left(self, exchange: Exchange) -> None:
        """Report that an interception has ended and its last record was emitted."""
        self._classes.pop(exchange.id, None)
        if exchange.id in self._states:
            self._states.pop(exchange.id).left()

    def stop_tools(self) -> None:
        """Cancel and record all running invocations."""
        for state in self._states.values():
            state.client_gone()

    async def safely(self, work: Coroutine[None, None, None]) -> None:
        """Do work beside the messages, and send what it has put out. An exception ends all interceptions."""
        try:
            await work
        except Exception:
            logger.exception("aibridge: an internal error ends requests in a WebSocket")
            self.fail()
            self.outbox.to_client([error_message(500, INTERNAL_ERROR)])
        self.outbox.send()

    def fail(self) -> None:
        """End all interceptions after an exception, and read the next messages anew."""
        for state in self._states.values():
            assert state.exchange is not None
            try:
                state.client_gone()
            finally:
                state.exchange.fail("internal_error", INTERNAL_ERROR)
                state.left()
        self._states.clear()
        self._classes.clear()
        self.last.clear()
        self.reader = self._new_reader()
