"""Clocks that are made of other clocks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime


def never_back(clock: Callable[[], datetime]) -> Callable[[], datetime]:
    """Return a clock that stands still when `clock` is set back: no record is older than one before it."""
    latest = datetime.min.replace(tzinfo=UTC)

    def now() -> datetime:
        nonlocal latest
        latest = max(latest, clock())
        return latest

    return now
