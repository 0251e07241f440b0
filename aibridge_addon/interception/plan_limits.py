"""Which limits of plans have changed since they were recorded. Sans-io.

Every answer names its limits, and most of them are as before. A row is made of a change:

- the provider states another share, limit, status or plan;
- a share that is counted from a limit and a remainder has moved by `STEP`, or one of them has reached 0;
- the window was renewed, which its new reset shows after the old one has passed.

A counted share moves with every request. As it can move by at most the whole limit in each window, `STEP` bounds the
number of its rows by the number of windows, not of requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from aibridge_addon.dialects.limits import LimitWindow
from aibridge_addon.records import PlanLimit

STEP = 0.01
"""The smallest change of a counted share that is recorded."""
RENEWAL = timedelta(minutes=1)
"""The shortest time between two rows of a window that differ in their reset only."""
MAX_KNOWN = 10_000
"""Windows that are remembered. The one that was not named for longest is forgotten, and recorded at its next change."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose limits an answer names."""

    initiator_id: str
    provider_name: str
    credential_hint: str
    credential: str
    """What distinguishes the credential from all others, or its hint if it is one of the operator's keys."""


def of_endpoint(windows: Iterable[LimitWindow], template: str) -> Sequence[LimitWindow]:
    """Name the windows that an answer on a passthrough route states.

    Rates are counted for each endpoint: Anthropic counts requests to `count_tokens` apart from messages (API guide,
    "Token counting"). Under the same name, the two would overwrite each other. Shares of a plan are the same everywhere.

    `template`: of the route. Its last segment with a name becomes part of the window's.
    """
    segments = [segment.rstrip("*") for segment in template.split("/") if "{" not in segment]
    endpoint = next(filter(None, reversed(segments)), template)
    return [replace(each, name=f"{endpoint}-{each.name}") if each.is_counted else each for each in windows]


class PlanLimits:
    """The last recorded values of every window. Used on one event loop."""

    def __init__(self, emit: Callable[[PlanLimit], None]) -> None:
        self._emit = emit
        self._known: OrderedDict[tuple[str, str, str], tuple[LimitWindow, datetime]] = OrderedDict()

    def said(self, holder: Holder, windows: Iterable[LimitWindow], now: datetime) -> None:
        """Emit a record for each window that has changed."""
        for window in windows:
            key = (holder.provider_name, holder.credential, window.name)
            last = self._known.get(key)
            if last is not None:
                self._known.move_to_end(key)
            if last is not None and not _has_changed(*last, window, now):
                continue
            self._known[key] = window, now
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
            self._emit(
                PlanLimit(
                    initiator_id=holder.initiator_id,
                    provider_name=holder.provider_name,
                    credential_hint=holder.credential_hint,
                    window_name=window.name,
                    used_ratio=window.used_ratio,
                    limit_value=window.limit,
                    remaining=window.remaining,
                    resets_at=window.resets_at,
                    observed_at=now,
                    metadata=dict(window.metadata),
                )
            )


def _has_changed(last: LimitWindow, observed_at: datetime, window: LimitWindow, now: datetime) -> bool:
    if (window.limit, window.metadata) != (last.limit, last.metadata):
        return True
    if window.is_counted:
        if (window.remaining == 0) != (last.remaining == 0) or _has_moved(window, last):
            return True
    elif (window.used_ratio, window.remaining) != (last.used_ratio, last.remaining):
        return True
    if window.resets_at == last.resets_at:
        return False
    was_renewed = last.resets_at is None or last.resets_at <= now
    return was_renewed and now - observed_at >= RENEWAL


def _has_moved(window: LimitWindow, last: LimitWindow) -> bool:
    if window.used_ratio is None or last.used_ratio is None:
        return window.used_ratio is not last.used_ratio or window.remaining != last.remaining
    return round(abs(window.used_ratio - last.used_ratio), 6) >= STEP


Said = Callable[[Sequence[LimitWindow]], None]
"""Takes the limits that an answer names."""
