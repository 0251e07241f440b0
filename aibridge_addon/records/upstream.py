"""Records of attempts to reach a provider: their outcomes, circuit breakers, and central keys."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UpstreamAttempt:
    """An upstream attempt has an outcome, which decided the next step."""

    provider_name: str
    route: str
    step: str
    """`show`, `retry`, `next_key` or `exhausted`."""
    refused_key: str | None = None
    """Why the provider refused the central key: `rate_limited` or `unauthorized`. None: it did not."""
    keys_tried: int | None = None
    """Number of central keys that were tried for the turn, of several. None: there are not several, or it goes on."""


@dataclass(frozen=True, slots=True)
class KeysExhausted:
    """A request was refused because every central key of its provider rests."""

    provider_name: str
    outcome: str
    """`rate_limited` if waiting helps, else `unauthorized`."""


@dataclass(frozen=True, slots=True)
class BreakerChanged:
    """A circuit breaker changed its state."""

    provider_name: str
    route: str
    model: str
    state: float
    """0 closed, 0.5 half-open, 1 open."""


@dataclass(frozen=True, slots=True)
class BreakerRejected:
    """A circuit breaker rejected a request."""

    provider_name: str
    route: str
    model: str
