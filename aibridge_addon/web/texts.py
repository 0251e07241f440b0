"""Numbers, times and recorded texts as pages show them. Jinja2 escapes what these functions return."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from zoneinfo import ZoneInfo

from aibridge_addon.telemetry.log.text import duration, local, money, one_line
from aibridge_addon.wire.printable import printable

SHORT, LONG = 4_000, 200_000
"""Characters of a recorded text that a page shows, unless and even if all of it is asked for."""
NAME = 120
"""Characters of a name."""
STEPS: Mapping[str, str] = MappingProxyType(
    {
        "vendor": "set providers[].price_as to the vendor whose prices apply (base_url is a host that is not known), or"
        " to none",
        "model": "if the name is that of a deployment or a profile, set providers[].models to the model that it is for",
        "inference_geo": "if it is unknown, set providers[].region",
        "region": "if it is unknown, set providers[].region",
        "data_zone": "if it is unknown, set providers[].region",
        "azure_scope": "set providers[].azure_scope",
        "error": "working out the price has failed: report the error that the log has",
    }
)
"""What an operator can do, by the first word of a reason. Nothing in the configuration helps against the others."""


def shown(text: object, *, full: bool = False) -> str:
    """Return a recorded text, cut with a note on what is missing. Control characters are visible."""
    if text is None:
        return "(not recorded)"
    value = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str)
    limit = LONG if full else SHORT
    rest = len(value) - limit
    return printable(value[:limit]) + (f"… (+{rest:,} characters)" if rest > 0 else "")


def named(text: object) -> str:
    """Return a name in one line. A missing one is a dash."""
    return one_line(str(text), NAME) if text not in (None, "") else "–"


def unpriced_steps(reasons: Iterable[str | None]) -> list[tuple[str, str]]:
    """Return what to do about reasons for missing prices: the first word of a reason, and a step."""
    words = {(reason or "").partition(":")[0] for reason in reasons}
    return [(word, step) for word, step in STEPS.items() if word in words]


def count(number: float | None) -> str:
    return "–" if number is None else f"{round(number):,}"


def dollars(amount: float | None, digits: int = 4) -> str:
    """Return US dollars with their sign, also in front of an amount that is too small for the digits."""
    text = money(amount, digits)
    return text if amount is None else f"<${text[1:]}" if text.startswith("<") else f"${text}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}" if share >= 0.095 or share == 0 else f"{share:.1%}"


def seconds(value: float | None) -> str:
    return "–" if value is None else duration(value)


def at(zone: ZoneInfo, moment: str | None, form: str = "%Y-%m-%d %H:%M") -> str:
    return local(moment, zone, form) or "–"


def took(row: Mapping[str, str | None]) -> float | None:
    """Return the seconds between start and end of a row. None: it has not ended."""
    if row["started_at"] is None or row["ended_at"] is None:
        return None
    difference = datetime.fromisoformat(row["ended_at"]) - datetime.fromisoformat(row["started_at"])
    return max(0.0, difference.total_seconds())
