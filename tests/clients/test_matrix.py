"""The matrix of clients and its table in the documentation. The clients themselves run with `make clients`."""

from __future__ import annotations

import pytest

from tests.clients import table
from tests.clients.cases import CASES, WAYS
from tests.clients.matrix import CLIENTS, NOT_RUN
from tests.clients.table import BEGIN, END, MEANINGS, OK, Result

ROWS = table.read(table.PAGE.read_text())


def test_the_documented_rows_are_those_of_the_matrix() -> None:
    assert [tuple(row[:3]) for row in ROWS] == table.rows_of_matrix()


def test_every_documented_cell_has_a_known_meaning() -> None:
    assert {cell for row in ROWS for cell in row[3 : 3 + len(CASES)]} <= set(MEANINGS)


def test_every_row_that_is_not_well_says_why() -> None:
    cells = slice(3, 3 + len(CASES))
    silent = [row for row in ROWS if {table.FAILS, table.NOT_RUN_HERE} & set(row[cells]) and not row[-1]]
    assert silent == []


def test_names_are_unique() -> None:
    names = [each.name for each in (*CLIENTS, *NOT_RUN)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_every_version_is_pinned(client: object) -> None:
    versions = client.install.versions.values()  # type: ignore[attr-defined]
    assert versions and all(version[0].isdigit() for version in versions)


def test_new_results_replace_their_rows_and_leave_the_others() -> None:
    first, second = CLIENTS[:2]
    old = [Result(each.name, "0", way, "2026-01-01", dict.fromkeys(CASES, OK)) for each in CLIENTS[:2] for way in WAYS]
    gone = Result("A client that has left", "1", "proxy", "2026-01-01", dict.fromkeys(CASES, OK))
    page = table.with_results(f"before\n{BEGIN}\n{END}\nafter\n", [*old, gone])
    new = Result(second.name, second.version, "proxy", "2026-02-02")
    new.add("hello", table.FAILS, "tokens: [1] instead\nof | 2")
    page = table.with_results(page, [new])
    rows = table.read(page)[:4]
    assert [row[:3] for row in rows] == [
        [first.name, "0", "proxy"],
        [first.name, "0", "gateway"],
        [second.name, second.version, "proxy"],
        [second.name, "0", "gateway"],
    ]
    assert rows[2][3:] == [table.FAILS, *["not run"] * 3, "2026-02-02", "hello: tokens: 1 instead of 2"]
    assert "A client that has left" not in page
    assert page.startswith(f"before\n{BEGIN}\n") and page.endswith(f"{END}\nafter\n")


def test_a_page_without_the_comments_is_refused() -> None:
    with pytest.raises(ValueError, match="has no section"):
        table.with_results("# Clients\n", [])


def test_a_long_note_is_cut() -> None:
    result = Result("client", "1", "proxy", "2026-01-01")
    result.add("hello", table.FAILS, "word " * 100)
    (row,) = [text for text in table._table([result.row]) if "client" in text]
    assert len(row) <= table.MAX_ROW
