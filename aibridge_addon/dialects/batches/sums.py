"""Add up the usage of a batch's answers, since a batch may have 100,000 of them. Sans-io.

Answers are added to each other only if the same prices apply to all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from aibridge_addon.dialects.base import Iteration, Reading, Usage
from aibridge_addon.dialects.usage import AMOUNTS, CONDITIONS, merged

LONG = 100_000
"""Input tokens. Prices of some models rise above 128,000 or more, so longer requests are not added to others."""
MAX_LONG = 256
"""Maximum number of long requests with sums of their own."""
MAX_SUMS = 1024
MAX_RESTS = 64
"""Maximum number of further sums without a price, for answers that have no sum of their own."""
MAX_NAMES = 256
"""Maximum number of further counts in a sum."""
TOO_MANY = "usage: too many kinds of requests"
TOO_MANY_COUNTS = "usage: too many counts"
TIER = "service_tier"
FEES = ("server_tool_use.", "tool_usage.", "server_side_tool_usage")
"""Beginnings of the names under which providers count uses of hosted tools."""


@dataclass(frozen=True, slots=True)
class _Key:
    kind: str
    model: str
    unpriced: str | None
    number: int = 0
    """Of a long request, from 1. 0 for all others."""
    conditions: tuple[tuple[str, str], ...] = ()
    """What decides the price beside the model, such as `inference_geo`."""
    counted: frozenset[str] = frozenset()
    """Names of a stated cost, and of hosted tools that were called. Not every answer may have them."""


class Sums:
    def __init__(self) -> None:
        self._sums: dict[_Key, Usage] = {}
        self._long = 0

    def add(self, reading: Reading) -> bool:
        """Add the usage of one answer. Returns False if there are too many sums."""
        parts = [] if reading.usage is None else [Iteration("answer", reading.model, reading.usage)]
        added = [self._add(part, part.model or reading.model) for part in (*parts, *reading.iterations)]
        return all(added)

    def _add(self, part: Iteration, model: str) -> bool:
        usage = part.usage
        total = self._sum_for(self._key(part, model))
        if total is None:
            return False
        total.input_tokens += usage.input_tokens
        total.output_tokens += usage.output_tokens
        total.cache_read_input_tokens += usage.cache_read_input_tokens
        total.cache_write_input_tokens += usage.cache_write_input_tokens
        total.complete = total.complete and usage.complete
        total.extra["requests"] += 1
        for name, value in usage.extra.items():
            if name in total.extra:
                total.extra[name] = merged(total.extra[name], value)
            elif len(total.extra) < MAX_NAMES:
                total.extra[name] = value
            else:
                total.unpriced = total.unpriced or TOO_MANY_COUNTS
        for name, count in usage.hosted_calls.items():
            total.hosted_calls[name] = total.hosted_calls.get(name, 0) + count
        total.extra[TIER] = "batch"
        return True

    def _key(self, part: Iteration, model: str) -> _Key:
        usage, number = part.usage, 0
        if usage.input_tokens + usage.cache_read_input_tokens + usage.cache_write_input_tokens > LONG:
            self._long += 1
            if self._long > MAX_LONG:
                return _Key(part.kind, model, usage.unpriced or TOO_MANY)
            number = self._long
        conditions = tuple(
            (name, repr(usage.extra[name])) for name in CONDITIONS if name in usage.extra and name != TIER
        )
        return _Key(part.kind, model, usage.unpriced, number, conditions, _counted(usage.extra, usage.hosted_calls))

    def _sum_for(self, key: _Key) -> Usage | None:
        """Return the sum for answers of one kind. None: there is no room for it."""
        if key not in self._sums and len(self._sums) >= MAX_SUMS:
            key = _Key(key.kind, key.model, key.unpriced or TOO_MANY)
            if key not in self._sums and len(self._sums) >= MAX_SUMS + MAX_RESTS:
                return None
        return self._sums.setdefault(key, Usage(unpriced=key.unpriced, extra={"requests": 0}))

    def __iter__(self) -> Iterator[Iteration]:
        return (Iteration(key.kind, key.model, usage) for key, usage in self._sums.items())


def _counted(extra: Mapping[str, object], calls: Mapping[str, int]) -> frozenset[str]:
    """Return the names of a stated cost, and of hosted tools. The provider's own count of uses wins over calls."""
    stated = {name for name in AMOUNTS if name in extra}
    return frozenset(stated.union(calls, (name for name in extra if name.startswith(FEES)) if calls else ()))
