"""One line for each interception, for a terminal.

    14:03:22 alice   claude-sonnet-4-5    1.23k+45.6k>  512  $0.0123  0.8s 12.3s 2c ok       80 columns

On a narrow terminal, the longer parts are shortened first, and the client and the units are left out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime

from rich.cells import cell_len, set_cell_size

from aibridge_addon.telemetry.log.text import NOT_AVAILABLE, money, one_line, short_count

LABELLED_FROM = 132
"""Columns from which on the numbers have their units beside them."""
CLIENT_FROM = 100
"""Columns from which on the client has a place."""
UNBOUNDED = (20, 16, 40)
"""Columns of actor, client and model where a line does not go to a terminal. Longer ones are not shortened there."""
REASON_FROM = 72
"""Columns of a terminal that are not for the reason of a failure."""
MAX_NAME = 100
"""Characters of a name that a client or a provider chose."""
SMALLEST = 6
"""Columns that an actor, a client or a model keeps."""

RED, GREEN, DIM, RESET = "\x1b[31m", "\x1b[32m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Line:
    """What a line shows of an interception that has ended."""

    ended_at: datetime
    actor: str
    client: str
    provider: str
    model: str
    new_input: int
    """Tokens that the provider read anew: input that was not cached, and what was written to its cache."""
    cached: int
    output: int
    cost: float | None
    """US dollars. None: not known."""
    first_byte: float | None
    """Seconds. None: there was no answer."""
    seconds: float
    calls: int
    """Number of injected calls."""
    error: str | None
    """The error type, with the HTTP status. None: the interception completed."""
    reason: str = ""
    """Why a connection upstream failed, and to which address."""

    def text(self, width: int | None = None, *, colour: bool = False) -> str:
        """Return the line, at most `width` columns wide. None: it does not go to a terminal."""
        columns = sys.maxsize if width is None else width
        time = self.ended_at.astimezone().isoformat(timespec="seconds")[11:19]
        numbers = self._labelled() if columns >= LABELLED_FROM else [self._compact()]
        status = "ok"
        if self.error is not None:
            status = f"failed: {one_line(self.error, MAX_NAME)}"
            room = MAX_NAME if width is None else width - REASON_FROM
            if self.reason and room > 0:
                reason = one_line(self.reason, MAX_NAME)
                status += f": {reason if _cells(reason) <= room else set_cell_size(reason, room)}"
            if self.new_input + self.cached + self.output == 0:
                numbers = [f"{_seconds(self.seconds):>6}"]
        if width is None:
            body, end = " ".join((*map(_padded, self._parts(), UNBOUNDED), *numbers)), status
        else:
            fixed = sum(map(_cells, (time, *numbers, status))) + len(numbers) + 2
            body = " ".join((self._names(columns - fixed, columns), *numbers))
            room = max(width - len(time) - _cells(status) - 2, 0)
            body = body if _cells(body) <= room else _fit(body, room)
            end = _fit(status, max(width - len(time) - _cells(body) - 2, 0)).rstrip()
        if not colour:
            return f"{time} {body} {end}"
        if self.error is not None:
            return f"{RED}{time} {body} {end}{RESET}"
        return f"{DIM}{time}{RESET} {body} {GREEN}{end}{RESET}"

    def _parts(self) -> tuple[str, str, str]:
        names = (self.actor, self.client, self.provider, self.model or "-")
        actor, client, provider, model = (one_line(name, MAX_NAME) for name in names)
        return actor, client, f"{provider}/{model}"

    def _names(self, room: int, columns: int) -> str:
        parts, shares = list(self._parts()), [0.22, 0.18, 0.60]
        if columns < CLIENT_FROM:
            parts, shares = [parts[0], one_line(self.model or "-", MAX_NAME)], [0.3, 0.7]
        free = max(room - len(parts) + 1, 0)
        widths = [max(int(free * share), SMALLEST) for share in shares]
        widths[-1] = max(free - sum(widths[:-1]), SMALLEST)
        return " ".join(map(_fit, parts, widths))

    def _compact(self) -> str:
        tokens = f"{short_count(self.new_input):>5}+{short_count(self.cached):>5}>{short_count(self.output):>5}"
        calls = f"{self.calls}c" if self.calls else ""
        times = f"{_seconds(self.first_byte):>5} {_seconds(self.seconds):>5}"
        return f"{tokens} {_dollars(self.cost):>8} {times} {calls:>2}"

    def _labelled(self) -> list[str]:
        calls = "" if not self.calls else "1 call" if self.calls == 1 else f"{self.calls} calls"
        return [
            f"{short_count(self.new_input):>5} in",
            f"{short_count(self.cached):>5} cached",
            f"{short_count(self.output):>5} out",
            f"{_dollars(self.cost):>8}",
            f"{_seconds(self.first_byte):>5} first",
            f"{_seconds(self.seconds):>5} total",
            f"{calls:>8}",
        ]


def _dollars(cost: float | None) -> str:
    return NOT_AVAILABLE if cost is None else f"${money(cost)}" if cost < 10 else f"${money(cost, 2)}"


def _seconds(seconds: float | None) -> str:
    """Return a duration in at most five columns, as far as it is below 100 hours."""
    if seconds is None:
        return NOT_AVAILABLE
    if seconds < 99.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}"


def _cells(text: str) -> int:
    """Return the number of columns that a text takes."""
    return len(text) if text.isascii() and text.isprintable() else cell_len(text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _cells(text))


def _fit(text: str, width: int) -> str:
    """Return text in exactly so many columns. What is cut off is marked."""
    if _cells(text) <= width:
        return _padded(text, width)
    return set_cell_size(text, max(width - 1, 0)) + "…" if width else ""
