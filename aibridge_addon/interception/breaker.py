"""Circuit breakers: refuse requests to a failing provider for some time. Sans-io: the caller passes the clock in.

               failure_threshold failures in a row, within an interval
      CLOSED ──────────────────────────────────────────────────────────▶ OPEN: every request is refused
        ▲                                                               ▲  │ after the timeout, at the next request
        │                                                  one failure  │  ▼
        └───────── max_requests successes in a row ────────────────── HALF-OPEN: at most max_requests trial requests

Each provider, host, route and model has one breaker, created at its first request. Requests admitted before the last
change of state are not counted. An answer is counted when it ends, so a stream that breaks off counts, however long
it ran.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial

from aibridge_addon.config.providers import CircuitBreaker, Provider
from aibridge_addon.records import MAX_MODEL

MAX_BREAKERS = 1000
"""Maximum number of breakers, since clients choose the model names. Beyond it, the least recently used one is dropped,
closed ones first."""


class State(Enum):
    """A breaker's state. The value is the one that metrics show."""

    CLOSED = 0.0
    HALF_OPEN = 0.5
    OPEN = 1.0


class Verdict(Enum):
    SUCCESS = "success"
    FAILURE = "failure"
    NEITHER = "neither"
    """The end of this request says nothing about the provider."""


FAILURES = frozenset({503, 504, 529})
"""HTTP statuses. A rate limit (429) is not among them: it concerns the key, not the provider."""
BROKEN_OFF = frozenset({"upstream_unreachable", "upstream_disconnected", "incomplete_stream", "corrupt_event_stream"})
"""Error types of interceptions: there was no connection, or the stream broke off."""
OVERLOADED = frozenset({"overloaded_error", "serviceUnavailableException"})
"""Error types that mean 529 (Anthropic) and 503 (Bedrock) when they arrive inside a stream."""
NOT_CAUSED_BY_PROVIDER = frozenset(
    {"client_disconnected", "inactivity", "internal_error", "shutdown", "upstream_unresolvable"}
)
"""Error types that say nothing about the provider."""


def judge(http_status: int | None, error_type: str | None) -> Verdict:
    """Return what an interception's end says about the provider. The first rule that matches applies."""
    if error_type in BROKEN_OFF:
        return Verdict.FAILURE
    if http_status is None or error_type in NOT_CAUSED_BY_PROVIDER:
        return Verdict.NEITHER
    if http_status in FAILURES or error_type in OVERLOADED:
        return Verdict.FAILURE
    return Verdict.SUCCESS


@dataclass(frozen=True, slots=True)
class Ticket:
    """The admission of one request. Settle it when the request has ended."""

    breaker: Breaker
    generation: int

    def settle(self, http_status: int | None, error_type: str | None) -> None:
        self.breaker.settle(self, judge(http_status, error_type))


class Breaker:
    def __init__(
        self, settings: CircuitBreaker, now: Callable[[], float], changed: Callable[[State, State], None]
    ) -> None:
        """`now` is a monotonic clock in seconds. `changed` is called at each change of state: before, after."""
        self.state = State.CLOSED
        self._settings = settings
        self._now = now
        self._changed = changed
        self._generation = 0
        self._failures = self._admitted = self._successes = 0
        self._until = now() + settings.interval
        """The end of the interval if closed; the end of the timeout if open."""

    def admit(self) -> Ticket | None:
        """Admit a request; None if it is refused."""
        now, settings = self._now(), self._settings
        if self.state is State.OPEN and now >= self._until:
            self._go(State.HALF_OPEN)
        if self.state is State.OPEN or (self.state is State.HALF_OPEN and self._admitted >= settings.max_requests):
            return None
        self._admitted += 1
        return Ticket(self, self._generation)

    @property
    def retry_after(self) -> int:
        """Whole seconds until a request may be admitted again, at least 1."""
        return max(1, math.ceil(self._until - self._now())) if self.state is State.OPEN else 1

    def settle(self, ticket: Ticket, verdict: Verdict) -> None:
        """Count the end of an admitted request."""
        if ticket.generation != self._generation:
            return
        if verdict is Verdict.NEITHER:
            self._admitted -= 1
        elif self.state is State.HALF_OPEN:
            self._count_trial(verdict)
        else:
            self._count(verdict)

    def _count_trial(self, verdict: Verdict) -> None:
        if verdict is Verdict.FAILURE:
            self._go(State.OPEN)
            return
        self._successes += 1
        if self._successes >= self._settings.max_requests:
            self._go(State.CLOSED)

    def _count(self, verdict: Verdict) -> None:
        now = self._now()
        if now >= self._until:
            self._failures = 0
            self._until = now + self._settings.interval
        self._failures = self._failures + 1 if verdict is Verdict.FAILURE else 0
        if self._failures >= self._settings.failure_threshold:
            self._go(State.OPEN)

    def _go(self, state: State) -> None:
        before, self.state = self.state, state
        self._generation += 1
        self._failures = self._admitted = self._successes = 0
        self._until = self._now() + (self._settings.timeout if state is State.OPEN else self._settings.interval)
        self._changed(before, state)

    def forget(self) -> None:
        """Close the breaker, because it is being dropped. Requests still in flight change nothing any more."""
        if self.state is not State.CLOSED:
            self._go(State.CLOSED)
        self._changed = lambda _before, _after: None


class Breakers:
    def __init__(self, now: Callable[[], float], changed: Callable[[str, str, str, str, State, State], None]) -> None:
        """`changed` is called at each change of state: provider, host, route, model, before, after."""
        self._now = now
        self._changed = changed
        self._breakers: OrderedDict[tuple[str, str, str, str], Breaker] = OrderedDict()

    def __len__(self) -> int:
        return len(self._breakers)

    def worst(self, provider: str, route: str, model: str) -> State:
        """Return the worst state of the breakers of all hosts. It takes long, so call it only after a change."""
        places = (provider, route, model)
        states = [b.state for (name, _, *rest), b in self._breakers.items() if (name, *rest) == places]
        return max(states, key=lambda state: state.value, default=State.CLOSED)

    def breaker(self, provider: Provider, host: str, route: str, model: str) -> Breaker | None:
        """Return the breaker for a request; None if its provider has no breaker configured."""
        if provider.circuit_breaker is None:
            return None
        key = (provider.name, host, route, model[:MAX_MODEL])
        breaker = self._breakers.get(key)
        if breaker is None:
            breaker = self._make(key, provider.circuit_breaker)
        self._breakers.move_to_end(key)
        return breaker

    def _make(self, key: tuple[str, str, str, str], settings: CircuitBreaker) -> Breaker:
        if len(self._breakers) >= MAX_BREAKERS:
            closed = (old for old, breaker in self._breakers.items() if breaker.state is State.CLOSED)
            self._breakers.pop(next(closed, next(iter(self._breakers)))).forget()

        breaker = self._breakers[key] = Breaker(settings, self._now, partial(self._changed, *key))
        return breaker
