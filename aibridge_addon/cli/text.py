"""Numbers and times as the command line shows them."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from aibridge_addon.telemetry.log.text import (
    NOT_AVAILABLE,
    UNSAFE,
    duration,
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
