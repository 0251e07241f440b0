"""Circuit breakers: refuse requests to a provider that keeps failing, for a while. Sans-io: the clock is given.

               so many failures in a row, within an interval
      CLOSED ────────────────────────────────────────────────▶ OPEN: every request is turned away
        ▲                                                     ▲  │ after the timeout, at the next request
        │                                        one failure  │  ▼
        └───────── so many successes in a row ──────────── HALF-OPEN: at most so many requests, on trial

There is one for each provider, route and model, made when it is first needed. What was admitted before the last change
of state is not counted. An answer counts when it has ended, so a stream that dies does, however long it has run.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from aibridge_addon.config.providers import CircuitBreaker, Provider

logger = logging.getLogger(__name__)

MAX_BREAKERS = 1000
"""Clients choose the models. Beyond this, the one that was not used for the longest time is forgotten."""
MAX_MODEL_LENGTH = 128


class State(Enum):
    """With its number in metrics."""

    CLOSED = 0.0
    HALF_OPEN = 0.5
    OPEN = 1.0


class Verdict(Enum):
    SUCCESS = "success"
    FAILURE = "failure"
    NEITHER = "neither"
    """The provider has not shown how it is."""


FAILURES = frozenset({503, 504, 529})
"""Statuses; a rate limit (429) is none: the provider is well, the key is not."""
DIED = frozenset({"upstream_unreachable", "upstream_disconnected", "incomplete_stream", "corrupt_event_stream"})
"""Ends of an interception: no connection, or a stream without its end."""
OVERLOADED = frozenset({"overloaded_error", "serviceUnavailableException"})
"""Anthropic's 529, and Bedrock's 503, as an event in a stream that has begun."""
NOT_ITS_DOING = frozenset({"client_disconnected", "shutdown"})


def judge(http_status: int | None, error_type: str | None) -> Verdict:
    """What an interception's end says of the provider. The first line that fits counts."""
    if error_type in DIED:
        return Verdict.FAILURE
    if http_status is None or error_type in NOT_ITS_DOING:
        return Verdict.NEITHER
    if http_status in FAILURES or error_type in OVERLOADED:
        return Verdict.FAILURE
    return Verdict.SUCCESS


@dataclass(frozen=True, slots=True)
class Ticket:
    """Lets one request through; to be settled when it has ended."""

    breaker: Breaker
    generation: int

    def settle(self, http_status: int | None, error_type: str | None) -> None:
        self.breaker.settle(self, judge(http_status, error_type))


class Breaker:
    def __init__(
        self, settings: CircuitBreaker, now: Callable[[], float], changed: Callable[[State, State], None]
    ) -> None:
        """`now` is a monotonic clock in seconds; `changed` is told each change of state: from, to."""
        self.state = State.CLOSED
        self._settings = settings
        self._now = now
        self._changed = changed
        self._generation = 0
        self._failures = self._admitted = self._successes = 0
        self._until = now() + settings.interval
        """When closed, the end of the interval; when open, that of the timeout."""

    def admit(self) -> Ticket | None:
        """Let a request through, or turn it away."""
        now, settings = self._now(), self._settings
        if self.state is State.OPEN and now >= self._until:
            self._go(State.HALF_OPEN)
        if self.state is State.OPEN or (self.state is State.HALF_OPEN and self._admitted >= settings.max_requests):
            return None
        self._admitted += 1
        return Ticket(self, self._generation)

    @property
    def retry_after(self) -> int:
        """Whole seconds until a request may be let through again, at least 1."""
        return max(1, math.ceil(self._until - self._now())) if self.state is State.OPEN else 1

    def settle(self, ticket: Ticket, verdict: Verdict) -> None:
        """A request that was let through has ended."""
        if ticket.generation != self._generation:
            return
        if verdict is Verdict.NEITHER:
            self._admitted -= 1
        elif self.state is State.HALF_OPEN:
            self._tried(verdict)
        else:
            self._count(verdict)

    def _tried(self, verdict: Verdict) -> None:
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
        """Nobody asks it any more; what is still under way is not told."""
        if self.state is not State.CLOSED:
            self._go(State.CLOSED)
        self._changed = lambda _before, _after: None


class Breakers:
    def __init__(self, now: Callable[[], float], changed: Callable[[str, str, str, float], None]) -> None:
        """`changed` is told each change of state: provider, route, model, the state's number."""
        self._now = now
        self._changed = changed
        self._breakers: OrderedDict[tuple[str, str, str], Breaker] = OrderedDict()

    def __len__(self) -> int:
        return len(self._breakers)

    def breaker(self, provider: Provider, route: str, model: str) -> Breaker | None:
        """The breaker of a request; None: its provider has none."""
        if provider.circuit_breaker is None:
            return None
        key = (provider.name, route, model[:MAX_MODEL_LENGTH])
        breaker = self._breakers.get(key)
        if breaker is None:
            breaker = self._make(key, provider.circuit_breaker)
        self._breakers.move_to_end(key)
        return breaker

    def _make(self, key: tuple[str, str, str], settings: CircuitBreaker) -> Breaker:
        if len(self._breakers) >= MAX_BREAKERS:
            closed = (old for old, breaker in self._breakers.items() if breaker.state is State.CLOSED)
            self._breakers.pop(next(closed, next(iter(self._breakers)))).forget()

        def changed(before: State, after: State) -> None:
            name, route, model = key
            logger.warning("circuit breaker of %s, %s, %r: %s, was %s", name, route, model, after.name, before.name)
            self._changed(name, route, model, after.value)

        breaker = self._breakers[key] = Breaker(settings, self._now, changed)
        return breaker
