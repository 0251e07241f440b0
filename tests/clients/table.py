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
NOT_RUN_MARK = "not run"
MAX_REASON = 150
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
        return "fails" not in self.cells.values()

    @property
    def key(self) -> tuple[str, str]:
        return self.client, self.way

    def add(self, case: CaseName, cell: str, note: str = "") -> None:
        self.cells[case] = cell
        if note:
            self.notes.append(f"{TITLES[case].lower()}: {_plain(note)}")

    def not_run(self, reason: str) -> Result:
        self.cells = dict.fromkeys(CASES, NOT_RUN_MARK)
        self.notes = [f"not run: {_plain(reason)}"]
        return self


def _plain(text: str) -> str:
    """One line without what a table or Markdown reads."""
    line = " ".join(text.split())
    return re.sub(r"[|`*_<>\[\]\\]", "", line)[:MAX_REASON]


def line(result: Result) -> str:
    cells = " | ".join(result.cells.get(case, "") for case in CASES)
    notes = "".join(f"\n    {note}" for note in result.notes)
    return f"{result.client} {result.version} | {result.way} | {cells}{notes}"


def rows_of_matrix() -> list[tuple[str, str, str]]:
    """Client, version and way of every row that the table must have, in its order."""
    run = [(client.name, client.version, way) for client in CLIENTS for way in WAYS]
    return run + [(each.name, each.version, way) for each in NOT_RUN for way in WAYS]


def read() -> dict[tuple[str, str], list[str]]:
    """The table's rows as cells, by client and way."""
    section = _SECTION.search(PAGE.read_text())
    assert section, f"{PAGE.name} has no section between {BEGIN} and {END}"
    lines = [text for text in section[0].splitlines() if text.startswith("|")][2:]
    rows = [[cell.strip() for cell in text.strip("|").split("|")] for text in lines]
    return {(row[0], row[2]): row for row in rows}


def write(results: Sequence[Result]) -> None:
    """Put these rows in; the others stay as they are, and rows that are no longer in the matrix go."""
    rows = read() | {result.key: _cells(result) for result in results}
    for each in NOT_RUN:
        for way in WAYS:
            reason = Result(each.name, each.version, way, "").not_run(each.reason)
            rows[each.name, way] = _cells(reason)
    ordered = [rows[name, way] for name, _, way in rows_of_matrix() if (name, way) in rows]
    text = "\n".join(["", *_table(ordered), "", ""])
    page = PAGE.read_text()
    PAGE.write_text(_SECTION.sub(lambda _: text, page))


def _cells(result: Result) -> list[str]:
    cells = [result.cells.get(case, "") for case in CASES]
    return [result.client, result.version, result.way, *cells, result.date or "–", "; ".join(result.notes)]


def _table(rows: Sequence[list[str]]) -> Iterator[str]:
    titles = ["Client", "Version", "As", *(TITLES[case] for case in CASES), "Run", "Note"]
    yield f"| {' | '.join(titles)} |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        yield f"| {' | '.join(row)} |"
