"""The results of the matrix, as a table in `docs/clients.md` between two comments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.clients.cases import CASES, TITLES, WAYS, CaseName, Way
from tests.clients.matrix import CLIENTS, NOT_RUN

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
BEGIN, END = "<!-- make clients: begin -->", "<!-- make clients: end -->"
OK, FAILS, NEVER, NONE, NOT_RUN_HERE = "ok", "fails", "never", "–", "not run"
MEANINGS = (OK, FAILS, NEVER, NONE, NOT_RUN_HERE)
MAX_ROW = 200
"""Characters of a row, as `tests/test_docs.py` allows them; the note is cut."""
TITLE_ROW = ("Client", "Version", "As", *(TITLES[case] for case in CASES), "Date", "Note")
_SECTION = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)


@dataclass
class Result:
    """One row: a client, as a client of the proxy or of the gateway."""

    client: str
    version: str
    way: Way
    date: str
    cells: dict[CaseName, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return FAILS not in self.cells.values()

    def add(self, case: CaseName, cell: str, note: str = "") -> None:
        self.cells[case] = cell
        if note:
            self.notes.append(f"{TITLES[case].lower()}: {_plain(note)}")

    def not_run(self, reason: str) -> Result:
        self.cells = dict.fromkeys(CASES, NOT_RUN_HERE)
        self.notes = [_plain(reason)]
        return self

    @property
    def row(self) -> list[str]:
        cells = [self.cells.get(case, NOT_RUN_HERE) for case in CASES]
        row = [self.client, self.version, self.way, *cells, self.date]
        left = MAX_ROW - len(_line([*row, ""]))
        return [*row, "; ".join(self.notes)[:left].strip()]

    def __str__(self) -> str:
        cells = " | ".join(self.cells.get(case, "") for case in CASES)
        return f"{self.client} {self.version} | {self.way} | {cells}" + "".join(f"\n    {note}" for note in self.notes)


def _plain(text: str) -> str:
    """One line, without what a table or Markdown reads."""
    return " ".join(re.sub(r"[|`*<>\[\]\\]", "", text).split())


def _line(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def rows_of_matrix() -> list[tuple[str, str, str]]:
    """Client, version and way of every row that the table must have, in its order."""
    return [(each.name, each.version, way) for each in (*CLIENTS, *NOT_RUN) for way in WAYS]


def read(page: str) -> list[list[str]]:
    """Return the rows of the table on a page, as cells."""
    section = _SECTION.search(page)
    if section is None:
        raise ValueError(f"the page has no section between {BEGIN} and {END}")
    lines = [text for text in section[0].splitlines() if text.startswith("|")][2:]
    return [[cell.strip() for cell in text.strip("|").split("|")] for text in lines]


def with_results(page: str, results: Sequence[Result]) -> str:
    """Return the page with these rows; the others stay, and rows that have left the matrix go."""
    unrun = [Result(each.name, each.version, way, NONE).not_run(each.reason) for each in NOT_RUN for way in WAYS]
    rows = {(row[0], row[2]): row for row in [*read(page), *(result.row for result in (*unrun, *results))]}
    ordered = [rows[name, way] for name, _, way in rows_of_matrix() if (name, way) in rows]
    return _SECTION.sub(lambda _: "\n".join(["", *_table(ordered), "", ""]), page)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _line(TITLE_ROW)
    yield "|" + "---|" * len(TITLE_ROW)
    yield from map(_line, rows)
