"""Add up the usage of a batch's answers: one sum per model, since a batch may have 100,000 answers. Sans-io."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aibridge_addon.dialects.base import Iteration, Reading, Usage

LONG = 100_000
"""Input tokens. Prices of some models rise above 128,000 or more, so longer requests are not added to others."""
MAX_LONG = 256
"""Maximum number of long requests with sums of their own."""
MAX_SUMS = 1024
MAX_NAMES = 64
"""Maximum number of further counts in a sum."""
TOO_MANY = "more long requests than are kept apart"


@dataclass(frozen=True, slots=True)
class _Key:
    kind: str
    model: str
    unpriced: str | None
    number: int
    """Of a long request, from 1. 0 for all others."""


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
        usage, unpriced, number = part.usage, part.usage.unpriced, 0
        if usage.input_tokens + usage.cache_read_input_tokens + usage.cache_write_input_tokens > LONG:
            self._long += 1
            number = self._long if self._long <= MAX_LONG else 0
            unpriced = unpriced if number else TOO_MANY
        key = _Key(part.kind, model, unpriced, number)
        if key not in self._sums:
            if len(self._sums) >= MAX_SUMS:
                return False
            self._sums[key] = Usage(unpriced=unpriced, extra={"requests": 0})
        total = self._sums[key]
        total.input_tokens += usage.input_tokens
        total.output_tokens += usage.output_tokens
        total.cache_read_input_tokens += usage.cache_read_input_tokens
        total.cache_write_input_tokens += usage.cache_write_input_tokens
        total.extra["requests"] += 1
        for name, value in usage.extra.items():
            known = total.extra.get(name)
            if known is None and len(total.extra) < MAX_NAMES:
                total.extra[name] = value
            elif _is_number(known) and _is_number(value):
                total.extra[name] = known + value
        total.extra["service_tier"] = "batch"
        return True

    def __iter__(self) -> Iterator[Iteration]:
        return (Iteration(key.kind, key.model, usage) for key, usage in self._sums.items())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
