"""Numbers and times as the command line shows them."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from aibridge_addon.telemetry.log.text import (
    NOT_AVAILABLE,
    UNSAFE,
    escape,
    money,
    one_line,
    printable,
    short_count,
    short_money,
)

__all__ = [
    "NOT_AVAILABLE",
    "UNSAFE",
    "count",
    "duration",
    "escape",
    "local",
    "money",
    "one_line",
    "printable",
    "short_count",
    "short_money",
]


def count(number: int) -> str:
    return f"{number:,}"


def local(moment: str | None, zone: ZoneInfo, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return a time of the database in a time zone."""
    return "" if moment is None else datetime.fromisoformat(moment).astimezone(zone).strftime(form)


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{round(seconds * 1000)} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
