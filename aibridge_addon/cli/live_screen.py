"""What `aibridge live` shows: a snapshot as lines that fit a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aibridge_addon.cli import output
from aibridge_addon.cli.output import Column, Row, name
from aibridge_addon.recording.live import RECENT, Snapshot, per_hour
from aibridge_addon.recording.reports import Usage
from aibridge_addon.telemetry.log.text import count, duration, local, money, one_line, short_count, short_money

HEAD = "bold reverse"
WIDE = 120
"""Columns from which errors and limits of plans stand side by side."""
GAP = 2
ROWS = 20
"""Rows of each block where there is no height to fit."""
LEAST = 10
"""Lines below which only the first lines are shown."""
PAYERS = (("API", "api"), ("subscr.", "subscription"), ("other", ""))


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the database cannot be read."""

    text: str
    since: datetime


@dataclass(frozen=True, slots=True)
class View:
    """What is known at a moment."""

    database: str
    zone: ZoneInfo
    snapshot: Snapshot | None = None
    """The last one that could be read."""
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class _Block:
    """A part of the screen: one line of titles, and rows."""

    wanted: int
    """Number of rows that there are."""
    draw: Callable[[int], RenderableType]
    """Takes the number of rows that there is room for."""


def draw(view: View, now: datetime, width: int, height: int | None) -> Group:
    """Return the lines of a screen. `height`: None for as many as there are, up to `ROWS` of each kind."""
    lines: list[RenderableType] = [*_top(view, now, width, is_screen=height is not None)[:height]]
    if view.snapshot is None:
        return Group(*lines)
    blocks = _blocks(view.snapshot, view.zone, now, width)
    room = _shares(blocks, None if height is None else height - len(lines))
    for block, rows in zip(blocks, room, strict=True):
        if rows is not None:
            lines += [*([Text()] if height is None else []), block.draw(rows)]
    return Group(*lines)


def _shares(blocks: Sequence[_Block], height: int | None) -> list[int | None]:
    """Return how many rows each block gets, in turn. None: there is no room for it, not even for its titles."""
    if height is None:
        return [min(block.wanted, ROWS) for block in blocks]
    shares: list[int | None] = [None] * len(blocks)
    for index, block in enumerate(blocks):  # titles with one row, or none
        needed = 1 + min(block.wanted, 1)
        if height >= needed:
            shares[index], height = needed - 1, height - needed
    while height > 0:
        growing = [i for i, block in enumerate(blocks) if (share := shares[i]) is not None and share < block.wanted]
        if not growing:
            break
        for index in growing[:height]:
            shares[index] = (shares[index] or 0) + 1
        height -= len(growing[:height])
    return shares


# --- first lines -----------------------------------------------------------------------------------------------------


def _top(view: View, now: datetime, width: int, *, is_screen: bool) -> list[Text]:
    clock = now.astimezone(view.zone).strftime("%Y-%m-%d %H:%M:%S ") + view.zone.key
    lines = [_apart("aibridge live (q: end)" if is_screen else "aibridge live", one_line(view.database), clock, width)]
    if view.problem is not None:
        since = view.problem.since.astimezone(view.zone).strftime("%H:%M:%S")
        lines.append(
            _line(f"No database since {since}, trying again: {one_line(view.problem.text)}", width, "bold red")
        )
    if view.snapshot is not None:
        if view.problem is not None:
            read = view.snapshot.at.astimezone(view.zone).strftime("%H:%M:%S")
            lines.append(_line(f"What follows was read at {read}.", width, "red"))
        lines += [_line(_today(view.snapshot), width), _rate(view.snapshot, width)]
    elif view.problem is None:
        lines.append(_line("Reading…", width, "dim"))
    return lines


def _apart(left: str, middle: str, right: str, width: int) -> Text:
    room = width - len(left) - len(right) - 4
    line = Text(left, style="bold")
    if room >= LEAST:
        shown = Text(middle, style="dim", no_wrap=True)
        shown.truncate(room, overflow="ellipsis", pad=True)
        line.append("  ").append_text(shown)
    else:
        line.append(" " * max(1, width - len(left) - len(right)))
    line.append("  " if room >= LEAST else "").append(right)
    line.truncate(width, overflow="ellipsis")
    return line


def _line(text: str, width: int, style: str = "") -> Text:
    line = Text(text, style=style, no_wrap=True)
    line.truncate(width, overflow="ellipsis")
    return line


