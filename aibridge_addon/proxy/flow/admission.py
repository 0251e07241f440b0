"""Decide whether an interception may go upstream: by its budgets, its circuit breaker, and the state of the database.

    exchange ─▶ budgets ─▶ circuit breaker ─▶ (recording.on_failure: closed) its first rows are committed ─▶ upstream
                   └──────────────┴────────────────────────┴─▶ Refusal

The same rules apply to HTTP requests and to requests in a WebSocket. Only the form of a refusal differs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from aibridge_addon.bridge import Bridge
from aibridge_addon.interception.breaker import Breaker, Ticket
from aibridge_addon.interception.budgets import max_output
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.routing import Route
from aibridge_addon.proxy.flow.state import Refusal
from aibridge_addon.records import BreakerRejected, TokenUsage
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable
from aibridge_addon.wire.json_structure import has_more_values

CIRCUIT_OPEN = "circuit breaker is open"
"""The original project's message."""
BUDGET_EXCEEDED = "budget_exceeded"
"""The interception's `error_type`, and the code of the client's error."""
NOT_RECORDABLE = Refusal(
    503,
    "this request cannot be recorded now, so it is not forwarded",
    "recording_unavailable",
    "the database cannot be written to",
)


def admit(
    bridge: Bridge, exchange: Exchange, request: JSONObject | bytes, refuse: Callable[[Refusal], object]
) -> Awaitable[None] | None:
    """Let an interception go upstream, or `refuse` it. `request` is its body.

    Returns:
        An awaitable to wait for before the request is sent. `refuse` may be called until it is done.
    """
    refusal = _over_budget(bridge, exchange, request) or _rejected(bridge, exchange)
    if refusal is not None:
        refuse(refusal)
        return None
    if bridge.settings.recording.on_failure == "closed":
        return _unless_recordable(bridge, refuse)
    return None


def _over_budget(bridge: Bridge, exchange: Exchange, request: JSONObject | bytes) -> Refusal | None:
    """Return a refusal if a budget is used up. Otherwise what the request may use is reserved until its end."""
    budgets, route, actor = bridge.budgets, exchange.route, exchange.actor
    if budgets is None:
        return None
    party = budgets.accounts.asking(actor.id, actor.named_groups, route.provider.name, exchange.request.model)
    body = _maybe_object(request, bridge.settings.limits.json_values) if isinstance(request, bytes) else request
    size = len(request) if isinstance(request, bytes) else request.size
    exceeded = budgets.accounts.admit(
        exchange.id,
        party,
        size,
        max_output(body),
        partial(_price, bridge, exchange),
        route.deployment,
        is_never_priced=lambda model: bridge.is_never_priced(_expected(exchange, model, 1, 1)),
    )
    if exceeded is None:
        exchange.emit = budgets.accounts.watch(exchange.id, exchange.emit)
        budgets.sync.want()
        return None
    return Refusal(403, exceeded.message, BUDGET_EXCEEDED, details=exceeded.details)


def _maybe_object(data: bytes, most: int) -> JSONObject | None:
    if has_more_values(data, most):
        return None
    try:
        return JSONObject(data)
    except (NotJSON, Unreadable):
        return None


def _price(bridge: Bridge, exchange: Exchange, model: str, inputs: int, outputs: int) -> float | None:
    """Return what a request would cost in US dollars. None: it is not known."""
    return bridge.priced(_expected(exchange, model, inputs, outputs)).cost_usd


def _expected(exchange: Exchange, model: str, inputs: int, outputs: int) -> TokenUsage:
    """Return the token row that a request is expected to have.

    `model`: the one that is expected to answer, for a request that names none.
    """
    request, sale = exchange.request, exchange.sale
    model = request.model or model
    return TokenUsage(
        interception_id=exchange.id,
        provider_response_id="",
        provider=exchange.route.provider.type,
        provider_name=exchange.route.provider.name,
        model=model,
        input_tokens=inputs,
        output_tokens=outputs,
        cache_read_input_tokens=0,
        cache_write_input_tokens=0,
        completeness="partial",
        extra=request.billed_by,
        created_at=exchange.now(),
        vendor=sale.vendor,
        terms=sale.expected_terms(request, model),
    )


def _rejected(bridge: Bridge, exchange: Exchange) -> Refusal | None:
    """Return a refusal if the circuit breaker is open. Otherwise the end of the exchange is reported to it."""
    route, model = exchange.route, exchange.request.model
    breaker = bridge.breakers.breaker(route.provider, exchange.host, route.template, model)
    if breaker is None:
        return None
    ticket = breaker.admit()
    if ticket is not None:
        exchange.when_ended = ticket.settle
        return None
    return _circuit_open(bridge, route, model, breaker)


def _circuit_open(bridge: Bridge, route: Route, model: str, breaker: Breaker) -> Refusal:
    bridge.emit(BreakerRejected(route.provider.name, route.template, model))
    headers = {"retry-after": str(breaker.retry_after)}
    return Refusal(503, CIRCUIT_OPEN, "circuit_breaker_open", headers=headers)


def admit_handshake(bridge: Bridge, route: Route, host: str) -> Ticket | Refusal | None:
    """Admit the handshake of a WebSocket to the circuit breaker. It names no model. None: there is no breaker."""
    breaker = bridge.breakers.breaker(route.provider, host, route.template, "")
    if breaker is None:
        return None
    return breaker.admit() or _circuit_open(bridge, route, "", breaker)


async def _unless_recordable(bridge: Bridge, refuse: Callable[[Refusal], object]) -> None:
    if not await bridge.committed():
        refuse(NOT_RECORDABLE)
