"""Read the limits of a plan as providers say them: in the headers of answers, and in Codex's events. Sans-io.

Where the formats are from:

- `anthropic-ratelimit-<window>-{limit,remaining,reset}`: Anthropic's API reference, "Rate limits", "Response headers".
  `anthropic-priority-…` (the same page, "Service tiers") and `anthropic-fast-…` have the same members.
- `anthropic-ratelimit-unified-[<window>-]{utilization,status,reset,surpassed-threshold}`, which subscriptions get, as
  Claude Code reads them. A utilization is the share that is *spent*.
- `x-ratelimit-{limit,remaining,reset}-<window>`: OpenAI's API guide, "Rate limits", "Rate limits in headers". A reset
  is a duration: `6m0s`.
- `x-codex[-<limit>]-{primary,secondary}-{used-percent,window-minutes,reset-at,reset-after-seconds}` and the event
  `codex.rate_limits`: openai/codex, `codex-rs/codex-api/src/rate_limits.rs`.
- `x-quota-snapshot-<name>` and `x-usage-ratelimit-<name>`, a query string `ent=300&ov=0.0&ovPerm=false&rem=98.5&rst=…`:
  microsoft/vscode-copilot-chat, `chatQuotaServiceImpl.ts`. `rem` is the percentage that is left; `ent=-1`: unlimited.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from math import isfinite
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

from aibridge_addon.wire.json_values import as_dict, as_text

RATE_LIMITS = "codex.rate_limits"
"""Type of the event in which ChatGPT reports the limits of Codex."""
MAX_WINDOWS = 16
"""Windows that are read of one answer. Providers have up to eight."""
MAX_VALUE = 256
"""Characters. Longer values of headers are not read."""
MAX_WORD = 64
"""Characters of a status and of a plan's name."""
MAX_RATIO = 1_000.0
"""A larger share is ignored as wrong."""
MAX_DURATION = timedelta(days=400)
"""Resets are at most a year away."""
UNIFIED = "unified"
"""Name of the window for what holds for all unified windows together."""
CLAIMS: Mapping[str, str] = MappingProxyType({"five_hour": "5h", "seven_day": "7d"})
"""How a representative claim spells the beginning of a window's name."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}").fullmatch
_NUMBER = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{0,18})?").fullmatch
_DURATION = re.compile(
    r"(?:([0-9]{1,4})d)?(?:([0-9]{1,5})h)?(?:([0-9]{1,7})m(?!s))?(?:([0-9]{1,9}(?:\.[0-9]{0,9})?)s)?"
    r"(?:([0-9]{1,9}(?:\.[0-9]{0,9})?)ms)?"
).fullmatch
_UNIFIED = re.compile(
    r"anthropic-ratelimit-unified-(?:([a-z0-9_.-]{1,64})-)?(utilization|status|reset|surpassed-threshold)"
).fullmatch
_CLASSIC = re.compile(r"anthropic-(ratelimit|priority|fast)-([a-z0-9_-]{1,64})-(limit|remaining|reset)").fullmatch
_OPENAI = re.compile(r"x-ratelimit-(limit|remaining|reset)-([a-z0-9_.-]{1,64})").fullmatch
_CODEX = re.compile(
    r"x-codex-(?:([a-z0-9_.-]{1,48})-)?(primary|secondary)-"
    r"(used-percent|window-minutes|reset-at|reset-after-seconds)"
).fullmatch
_QUOTA = re.compile(r"x-(?:quota-snapshot|usage-ratelimit)-([a-z0-9_.-]{1,64})").fullmatch
_PREFIXES = ("anthropic-", "x-ratelimit-", "x-codex-", "x-quota-snapshot-", "x-usage-ratelimit-")


@dataclass(frozen=True, slots=True)
class LimitWindow:
    """One limit, as one answer says it. Units are the provider's. A ratio is a share: 0.25 is a quarter."""

    name: str
    used_ratio: float | None = None
    limit: float | None = None
    remaining: float | None = None
    resets_at: datetime | None = None
    is_counted: bool = False
    """The ratio was worked out from a limit and a remainder, so it moves a little with every request."""
    metadata: Mapping[str, Any] = MappingProxyType({})


