"""A provider's central keys: which one is used, and which have to rest. Sans-io: the clock is given.

choose ─▶ the first key that does not rest, in the configuration's order
rest   ─▶ the provider has refused it: 429 until `Retry-After`, or for a minute; 401 for a minute
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from pydantic import SecretStr

from aibridge_addon.credentials.client import mask

DEFAULT_REST = 60.0
"""Seconds that a key rests if the provider does not say how long."""
MAX_REST = 86_400.0
"""Seconds; a provider that says more is not believed."""


@dataclass(frozen=True, slots=True)
class Key:
    number: int
    """Its place in the configuration."""
    secret: SecretStr
    hint: str
    """What may be shown of it."""


@dataclass(frozen=True, slots=True)
class Exhausted:
    """No key is left: what the client is told."""

    status: int
    message: str
    retry_after: int | None
    """Whole seconds until a key may be used again; None where that is no matter of time."""


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
        """The key for the next attempt, none of `but`; None: there is none now.

        A key without a second one never rests: that the provider refuses it is then the answer.
        """
        if len(self.keys) == 1:
            return next((key for key in self.keys if key not in but), None)
        now = self._now()
        return next((key for key in self.keys if key not in but and self._rested(key, now)), None)

    def _rested(self, key: Key, now: float) -> bool:
        rest = self._resting.get(key.number)
        return rest is None or rest.until <= now

    def rest(self, key: Key, seconds: float | None, *, rate_limited: bool) -> None:
        """The provider has refused this key; `seconds` as it says, None where it does not."""
        now = self._now()
        pause = min(DEFAULT_REST if seconds is None else seconds, MAX_REST)
        self._resting = {number: rest for number, rest in self._resting.items() if rest.until > now}
        self._resting[key.number] = _Rest(now + pause, rate_limited)

    @property
    def wait(self) -> float:
        """Seconds until the first key may be used again."""
        now = self._now()
        return max(0.0, min((rest.until - now for rest in self._resting.values()), default=0.0))

    def exhausted(self) -> Exhausted:
        """What the client is told while all keys rest: only a rate limit is something that it can wait for."""
        if any(rest.rate_limited for rest in self._resting.values()):
            return Exhausted(429, "every central key of this provider is rate limited", max(1, math.ceil(self.wait)))
        return Exhausted(502, "the provider accepts none of its central keys", None)
