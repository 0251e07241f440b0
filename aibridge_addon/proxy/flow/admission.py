"""Whether an interception that has begun may go upstream: its circuit breaker, and a database that must take its rows.

    exchange ─▶ circuit breaker ─▶ (recording.on_failure: closed) its first rows are committed ─▶ upstream
                     └──────────────────────────┴─▶ Refusal

An HTTP request and a request in a WebSocket are admitted by the same rules; each has its own way to refuse.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aibridge_addon.bridge import Bridge
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.proxy.flow.state import Refusal
from aibridge_addon.records import BreakerRejected

CIRCUIT_OPEN = "circuit breaker is open"
"""In the words of the original."""
NOT_RECORDABLE = Refusal(
    503,
    "this request cannot be recorded now, so it is not passed on",
    "recording_unavailable",
    "the database cannot be written to",
)


def admit(bridge: Bridge, exchange: Exchange, refuse: Callable[[Refusal], object]) -> Awaitable[None] | None:
    """Let an interception go upstream, or `refuse` it.

    Returns:
        What has to be waited for before it goes; `refuse` may be called until then.
    """
    refusal = _rejected(bridge, exchange)
    if refusal is not None:
        refuse(refusal)
        return None
    if bridge.settings.recording.on_failure == "closed":
        return _unless_recordable(bridge, refuse)
    return None


def _rejected(bridge: Bridge, exchange: Exchange) -> Refusal | None:
    """Ask the circuit breaker, if the provider has one. The exchange's end is its result."""
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
