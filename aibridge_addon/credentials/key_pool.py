"""A provider's central keys: choose one, and rest those that the provider refuses. Sans-io: the clock is passed in.

choose ─▶ the first key that does not rest, in the configuration's order
rest   ─▶ the provider refused the key: 429 until `Retry-After`, or for a minute; 401 for a minute
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from pydantic import SecretStr

from aibridge_addon.credentials.client import mask
from aibridge_addon.records import KeyPoolState

DEFAULT_REST = 60.0
"""Seconds that a key rests if the answer has no `Retry-After`."""
MAX_REST = 86_400.0
"""Seconds. Longer `Retry-After` values are cut, so that a wrong one cannot disable a key for good."""


RATE_LIMITED, UNAUTHORIZED = "rate_limited", "unauthorized"
"""Why a provider refuses a key."""


@dataclass(frozen=True, slots=True)
class Key:
    number: int
    """Its index in the configuration."""
    secret: SecretStr
    hint: str
    """The masked secret, for rows and logs."""


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The answer to a client when every key rests."""

    status: int
    message: str
    retry_after: int | None
    """Whole seconds until a key may be used again; None if waiting does not help."""

    @property
    def reason(self) -> str:
        return UNAUTHORIZED if self.retry_after is None else RATE_LIMITED


@dataclass(frozen=True, slots=True)
class _Rest:
    until: float
    rate_limited: bool


class KeyPool:
    def __init__(self, secrets: Iterable[SecretStr], now: Callable[[], float]) -> None:
        """`now` is a monotonic clock in seconds."""
        self.keys = tuple(Key(n, secret, mask(secret.get_secret_value())) for n, secret in enumerate(secrets))
        self._now = now
        self._resting: dict[int, _Rest] = {}

    def choose(self, but: Collection[Key] = ()) -> Key | None:
        """Return the key for the next attempt, none of `but`; None if every key rests.

        A single key never rests: the provider's refusal is then the answer.
        """
        if len(self.keys) == 1:
            return next((key for key in self.keys if key not in but), None)
        now = self._now()
        return next((key for key in self.keys if key not in but and self._rested(key, now)), None)

    def _rested(self, key: Key, now: float) -> bool:
        rest = self._resting.get(key.number)
        return rest is None or rest.until <= now

    def rest(self, key: Key, seconds: float | None, *, rate_limited: bool) -> None:
        """Rest a key that the provider has refused. `seconds` is its `Retry-After`; None if there is none."""
        now = self._now()
        pause = min(DEFAULT_REST if seconds is None else seconds, MAX_REST)
        resting = {number: rest for number, rest in self._resting.items() if rest.until > now}
        self._resting = resting | {key.number: _Rest(now + pause, rate_limited)}

    def state(self, provider_name: str) -> KeyPoolState:
        """Count the keys by what may be done with them now. May be called on any thread."""
        now = self._now()
        resting = [rest.rate_limited for rest in self._resting.values() if rest.until > now]
        limited = sum(resting)
        return KeyPoolState(provider_name, len(self.keys) - len(resting), limited, len(resting) - limited)

    @property
    def wait(self) -> float:
        """Seconds until the first key may be used again."""
        now = self._now()
        return max(0.0, min((rest.until - now for rest in self._resting.values()), default=0.0))

    def exhausted(self) -> Exhausted:
        """Return the answer while all keys rest. Only a rate limit is worth waiting for."""
        if any(rest.rate_limited for rest in self._resting.values()):
            return Exhausted(429, "every central key of this provider is rate limited", max(1, math.ceil(self.wait)))
        return Exhausted(502, "the provider accepts none of its central keys", None)
