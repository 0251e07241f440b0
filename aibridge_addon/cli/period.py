"""The options of commands that read a period: `--since`, `--until` and `--timezone`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import tzlocal

from aibridge_addon.config.errors import ConfigError, Problem

ALLOWED = "an ISO date or time, for example 2026-11-28, 2026-11-28T09:30 or 2026-11-28T09:30:00+01:00"
_DATE = re.compile(r"\d{4}-?\d{2}-?\d{2}")


@dataclass(frozen=True, slots=True)
class Period:
    zone: ZoneInfo
    since: datetime | None
    until: datetime | None
    """The first moment that does not belong to it."""
    since_text: str | None
    until_text: str | None
    """As the user wrote them, in ISO format with an offset for times."""

    def columns(self) -> dict[str, str | None]:
        """Return the members of JSON documents that name the period."""
        return {"timezone": self.zone.key, "since": self.since_text, "until": self.until_text}

    def __str__(self) -> str:
        match self.since_text, self.until_text:
            case None, None:
                return "all time"
            case since, None:
                return f"since {since}"
            case None, until:
                return f"until {until}"
            case since, until:
                return f"{since}" if since == until else f"{since} to {until}"


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--since", metavar="TIME", help="first day or moment, in ISO format, included")
    command.add_argument("--until", metavar="TIME", help="last day or moment, included")
    add_timezone(command)


def add_timezone(command: argparse.ArgumentParser) -> None:
    command.add_argument("--timezone", metavar="ZONE", help="such as Europe/Berlin or UTC (default: the machine's)")


def period_of(arguments: argparse.Namespace) -> Period:
    """Raises ConfigError."""
    zone = zone_of(arguments.timezone)
    since = _moment("--since", arguments.since, zone, _first_moment)
    until = _moment("--until", arguments.until, zone, _after)
    if since is not None and until is not None and since[0] >= until[0]:
        raise ConfigError([Problem("--until", f'"{arguments.until}"', f"no time before --since {arguments.since}")])
    return Period(
        zone,
        since and since[0],
        until and until[0],
        since and since[1],
        until and until[1],
    )


def zone_of(name: str | None) -> ZoneInfo:
    """Return a time zone; without a name that of the machine. Raises ConfigError."""
    try:
        return ZoneInfo(name) if name else machine_zone()
    except (ZoneInfoNotFoundError, ValueError, OSError):
        allowed = "the name of a time zone, for example Europe/Berlin, Asia/Kolkata or UTC"
        raise ConfigError([Problem("--timezone", f"{name!r}", allowed)]) from None


def machine_zone() -> ZoneInfo:
    try:
        return ZoneInfo(tzlocal.get_localzone_name())
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        return ZoneInfo("UTC")


def _moment(
    option: str, text: str | None, zone: ZoneInfo, convert: Callable[[date, ZoneInfo], datetime]
) -> tuple[datetime, str] | None:
    if text is None:
        return None
    try:
        if _DATE.fullmatch(text):
            day = date.fromisoformat(text)
            return convert(day, zone), day.isoformat()
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone, fold=int(convert is _after))
        return convert(moment, zone), moment.isoformat()
    except (ValueError, OverflowError):
        raise ConfigError([Problem(option, f'"{text}"', ALLOWED)]) from None


def _first_moment(since: date, zone: ZoneInfo) -> datetime:
    if not isinstance(since, datetime):
        since = datetime.combine(since, time(), zone)
    return since.astimezone(UTC)


def _after(until: date, zone: ZoneInfo) -> datetime:
    """Return the first moment after a day, or after a moment."""
    if isinstance(until, datetime):
        return until.astimezone(UTC) + timedelta.resolution
    return datetime.combine(until + timedelta(days=1), time(), zone).astimezone(UTC)