def _today(found: Snapshot) -> str:
    today = found.today
    parts = [f"{count(today.interceptions)} requests", *([f"{count(today.failed)} failed"] if today.failed else [])]
    parts += _amounts(today)
    unpriced = sum(today.unpriced.values())
    return "Today  " + ", ".join([*parts, *([f"{count(unpriced)} unpriced"] if unpriced else [])])


def _rate(found: Snapshot, width: int) -> Text:
    hour = per_hour(found.recent)
    tokens = (
        ("in", hour.input_tokens),
        ("cached", hour.cache_read_input_tokens + hour.cache_write_input_tokens),
        ("out", hour.output_tokens),
    )
    said = ", ".join([*_amounts(hour), *(f"{kind} {short_count(number)}" for kind, number in tokens)])
    line, why = f"Per hour  {said}", f" (by the last {RECENT.seconds // 60} min)"
    return _line(line + why if len(line + why) <= width else line, width)


def _amounts(usage: Usage) -> list[str]:
    """Return what each payer pays, as far as it is more than nothing."""
    shown = [(title, usage.cost(billing)) for title, billing in PAYERS]
    return [f"{title} {_dollars(cost)}" for title, cost in shown if cost != 0] or ["0.00 USD"]


def _dollars(cost: float | None) -> str:
    return f"{money(cost, 2)} USD"


# --- blocks ----------------------------------------------------------------------------------------------------------


def _blocks(found: Snapshot, zone: ZoneInfo, now: datetime, width: int) -> list[_Block]:
    half = (width - GAP) // 2
    running = _Block(len(found.running), lambda rows: _running(found, now, width, rows))
    ended = _Block(len(found.ended), lambda rows: _ended(found, zone, width, rows))
    spend = _Block(
        max(len(found.models), len(found.actors)),
        lambda rows: _beside(
            _spend("Today by model", found.models, half, rows), _spend("Today by user", found.actors, half, rows), half
        ),
    )
    errors = _Block(len(found.errors), lambda rows: _errors(found, zone, half if beside else width, rows))
    limits = _Block(len(found.limits), lambda rows: _limits(found, zone, half if beside else width, rows))
    beside = width >= WIDE and bool(found.errors) and bool(found.limits)
    if beside:
        both = _Block(
            max(errors.wanted, limits.wanted), lambda rows: _beside(errors.draw(rows), limits.draw(rows), half)
        )
        return [running, ended, spend, both]
    return [running, ended, spend, *(block for block in (errors, limits) if block.wanted)]


def _beside(left: RenderableType, right: RenderableType, width: int) -> Table:
    grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    grid.add_column(width=width)
    grid.add_column(width=width)
    grid.add_row(left, right)
    return grid


def _title(title: str, rows: int, wanted: int) -> str:
    """Return a title that says how many rows are not shown."""
    return title if rows >= wanted else f"{title} (+{count(wanted - rows)})"


def _text(title: str, column: str, *, wide_only: bool = False) -> Column:
    return Column(title, lambda row: name(row[column]), kind="name", wide_only=wide_only)


def _amount(title: str, column: str, *, wide_only: bool = False) -> Column:
    return Column(title, lambda row: money(row[column]), lambda row: short_money(row[column]), wide_only=wide_only)


def _tokens() -> list[Column]:
    """Return columns of tokens, which are empty before the end of the first turn."""

    def column(title: str, key: str) -> Column:
        return Column(title, lambda row: short_count(row[key]) if row["turns"] else "")

    return [column("Input", "input_tokens"), column("Cached", "cached"), column("Output", "output_tokens")]


def _number(title: str, column: str, *, wide_only: bool = False) -> Column:
    def short(row: Row) -> str:
        return short_count(row[column])

    return Column(title, short if not wide_only else lambda row: count(row[column]), short, wide_only=wide_only)


def _with_cached(row: Row) -> Row:
    return {**row, "cached": row["cache_read_input_tokens"] + row["cache_write_input_tokens"]}


def _running(found: Snapshot, now: datetime, width: int, rows: int) -> Table:
    def age(row: Row) -> str:
        seconds = max(0.0, (now - datetime.fromisoformat(row["started_at"])).total_seconds())
        return duration(seconds) if seconds >= 60 else f"{int(seconds)} s"

    def cost(row: Row) -> str:
        return money(row["cost_usd"]) if row["turns"] else ""

    title = _title(f"In flight: {count(found.in_flight)}", rows, found.in_flight)
    columns = [
        _text(title, "initiator_id"),
        _text("Client", "client", wide_only=True),
        _text("Provider", "provider_name", wide_only=True),
        _text("Model", "model"),
        _number("Turns", "turns"),
        *_tokens(),
        Column("USD", cost),
        Column("Age", lambda row: f"{age(row)}{' ?' if row['silent'] else ''}"),
    ]
    shown = [_with_cached(row) for row in found.running[:rows]]
    return output.table(columns, shown, None, width=width, head=HEAD, style=lambda row: "dim" if row["silent"] else "")


