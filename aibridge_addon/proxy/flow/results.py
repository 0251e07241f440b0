"""Read the result of a background response or a batch when a client fetches it.

The request itself is a passthrough. What its answer brings is recorded once: see `interception/once.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import replace
from functools import partial

from mitmproxy import http

from aibridge_addon.dialects.base import UNREAD
from aibridge_addon.interception import clients
from aibridge_addon.interception.clients import UNKNOWN
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.once import Once, Pending, read_pending, result_key
from aibridge_addon.interception.origin import Origin
from aibridge_addon.interception.scope import Scope
from aibridge_addon.proxy.flow.request import background_key, exchange_for, log_partial, upstream_host
from aibridge_addon.proxy.flow.state import Bridged, Head, is_replay
from aibridge_addon.proxy.flow.stored_answer import StoredAnswer
from aibridge_addon.records import DatabaseUnavailable, utc_now

logger = logging.getLogger(__name__)


def begin(flow: http.HTTPFlow, state: Bridged) -> Awaitable[None] | None:
    """Prepare for an answer that may bring a result."""
    if state.head.route.result_of == "batch":
        _fetch(flow, state)
        return None
    return _look_up(flow, state)


async def _look_up(flow: http.HTTPFlow, state: Bridged) -> None:
    """Look up what is kept of a response: its hidden turns, or its interception if it has been left open."""
    head = state.head
    continuations, dialect = head.bridge.continuations, head.route.dialect
    if continuations is not None and flow.request.method != "POST" and not is_replay(flow):
        assert dialect is not None and dialect.injection is not None
        scope = Scope(head.route.provider.name, head.actor.id, dialect, head.credential)
        turns = await continuations.stored_turns(scope, head.route.result_id)
        if turns is not None:
            limit = head.bridge.settings.limits.decoded_body
            state.stored = StoredAnswer(flow.request, turns, dialect.injection.splice(turns.injected), limit)
            return
    if head.route.result_of == "background":
        await _resume(flow, state)


def opened(flow: http.HTTPFlow, state: Bridged) -> None:
    """Decide by the answer's head whether it can bring a result."""
    if state.once is not None and (flow.response is None or flow.response.status_code != 200):
        state.exchange = state.once = None


async def _resume(flow: http.HTTPFlow, state: Bridged) -> None:
    """Read the answer for the interception that a background response has left open, if there is one."""
    head = state.head
    bridge = head.bridge
    if not bridge.settings.recording.durable:
        await bridge.committed()
    key = background_key(head, head.route.result_id)
    try:
        stored = await bridge.ledger.read([key], utc_now())
    except DatabaseUnavailable as e:
        logger.error("a background response cannot be looked up, its end is not recorded: %s", e)
        return
    pending = read_pending(stored.get(key))
    if pending is not None:
        once = state.once = _once(head, f"{key} ended")
        state.exchange = once.exchange = _continued(head, pending, once, upstream_host(flow, head))


def _continued(head: Head, pending: Pending, once: Once, host: str) -> Exchange:
    exchange = Exchange(
        pending.background,
        head.route,
        pending.request,
        Origin(
            actor=head.actor,
            client=UNKNOWN,
            client_session_id=pending.session or None,
            user_agent=None,
            credential_kind="byok",
            credential_hint="",
            prompt=None,
            upstream_host=host,
            agent_id=pending.agent or None,
            credential=head.credential,
        ),
        emit=once.records.append,
        limits=head.bridge.settings.limits,
        now=utc_now,
        on_partial=partial(log_partial, pending.background),
    )
    exchange.time_to_first_byte_ms = pending.time_to_first_byte_ms
    exchange.when_pending = _still_pending
    return exchange


def _still_pending(_response_id: str) -> None:
    """Wait for the next request: the stored value is still there."""


def _fetch(flow: http.HTTPFlow, state: Bridged) -> None:
    """Begin an interception for the results of a batch."""
    head = state.head
    once = state.once = _once(head, result_key("batch", head.route, "", head.route.result_id))
    reading = replace(UNREAD, side_call=True)
    sender = clients.sender(head.headers, reading, has_tools=False)
    exchange = exchange_for(head, reading, sender, upstream_host(flow, head), emit=once.records.append)
    state.exchange = once.exchange = exchange
    exchange.start()


def _once(head: Head, key: str) -> Once:
    return Once(key, head.bridge.ledger, head.bridge.emit, utc_now, _log_unclaimed)


def _log_unclaimed(error: DatabaseUnavailable) -> None:
    logger.error("it is not known whether a result was recorded before, recording it: %s", error)
