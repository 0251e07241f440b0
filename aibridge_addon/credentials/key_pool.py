"""A provider's central keys: choose one, and rest those that the provider refuses. Sans-io: the clock is passed in.

choose ─▶ the first key that does not rest, in the configuration's order
rest   ─▶ the provider refused the key: 429 until `Retry-After`, or for a minute; 401 for a minute

A key rests for one model, because rate limits are per model, or for all of them: it is wrong, or its account has no
money left. What the provider says in its error decides; see `interception/attempts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from pydantic import SecretStr

from aibridge_addon.credentials.client import mask
from aibridge_addon.records import MAX_MODEL, KeyPoolState

DEFAULT_REST = 60.0
"""Seconds that a key rests if the answer has no `Retry-After`."""
MAX_REST = 86_400.0
"""Seconds. Longer `Retry-After` values are cut, so that a wrong one cannot disable a key for good."""

MAX_RESTS = 1000
"""Maximum number of rests of one pool. Beyond it, the one that began first ends, those of all models last."""
ALL_MODELS = ""
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


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """A rest of a key."""

    place: tuple[int, str]
    """The key's number, and the model."""
    until: float
    rate_limited: bool
    before: Rest | None
    """The one that this one has replaced, and which would not be over yet."""


class KeyPool:
    def __init__(self, secrets: Iterable[SecretStr], now: Callable[[], float]) -> None:
        """`now` is a monotonic clock in seconds."""
        self.keys = tuple(Key(n, secret, mask(secret.get_secret_value())) for n, secret in enumerate(secrets))
        self._now = now
        self._resting: dict[tuple[int, str], Rest] = {}
        """By the key's number and the model. Replaced as a whole, because another thread reads it."""

    def choose(self, but: Collection[Key] = (), model: str = ALL_MODELS) -> Key | None:
        """Return the key for the next attempt, none of `but`; None if every key rests.

        A single key never rests: the provider's refusal is then the answer.
        """
        if len(self.keys) == 1:
            return next((key for key in self.keys if key not in but), None)
        now = self._now()
        return next((key for key in self.keys if key not in but and self._until(key, model) <= now), None)

    def _until(self, key: Key, model: str) -> float:
        return max((rest.until for rest in self._rests(model, key)), default=0.0)

    def _rests(self, model: str, *keys: Key) -> Iterator[Rest]:
        for key in keys:
            for name in {ALL_MODELS, model[:MAX_MODEL]}:
                if (rest := self._resting.get((key.number, name))) is not None:
                    yield rest

    def rest(self, key: Key, seconds: float | None, *, rate_limited: bool, model: str = ALL_MODELS) -> Rest:
        """Rest a key that the provider has refused. `seconds` is its `Retry-After`; None if there is none."""
        now = self._now()
        pause = min(DEFAULT_REST if seconds is None else seconds, MAX_REST)
        resting = {place: rest for place, rest in self._resting.items() if rest.until > now}
        if len(resting) >= MAX_RESTS:
            resting.pop(next((place for place in resting if place[1] != ALL_MODELS), next(iter(resting))))
        place = key.number, model[:MAX_MODEL]
        before = resting.get(place)
        # Not the whole chain: a pool whose keys always rest would keep all of its past.
        made = Rest(place, now + pause, rate_limited, before and replace(before, before=None))
        self._resting = resting | {place: made}
        return made

    def wake(self, rest: Rest) -> None:
        """Take a rest back, because the refusal was not about the key. Others of the key and model stay."""
        if self._resting.get(rest.place) is rest:
            others = {place: each for place, each in self._resting.items() if place != rest.place}
            self._resting = others | ({rest.place: rest.before} if rest.before is not None else {})

    def state(self, provider_name: str) -> KeyPoolState:
        """Count the keys by what may be done with them now. May be called on any thread.

        A key that rests for one model is counted as rate limited.
        """
        now = self._now()
        resting: dict[int, bool] = {}
        for (number, model), rest in self._resting.items():
            if rest.until > now:
                resting[number] = resting.get(number, True) and (rest.rate_limited or model != ALL_MODELS)
        limited = sum(resting.values())
        return KeyPoolState(provider_name, len(self.keys) - len(resting), limited, len(resting) - limited)

    def wait(self, model: str = ALL_MODELS) -> float:
        """Return the seconds until the first key may be used again."""
        now = self._now()
        waits = (self._until(key, model) - now for key in self.keys if next(self._rests(model, key), None) is not None)
        return max(0.0, min(waits, default=0.0))

    def exhausted(self, model: str = ALL_MODELS) -> Exhausted:
        """Return the answer while all keys rest. Only a rate limit is worth waiting for."""
        if any(rest.rate_limited for rest in self._rests(model, *self.keys)):
            pause = max(1, math.ceil(self.wait(model)))
            return Exhausted(429, "every central key of this provider is rate limited", pause)
        return Exhausted(502, "the provider accepts none of its central keys", None)