def _ended(found: Snapshot, zone: ZoneInfo, width: int, rows: int) -> Table:
    today = local(found.at.isoformat(), zone, "%Y-%m-%d")

    def at(row: Row) -> str:
        is_today = local(row["ended_at"], zone, "%Y-%m-%d") == today
        return local(row["ended_at"], zone, "%H:%M:%S" if is_today else "%m-%d %H:%M")

    def lasted(row: Row) -> str:
        passed = datetime.fromisoformat(row["ended_at"]) - datetime.fromisoformat(row["started_at"])
        return duration(max(0.0, passed.total_seconds()))

    def first(row: Row) -> str:
        return "" if row["time_to_first_byte_ms"] is None else duration(row["time_to_first_byte_ms"] / 1000)

    columns = [
        Column("Ended", at, kind="time"),
        _text("User", "initiator_id"),
        _text("Client", "client", wide_only=True),
        _text("Provider", "provider_name", wide_only=True),
        _text("Model", "model"),
        *_tokens(),
        Column("USD", lambda row: money(row["cost_usd"]) if row["turns"] else ""),
        Column("First byte", first, wide_only=True),
        Column("Took", lasted),
        Column("Status", _status, kind="name"),
    ]
    shown = [_with_cached(row) for row in found.ended[:rows]]
    return output.table(
        columns, shown, None, width=width, head=HEAD, style=lambda row: "red" if row["status"] == "failed" else ""
    )


def _status(row: Row) -> str:
    if row["status"] != "failed":
        return name(row["status"])
    return _error(row)


def _error(row: Row) -> str:
    said = [str(row["http_status"] or ""), name(row["error_type"]) if row["error_type"] else ""]
    return " ".join(filter(None, said)) or "failed"


def _spend(title: str, found: Mapping[str, Usage], width: int, rows: int) -> Table:
    def order(item: tuple[str, Usage]) -> tuple[float, int, str]:
        return -(item[1].cost() or 0.0), -item[1].output_tokens, str(item[0])

    listed = [{"name": key, **usage.columns()} for key, usage in sorted(found.items(), key=order)]
    payers = [
        (title, column)
        for title, column in (
            ("API USD", "api_cost_usd"),
            ("Subscr.", "subscription_cost_usd"),
            ("Other", "other_cost_usd"),
        )
        if any(row[column] != 0 for row in listed)
    ]
    columns = [
        _text(_title(title, rows, len(listed)), "name"),
        _number("Requests", "interceptions", wide_only=True),
        _number("Output", "output_tokens", wide_only=True),
        *(_amount(title, column) for title, column in payers or [("USD", "cost_usd")]),
    ]
    return output.table(columns, listed[:rows], None, width=width, head=HEAD)


def _errors(found: Snapshot, zone: ZoneInfo, width: int, rows: int) -> Table:
    columns = [
        Column(_title("Errors of the last hour", rows, len(found.errors)), _error, kind="name"),
        _text("Provider", "provider_name"),
        _number("Failed", "failed"),
        Column("Last", lambda row: local(row["last_at"], zone, "%H:%M:%S"), kind="time"),
    ]
    return output.table(columns, found.errors[:rows], None, width=width, head=HEAD, style=lambda _: "red")


def _limits(found: Snapshot, zone: ZoneInfo, width: int, rows: int) -> Table:
    columns = [
        _text(_title("Limits of plans", rows, len(found.limits)), "provider_name"),
        _text("Credential", "credential_hint", wide_only=True),
        _text("Window", "window_name"),
        Column("Used", lambda row: "" if row["used_ratio"] is None else f"{row['used_ratio']:.0%}"),
        Column("Left", lambda row: "" if row["remaining"] is None else short_count(round(row["remaining"]))),
        Column("Resets", lambda row: local(row["resets_at"], zone, "%m-%d %H:%M"), kind="time"),
    ]
    return output.table(
        columns,
        found.limits[:rows],
        None,
        width=width,
        head=HEAD,
        bar=lambda row: min(1.0, row["used_ratio"] or 0.0),
        whole=1.0,
        style=lambda row: "red" if (row["used_ratio"] or 0.0) >= 0.9 else "",
    )