Members = Mapping[str, str]
Read = Callable[[str, Members, datetime], LimitWindow | None]
"""Reads a window from its name and its members."""


def limits_in_headers(headers: Iterable[tuple[str, str]], now: datetime) -> Sequence[LimitWindow]:
    """Read the limits in the headers of an answer. What cannot be read is left out; it never raises.

    `now` is used for resets that are durations.
    """
    families: defaultdict[Read, defaultdict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    claim = ""
    for name, value in headers:
        name = name.lower()
        if not name.startswith(_PREFIXES) or len(value) > MAX_VALUE:
            continue
        if name == "anthropic-ratelimit-unified-representative-claim":
            claim = value.strip()
        elif (place := _place(name)) is not None:
            read, window, member = place
            if window in families[read] or len(families[read]) < MAX_WINDOWS:
                families[read][window][member] = value.strip()
    found = [
        limit
        for read, windows in families.items()
        for window, members in windows.items()
        if (limit := read(window, members, now)) is not None
    ]
    return _with_claim(found, claim) if claim else found


def _place(name: str) -> tuple[Read, str, str] | None:
    """Return what reads a header, its window, and its member."""
    if match := _UNIFIED(name):
        return _unified, match[1] or UNIFIED, match[2]
    if match := _CLASSIC(name):
        return _counted, match[2] if match[1] == "ratelimit" else f"{match[1]}-{match[2]}", match[3]
    if match := _OPENAI(name):
        return _counted, match[2], match[1]
    if match := _CODEX(name):
        return _codex, _codex_name(match[1] or "", match[2]), match[3]
    if match := _QUOTA(name):
        return _quota, match[1], "value"
    return None


def _unified(name: str, members: Members, now: datetime) -> LimitWindow | None:
    metadata: dict[str, Any] = {}
    if status := _word(members.get("status", "")):
        metadata["status"] = status
    if (threshold := _ratio(_number(members.get("surpassed-threshold")))) is not None:
        metadata["surpassed_threshold"] = threshold
    used = _ratio(_number(members.get("utilization")))
    if used is None and not metadata:
        return None
    return LimitWindow(name, used, resets_at=_moment(members.get("reset"), now), metadata=metadata)


def _with_claim(windows: Iterable[LimitWindow], claim: str) -> Sequence[LimitWindow]:
    """Mark the window that decides about the next request."""
    name = claim
    for spelled, short in CLAIMS.items():
        if claim.startswith(spelled):
            name = short + claim.removeprefix(spelled)
    mark = {"representative": True}
    return [
        replace(window, metadata={**window.metadata, **mark}) if window.name in (name, claim) else window
        for window in windows
    ]


def _counted(name: str, members: Members, now: datetime) -> LimitWindow | None:
    limit, remaining = _number(members.get("limit")), _number(members.get("remaining"))
    if limit is None and remaining is None:
        return None
    used = _ratio(1 - remaining / limit) if limit is not None and limit > 0 and remaining is not None else None
    return LimitWindow(name, used, limit, remaining, _moment(members.get("reset"), now), is_counted=True)


def _codex_name(limit: str, window: str) -> str:
    """Return `primary`, or `<limit>-primary` for a limit other than that of Codex itself."""
    limit = limit.lower().replace("_", "-").removeprefix("codex").strip("-")
    return f"{limit}-{window}" if limit else window


def _codex(name: str, members: Members, now: datetime) -> LimitWindow | None:
    reset = _moment(members.get("reset-at"), now) or _moment(members.get("reset-after-seconds"), now)
    used, minutes = _number(members.get("used-percent")), _number(members.get("window-minutes"))
    return _codex_window(name, used, minutes, reset, "")


def _codex_window(
    name: str, percent: float | None, minutes: float | None, reset: datetime | None, plan: str
) -> LimitWindow | None:
    if percent is None or not (percent or minutes or reset):  # zeros alone mean that there is no such window
        return None
    metadata: dict[str, Any] = {"window_minutes": round(minutes)} if minutes else {}
    if plan:
        metadata["plan"] = plan
    return LimitWindow(name, _ratio(percent / 100), resets_at=reset, metadata=metadata)


def _quota(name: str, members: Members, now: datetime) -> LimitWindow | None:
    values = dict(parse_qsl(members["value"], max_num_fields=16)) if members["value"].count("&") < 16 else {}
    limit, percent, over = (_number(values.get(key)) for key in ("ent", "rem", "ov"))
    if limit is not None and limit < 0:
        return LimitWindow(name, metadata={"unlimited": True})
    if percent is None:
        return None
    limit = limit or None  # windows of a session and a week have a percentage only
    remaining = round(limit * percent / 100, 3) if limit is not None else None
    beyond = over / limit if limit is not None and over else 0.0
    metadata: dict[str, Any] = {"overage": over} if over else {}
    used = _ratio(1 - percent / 100 + beyond)
    return LimitWindow(name, used, limit, remaining, _moment(values.get("rst"), now), metadata=metadata)


def limits_in_event(event: object, now: datetime) -> Sequence[LimitWindow]:
    """Read an event `codex.rate_limits`. What cannot be read is left out; it never raises."""
    members = as_dict(event)
    windows = as_dict(members.get("rate_limits"))
    limit = as_text(members.get("metered_limit_name")) or as_text(members.get("limit_name"))
    plan = _word(as_text(members.get("plan_type")))
    found = []
    for window in ("primary", "secondary"):
        said, name = as_dict(windows.get(window)), _codex_name(limit[:MAX_WORD], window)
        percent, minutes = _decoded(said.get("used_percent")), _decoded(said.get("window_minutes"))
        reset = _since_epoch(_decoded(said.get("reset_at"))) or _after(_decoded(said.get("reset_after_seconds")), now)
        if _NAME(name) and (read := _codex_window(name, percent, minutes, reset, plan)) is not None:
            found.append(read)
    return found


# --- values -------------------------------------------------------------------------------------------------------


def _word(text: str) -> str:
    """Return the beginning of a text. Empty: it has other characters than words of an API."""
    return text[:MAX_WORD] if text.isascii() and text.isprintable() else ""


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and _NUMBER(text) else None


def _decoded(value: object) -> float | None:
    """Return a decoded number, or a text that is one."""
    if isinstance(value, str):
        return _number(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e18 < value < 1e18:  # NaN fails, too
        return None
    return float(value)


def _ratio(share: float | None) -> float | None:
    return round(max(0.0, share), 6) if share is not None and isfinite(share) and share <= MAX_RATIO else None


def _moment(text: str | None, now: datetime) -> datetime | None:
    """Read a reset: seconds or milliseconds since 1970, seconds from now, a duration, or a date (RFC 3339)."""
    if not text:
        return None
    if (number := _number(text)) is not None:
        return _since_epoch(number) or _after(number, now)
    if (match := _DURATION(text)) and text:
        days, hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
        return _after(days * 86_400 + hours * 3_600 + minutes * 60 + seconds + milliseconds / 1_000, now)
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _since_epoch(number: float | None) -> datetime | None:
    """Return a moment of this millennium. None: the number is no such moment."""
    if number is not None and number >= 1e12:
        number /= 1_000
    return datetime.fromtimestamp(number, UTC) if number is not None and 1e9 <= number < 1e11 else None


def _after(seconds: float | None, now: datetime) -> datetime | None:
    if seconds is None or not 0 <= seconds <= MAX_DURATION.total_seconds():
        return None
    return (now + timedelta(seconds=seconds)).astimezone(UTC)
