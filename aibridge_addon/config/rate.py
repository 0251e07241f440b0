"""How often something may happen: `mcp.servers.<name>.rate`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

from aibridge_addon.config.errors import rejected

MAX_COUNT = 100_000
UNITS = MappingProxyType({"s": 1, "m": 60, "h": 3600})
"""Seconds of each unit."""
EXPECTED = f"a number of calls and a unit, such as 5/s, 60/m or 1000/h; 1 to {MAX_COUNT} calls"

_RATE = re.compile(r"([0-9]{1,6}) ?(?:/|per) ?(s|sec|second|m|min|minute|h|hour)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rate:
    count: int
    unit: str
    """A key of `UNITS`."""

    @property
    def seconds(self) -> int:
        return UNITS[self.unit]

    def __str__(self) -> str:
        return f"{self.count}/{self.unit}"


def parse_rate(value: object) -> Rate:
    """Parse `60/m`: so many in any period of that length."""
    if isinstance(value, Rate):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        raise rejected(f"a unit behind the number: {value}/s, {value}/m or {value}/h")
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not 0 < int(match[1]) <= MAX_COUNT:
        raise rejected(EXPECTED)
    return Rate(int(match[1]), match[2][0].lower())
