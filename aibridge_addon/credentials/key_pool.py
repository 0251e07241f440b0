"""A provider's central keys: choose one, and rest those that the provider refuses. Sans-io: the clock is passed in.

choose ─▶ the first key that does not rest, in the configuration's order
rest   ─▶ the provider refused the key: 429 until `Retry-After`, or for a minute; 401 for a minute

A key rests for one model, because rate limits are per model; for one route, if its requests name no model or the key
has no right to it; or for everything: it is wrong, or its account has no money left. What the provider says in its
error decides; see `interception/attempts.py`.
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
"""Maximum number of rests of one pool. Beyond it, the one that began first ends, those for everything last."""
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
class Place:
    """What a key rests for."""

    key: int
    """The key's number."""
    model: str = ""
    route: str = ""
    """The template of a route. If there is no model either, the key rests for everything."""

    @property
    def is_everything(self) -> bool:
        return not self.model and not self.route


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """A rest of a key."""

    place: Place
    until: float
    rate_limited: bool
    before: Rest | None
    """The one that this one has replaced, and which would not be over yet."""


class KeyPool:
    def __init__(self, secrets: Iterable[SecretStr], now: Callable[[], float]) -> None:
        """`now` is a monotonic clock in seconds."""
        self.keys = tuple(Key(n, secret, mask(secret.get_secret_value())) for n, secret in enumerate(secrets))
        self._now = now
        self._resting: dict[Place, Rest] = {}
        """Replaced as a whole, because another thread reads it."""

    def choose(self, but: Collection[Key] = (), model: str = "", route: str = "") -> Key | None:
        """Return the key for the next attempt of a request, none of `but`; None if every key rests.

        A single key never rests: the provider's refusal is then the answer.
        """
        if len(self.keys) == 1:
            return next((key for key in self.keys if key not in but), None)
        now = self._now()
        return next((key for key in self.keys if key not in but and self._until(key, model, route) <= now), None)

    def _until(self, key: Key, model: str, route: str) -> float:
        return max((rest.until for rest in self._rests(model, route, key)), default=0.0)

    def _rests(self, model: str, route: str, *keys: Key) -> Iterator[Rest]:
        for key in keys:
            n = key.number
            for place in {Place(n), Place(n, model=model[:MAX_MODEL]), Place(n, route=route)}:
                if (rest := self._resting.get(place)) is not None:
                    yield rest

    def rest(self, key: Key, seconds: float | None, *, rate_limited: bool, model: str = "", route: str = "") -> Rest:
        """Rest a key that the provider has refused, for a model or a route, or for everything.

        `seconds` is its `Retry-After`; None if there is none.
        """
        now = self._now()
        pause = min(DEFAULT_REST if seconds is None else seconds, MAX_REST)
        resting = {place: rest for place, rest in self._resting.items() if rest.until > now}
        if len(resting) >= MAX_RESTS:
            resting.pop(next((place for place in resting if not place.is_everything), next(iter(resting))))
        place = Place(key.number, model[:MAX_MODEL], route)
        before = resting.get(place)
        # Not the whole chain: a pool whose keys always rest would keep all of its past.
        made = Rest(place, now + pause, rate_limited, before and replace(before, before=None))
        self._resting = resting | {place: made}
        return made

    def wake(self, rest: Rest) -> None:
        """Take a rest back, because the refusal was not about the key. Others of the same place stay."""
        if self._resting.get(rest.place) is rest:
            others = {place: each for place, each in self._resting.items() if place != rest.place}
            self._resting = others | ({rest.place: rest.before} if rest.before is not None else {})

    def state(self, provider_name: str) -> KeyPoolState:
        """Count the keys by what may be done with them now. May be called on any thread.

        A key that does not rest for everything is counted as rate limited.
        """
        now = self._now()
        resting: dict[int, bool] = {}
        for place, rest in self._resting.items():
            if rest.until > now:
                resting[place.key] = resting.get(place.key, True) and (rest.rate_limited or not place.is_everything)
        limited = sum(resting.values())
        return KeyPoolState(provider_name, len(self.keys) - len(resting), limited, len(resting) - limited)

    def wait(self, model: str = "", route: str = "") -> float:
        """Return the seconds until the first key may be used again."""
        now = self._now()
        waits = (self._until(key, model, route) - now for key in self.keys if any(self._rests(model, route, key)))
        return max(0.0, min(waits, default=0.0))

    def exhausted(self, model: str = "", route: str = "") -> Exhausted:
        """Return the answer while all keys rest. Only a rate limit is worth waiting for."""
        if any(rest.rate_limited for rest in self._rests(model, route, *self.keys)):
            pause = max(1, math.ceil(self.wait(model, route)))
            return Exhausted(429, "every central key of this provider is rate limited", pause)
        return Exhausted(502, "the provider accepts none of its central keys", None)
