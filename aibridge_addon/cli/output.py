"""How commands print rows: as a table, as JSON or as CSV."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from aibridge_addon.telemetry.log.text import count, local, money, one_line, short_count, short_money
from aibridge_addon.wire.printable import UNSAFE, printable_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = Mapping[str, Any]
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""First characters of text that spreadsheets take for a formula, some also after spaces and line breaks."""
NAME_WIDTH = 18
"""Minimum number of characters for the names of a row, before columns are left out."""
WIDE = 120
"""Columns of a terminal from which on names are cut to a fifth of it before columns are left out."""
MAX_NAME = 200
"""Characters of a name. Further ones are counted."""
PART = "part"
"""Key of a row that is a part of the row above it."""
BAR_WIDTH = 8
MAX_BAR_WIDTH = 40


def add_options(command: argparse.ArgumentParser) -> None:
    """Add `--json` and `--csv`."""
    formats = command.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print JSON")
    formats.add_argument("--csv", action="store_true", help="print CSV")


def write_json(document: Any) -> None:
    write(printable_json(json.dumps(document, indent=2, ensure_ascii=False)) + "\n")


def compact(value: Any) -> str:
    """Return JSON on one line, or the empty text for what is not known."""
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def write_csv(rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Write rows with a header. Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
        write(stream.getvalue())
        stream.seek(0)
        stream.truncate()
    write(stream.getvalue())


def _cell(value: object) -> object:
    if isinstance(value, str):
        shown = UNSAFE.sub("\ufffd", value)
        return f"'{shown}" if shown.lstrip(" \t\r\n\ufffd").startswith(FORMULA) else shown
    return value


def write(text: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout.write(text)


# --- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Numbers have a short form, which is used where the long ones do not fit."""

    title: str
    """With a line break where it may be broken."""
    cell: Callable[[Row], str]
    short: Callable[[Row], str] | None = None
    kind: Literal["name", "time", "number"] = "number"
    """Names are cut where a line is too long."""
    wide_only: bool = False
    """Left out where the table does not fit otherwise."""


def count_column(title: str, column: str, *, wide_only: bool = False) -> Column:
    return Column(title, lambda row: count(row[column]), lambda row: short_count(row[column]), wide_only=wide_only)


def token_columns(*, wide_only: bool = False) -> list[Column]:
    """Return a column for each kind of token. They are never added up."""
    return [
        count_column("New\ninput", "input_tokens", wide_only=wide_only),
        count_column("Cache\nread", "cache_read_input_tokens", wide_only=wide_only),
        count_column("Cache\nwrite", "cache_write_input_tokens", wide_only=wide_only),
        count_column("Output", "output_tokens", wide_only=wide_only),
    ]


def cost_columns(totals: Row, rows: Sequence[Row]) -> list[Column]:
    """Return a column for each payer with an amount."""
    payers = (
        ("API\nUSD", "api_cost_usd"),
        ("Subscr.\nUSD", "subscription_cost_usd"),
        ("Other\nUSD", "other_cost_usd"),
    )
    shown = [payer for payer in payers if totals[payer[1]] != 0] or payers[:1]
    return [amount_column(title, column, rows) for title, column in shown]


def amount_column(title: str, column: str, rows: Sequence[Row]) -> Column:
    """Return a column of US dollars."""
    digits = 2 if max((row[column] or 0.0 for row in rows), default=0.0) >= 1000 else 4
    return Column(title, lambda row: money(row[column], digits), lambda row: short_money(row[column]))


def time_column(title: str, column: str, zone: ZoneInfo) -> Column:
    return Column(
        title,
        lambda row: local(row.get(column), zone, "%Y-%m-%d %H:%M"),
        lambda row: local(row.get(column), zone, "%m-%d %H:%M"),
        kind="time",
    )


def console() -> Console:
    """Create what prints to stdout. A terminal's width is used; without a terminal, COLUMNS or 80."""
    from rich.console import Console

    class Printer(Console):
        def on_broken_pipe(self) -> None:
            raise  # the command ends as for all other output

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Printer(highlight=False, emoji=False, markup=False, soft_wrap=False)


def write_table(
    columns: Sequence[Column],
    rows: Sequence[Row],
    totals: Row | None,
    *,
    title: str,
    notes: Sequence[str] = (),
    bar: Callable[[Row], float] | None = None,
    whole: float | None = None,
) -> None:
    """Write a table that fits the terminal.

    Args:
        bar: The length of each row's bar, which is drawn if there is room.
        whole: The longest bar. None: that of the row with the largest one.
    """
    target = console()
    target.print(title, style="bold")
    target.print()
    shown = table(columns, rows, totals, width=target.width, bar=bar, whole=whole)
    target.print(shown)
    if notes:
        target.print()
    for note in notes:
        target.print(note, style="dim")


def table(
    columns: Sequence[Column],
    rows: Sequence[Row],
    totals: Row | None,
    *,
    width: int,
    bar: Callable[[Row], float] | None = None,
    whole: float | None = None,
    head: str = "",
    style: Callable[[Row], str] | None = None,
) -> Table:
    """Return a table of this width, with its arguments as in `write_table`.

    Args:
        head: The style of the line with the titles. If there is one, no line is drawn below them.
        style: Each row's style.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    fitted = _fit(columns, [*rows, totals] if totals is not None else rows, width)
    if head:
        made = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style=head)
    else:
        made = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, header_style="bold")
    lengths = [bar(row) for row in rows] if bar is not None else []
    longest = whole or max(lengths, default=0)
    room = min(fitted.left - 1, MAX_BAR_WIDTH)
    with_bar = longest > 0 and (whole or len(rows) > 1) and room >= BAR_WIDTH
    widths = _filled(fitted, room + 1 if with_bar else 0) if head else fitted.widths
    for column, size in zip(fitted.columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.kind == "number" else "left"
        made.add_column(
            Text(column.title), justify=justify, no_wrap=True, overflow="ellipsis", vertical="bottom", width=size
        )
    if with_bar:
        made.add_column("", no_wrap=True, width=room if head else None)
    for index, values in enumerate(fitted.cells):
        line = [Text(value) for value in values]
        is_total = index == len(rows)
        if with_bar and not is_total:
            line.append(Text(_bar(lengths[index] / longest, room), style="cyan"))
        if is_total:
            made.add_section()
        plain = style(rows[index]) if style is not None and not is_total else ""
        made.add_row(*line, style="bold" if is_total else "dim" if rows[index].get(PART) else plain)
    return made


@dataclass(frozen=True, slots=True)
class _Fitted:
    columns: Sequence[Column]
    widths: Sequence[int]
    cells: Sequence[Sequence[str]]
    left: int
    """Characters of a line that are not used."""


def _fit(columns: Sequence[Column], rows: Sequence[Row], width: int) -> _Fitted:
    """Choose long or short numbers, which columns are shown, and how much of names."""
    wide, wide_short, narrow, narrow_short = (
        _measured([column for column in columns if is_wide or not column.wide_only], rows, width, short=short)
        for is_wide in (True, False)
        for short in (False, True)
    )
    in_turn = (
        *(wide, wide_short, *([_cut(wide_short, width // 5)] if width >= WIDE else [])),
        *(narrow, narrow_short, _cut(wide_short, NAME_WIDTH), _cut(narrow_short, NAME_WIDTH)),
    )
    return next((fitted for fitted in in_turn if fitted.left >= 0), _cut(narrow_short, 4))


def _filled(fitted: _Fitted, used: int) -> Sequence[int]:
    """Return widths that fill the line: the last column with names takes what is left."""
    widths = list(fitted.widths)
    last = max(index for index, column in enumerate(fitted.columns) if column.kind == "name")
    widths[last] += max(0, fitted.left - used)
    return widths


def _measured(columns: Sequence[Column], rows: Sequence[Row], width: int, *, short: bool) -> _Fitted:
    from rich.cells import cell_len

    cells = [[(column.short if short and column.short else column.cell)(row) for column in columns] for row in rows]
    widths = [
        max(map(cell_len, [*column.title.split("\n"), *(line[index] for line in cells)]))
        for index, column in enumerate(columns)
    ]
    return _Fitted(columns, widths, cells, width - sum(widths) - len(widths) + 1)


def _cut(fitted: _Fitted, smallest: int) -> _Fitted:
    """Take characters from the longest names, one after the other."""
    widths, left = list(fitted.widths), fitted.left
    names = [index for index, column in enumerate(fitted.columns) if column.kind == "name"]
    while left < 0 and names:
        longest = max(names, key=lambda index: widths[index])
        if widths[longest] <= smallest:
            break
        widths[longest] -= 1
        left += 1
    return replace(fitted, widths=widths, left=left)


def _bar(part: float, width: int) -> str:
    eighths = round(part * width * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[rest] if eighths else "▏" if part > 0 else ""


def name(value: object) -> str:
    """Return a name as a table shows it, in one line. Each character of a long one would have to be measured."""
    return "–" if value is None or value == "" else one_line(str(value), MAX_NAME)
