"""Texts, numbers and times as a person reads them: safe to print, and short."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from aibridge_addon.wire.printable import printable

NOT_AVAILABLE = "n/a"
"""Stands for an amount that is not known."""
UNITS = ((10**15, "P"), (10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))


def one_line(text: str, limit: int | None = None) -> str:
    """Return printable text with its spaces and line breaks as single spaces, and a note on what was cut off."""
    if limit is not None and len(text) > 8 * limit:
        start, rest = " ".join(text[: 8 * limit].split()), len(text) - limit
        return f"{printable(start[:limit])}… (+{rest:,} characters)"
    line = " ".join(text.split())
    if limit is None or len(line) <= limit:
        return printable(line)
    return f"{printable(line[:limit])}… (+{len(line) - limit:,} characters)"


def count(number: int) -> str:
    return f"{number:,}"


def short_count(number: int) -> str:
    """Return a number in at most five characters, as far as there are units: 999, 12.3k, 4.56M."""
    if number < 1000 * 0.9995:
        return str(number)
    size, unit = next(found for found in UNITS if number >= found[0] * 0.9995)
    scaled = number / size
    digits = 0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{digits}f}{unit}"


def money(amount: float | None, digits: int = 4) -> str:
    """Return US dollars. `n/a`: not known."""
    if amount is None:
        return NOT_AVAILABLE
    smallest = 10**-digits
    if 0 < amount < smallest / 2:
        return f"<{smallest:.{digits}f}"
    return f"{amount:,.{digits}f}"


def short_money(amount: float | None) -> str:
    """Return US dollars in at most six characters, as far as there are units: 0.05, 123.45, 12.3k."""
    return short_count(round(amount)) if amount is not None and amount >= 1000 else money(amount, 2)


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{round(seconds * 1000)} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def local(moment: str | None, zone: ZoneInfo, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return a time of the database in a time zone. The empty text: there is none."""
    return "" if moment is None else datetime.fromisoformat(moment).astimezone(zone).strftime(form)
