"""Decide whether an interception may go upstream: by its circuit breaker, and by the state of the database.

    exchange ─▶ circuit breaker ─▶ (recording.on_failure: closed) its first rows are committed ─▶ upstream
                     └──────────────────────────┴─▶ Refusal

The same rules apply to HTTP requests and to requests in a WebSocket. Only the form of a refusal differs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aibridge_addon.bridge import Bridge
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.proxy.flow.state import Refusal
from aibridge_addon.records import BreakerRejected

CIRCUIT_OPEN = "circuit breaker is open"
"""The original project's message."""
NOT_RECORDABLE = Refusal(
    503,
    "this request cannot be recorded now, so it is not forwarded",
    "recording_unavailable",
    "the database cannot be written to",
)


def admit(bridge: Bridge, exchange: Exchange, refuse: Callable[[Refusal], object]) -> Awaitable[None] | None:
    """Let an interception go upstream, or `refuse` it.

    Returns:
        An awaitable to wait for before the request is sent. `refuse` may be called until it is done.
    """
    refusal = _rejected(bridge, exchange)
    if refusal is not None:
        refuse(refusal)
        return None
    if bridge.settings.recording.on_failure == "closed":
        return _unless_recordable(bridge, refuse)
    return None


def _rejected(bridge: Bridge, exchange: Exchange) -> Refusal | None:
    """Return a refusal if the circuit breaker is open. Otherwise the end of the exchange is reported to it."""
    route, model = exchange.route, exchange.request.model
    breaker = bridge.breakers.breaker(route.provider, route.template, model)
    if breaker is None:
        return None
    ticket = breaker.admit()
    if ticket is not None:
        exchange.when_ended = ticket.settle
        return None
    bridge.emit(BreakerRejected(route.provider.name, route.template, model))
    headers = {"retry-after": str(breaker.retry_after)}
    return Refusal(503, CIRCUIT_OPEN, "circuit_breaker_open", headers=headers)


async def _unless_recordable(bridge: Bridge, refuse: Callable[[Refusal], object]) -> None:
    if not await bridge.committed():
        refuse(NOT_RECORDABLE)
