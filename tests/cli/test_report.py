"""`aibridge report`: rows as tables, JSON and CSV, and the period that they are of."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from aibridge_addon import cli
from aibridge_addon.records import CostSource, Record
from tests.support.databases import Database, SqliteDatabase, write
from tests.support.examples import ENDED, STARTED, TOKENS, TOOL, uid

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
REPORTS = ("daily", "weekly", "monthly", "sessions", "models", "users", "tools", "clients", "providers")
COUNTS: dict[str, Any] = {
    "input_tokens": 1,
    "cache_read_input_tokens": 2,
    "cache_write_input_tokens": 3,
    "output_tokens": 4,
}


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def request(
    name: str,
    at: datetime = AT,
    *,
    cost: float | None = 0.5,
    source: CostSource = "price_list",
    model: str = "claude-1",
    **more: Any,
) -> list[Record]:
    id = uid(name)
    tokens = replace(TOKENS, id=uid(f"t-{name}"), interception_id=id, created_at=at, model=model, kind="answer")
    return [
        replace(STARTED, id=id, started_at=at, model=model, **more),
        replace(tokens, cost_usd=cost, cost_source=None if cost is None else source, **COUNTS),
        replace(TOOL, id=uid(f"c-{name}"), interception_id=id, created_at=at),
        replace(ENDED, interception_id=id, ended_at=at, status="completed"),
    ]


class Printed:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        return json.loads(self.out)

    def csv(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.out)))


def report(capsys: pytest.CaptureFixture[str], database: Database, *arguments: str) -> Printed:
    capsys.readouterr()
    zone = [] if "--timezone" in arguments else ["--timezone", "UTC"]
    code = cli.main(["report", *arguments, *zone, "--database", database.url])
    printed = capsys.readouterr()
    return Printed(code, printed.out, printed.err)


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteDatabase:
    return SqliteDatabase(tmp_path / "aibridge.db")


def test_json_has_rows_totals_and_the_period(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    write(database, *request("i1"), *request("i2", cost=None, billing="subscription"))
    options = ("--since", "2026-11-01", "--until", "2026-11-01", "--timezone", "Asia/Kolkata", "--json")
    printed = report(capsys, database, "daily", *options)
    sums = {
        "interceptions": 2,
        "failed": 0,
        "input_tokens": 2,
        "cache_read_input_tokens": 4,
        "cache_write_input_tokens": 6,
        "output_tokens": 8,
        "cost_usd": 0.5,
        "api_cost_usd": 0.5,
        "subscription_cost_usd": None,
        "other_cost_usd": 0.0,
        "unpriced": 1,
    }
    found = printed.json()
    assert "p%40ss" not in found.pop("database")
    assert found == {
        "rows": [{"date": "2026-11-01", **sums}],
        "totals": sums,
        "timezone": "Asia/Kolkata",
        "since": "2026-11-01",
        "until": "2026-11-01",
    }
    assert printed.code == 0
    assert printed.err.startswith("database: ")


@pytest.mark.parametrize("kind", REPORTS)
def test_json_csv_and_table_have_the_same_rows(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    write(sqlite, *request("i1"), *request("i2", model="gpt-5", initiator_id="bob", client_session_id="s2"))
    rows = report(capsys, sqlite, kind, "--json").json()["rows"]
    assert rows
    assert [list(row) for row in report(capsys, sqlite, kind, "--csv").csv()] == [list(row) for row in rows]
    assert "time zone UTC" in report(capsys, sqlite, kind).out


@pytest.mark.parametrize(
    ("kind", "column", "values"),
    [
        ("daily", "date", ["2026-11-01"]),
        ("weekly", "week", ["2026-10-26"]),
        ("monthly", "month", ["2026-11"]),
        ("sessions", "session_id", ["s1"]),
        ("models", "model", ["gpt-5", "claude-1"]),
        ("users", "initiator_id", ["bob", "ada"]),
        ("clients", "client", ["Claude Code"]),
        ("providers", "provider_name", ["anthropic-eu"]),
        ("tools", "tool", ["Read"]),
    ],
)
def test_each_report_has_its_rows(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str], kind: str, column: str, values: list[str]
) -> None:
    write(sqlite, *request("i1"), *request("i2", model="gpt-5", cost=2.0, initiator_id="bob"))
    rows = report(capsys, sqlite, kind, "--json").json()["rows"]
    assert list(dict.fromkeys(row[column] for row in rows)) == values


def test_a_breakdown_has_the_models_of_each_row(sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    write(sqlite, *request("i1"), *request("i2", model="gpt-5", cost=2.0))
    (row,) = report(capsys, sqlite, "daily", "--breakdown", "--json").json()["rows"]
    assert [(part["model"], part["cost_usd"]) for part in row["breakdown"]] == [("gpt-5", 2.0), ("claude-1", 0.5)]
    assert row["cost_usd"] == 2.5
    flat = report(capsys, sqlite, "daily", "--breakdown", "--csv").csv()
    assert [(part["date"], part["model"], part["cost_usd"]) for part in flat] == [
        ("2026-11-01", "gpt-5", "2.0"),
        ("2026-11-01", "claude-1", "0.5"),
    ]
    assert "  gpt-5" in report(capsys, sqlite, "daily", "--breakdown").out


def test_rows_are_split_by_further_columns(sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    write(sqlite, *request("i1", project="/a"), *request("i2", project="/b", initiator_id="bob"))
    rows = report(capsys, sqlite, "daily", "--by", "project,user", "--json").json()["rows"]
    assert [(row["date"], row["project"], row["initiator_id"]) for row in rows] == [
        ("2026-11-01", "/a", "ada"),
        ("2026-11-01", "/b", "bob"),
    ]


def test_csv_has_no_formula_and_no_control_character(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, actor in enumerate(('=HYPERLINK("x")', "+1", "-1", "@x", "a\x1b[31m")):
        write(sqlite, *request(f"i{number}", initiator_id=actor))
    names = {row["initiator_id"] for row in report(capsys, sqlite, "users", "--csv").csv()}
    assert names == {'\'=HYPERLINK("x")', "'+1", "'-1", "'@x", "a\ufffd[31m"}


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
def test_no_name_controls_the_terminal(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str], form: tuple[str, ...]
) -> None:
    name = "[bold]x[/bold] \x1b[2J\x9b\u202e\u200b :smile:"
    write(sqlite, *request("i1", initiator_id=name))
    out = report(capsys, sqlite, "users", *form).out
    assert not set(out) & set("\x1b\x9b\u202e\u200b")
    assert "[bold]x[/bold]" in out and ":smile:" in out
    if form:
        assert json.loads(out)["rows"][0]["initiator_id"] == name


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("kind", REPORTS)
def test_a_table_fits_the_terminal(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for number in range(40):
        more: dict[str, Any] = {"billing": ("api", "subscription", None)[number % 3], "client": "界" * 30}
        more |= {"initiator_id": f"user-{number}@a-very-long-domain.example", "client_session_id": f"{number}" * 40}
        cost = None if number == 0 else 10.0 ** (number % 9)
        write(sqlite, *request(f"i{number}", model=f"model-{number}-" + "m" * 60, cost=cost, **more))
    lines = report(capsys, sqlite, kind).out.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "model-39-m" in "".join(lines) or kind != "models"


def test_an_empty_database_and_a_period_without_usage_say_so(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    write(sqlite)
    for kind in REPORTS:
        printed = report(capsys, sqlite, kind)
        assert (printed.code, "There is nothing to show" in printed.out) == (0, True)
        assert report(capsys, sqlite, kind, "--json").json()["rows"] == []
        assert report(capsys, sqlite, kind, "--csv").out.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--since", "2026-11-01"), 1),
        (("--since", "20261101", "--until", "20261101"), 1),
        (("--since", "2026-11-02"), 0),
        (("--until", "2026-10-31"), 0),
        (("--since", "2026-11-01T12:00", "--until", "2026-11-01T12:00:00Z"), 1),
        (("--since", "2026-11-01T12:00:00.000001"), 0),
        (("--until", "2026-11-01T11:59"), 0),
        (("--until", "2026-11-01T12:59:59+01:00"), 0),
        (("--since", "2026-11-01T13:00", "--timezone", "Europe/Berlin"), 1),
        (("--since", "2026-11-02", "--timezone", "Pacific/Auckland"), 1),
    ],
)
def test_both_ends_of_a_period_belong_to_it(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], expected: int
) -> None:
    write(sqlite, *request("i1"))
    assert report(capsys, sqlite, "models", "--json", *options).json()["totals"]["interceptions"] == expected


@pytest.mark.parametrize(
    "options",
    [
        ("--since", "yesterday"),
        ("--until", "2026-13-01"),
        ("--until", "9999-12-31"),
        ("--since", "0001-01-01T00:00"),
        ("--since", "2026-11-02", "--until", "2026-11-01"),
        ("--timezone", "Mars/Olympus"),
        ("--timezone", "../../etc/passwd"),
        ("--by", "tokens"),
    ],
    ids=" ".join,
)
def test_wrong_options_end_with_code_2(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    write(sqlite, *request("i1"))
    if options[1] in ("9999-12-31", "0001-01-01T00:00"):
        options = (*options, "--timezone", "Pacific/Auckland" if options[0] == "--since" else "America/New_York")
    printed = report(capsys, sqlite, *options)
    assert (printed.code, printed.out) == (2, "")
    assert printed.err.startswith(("--since: found", "--until: found", "--timezone: found", "--by: found"))


@pytest.mark.parametrize("kind", ["report", "sessions", "tokens"])
def test_a_database_without_tables_says_what_to_do(
    database: Database, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    if isinstance(database, SqliteDatabase):
        database.path.touch()
    arguments = [kind, "list"] if kind == "tokens" else [kind]
    assert cli.main([*arguments, "--database", database.url]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "start the bridge once, which migrates it" in printed.err and "LINE" not in printed.err


def test_a_database_that_is_not_there_ends_with_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = report(capsys, SqliteDatabase(tmp_path / "missing.db"), "daily")
    assert (printed.code, printed.out) == (1, "")
    assert "missing.db" in printed.err.splitlines()[-1]


# --- costs, worked out again -----------------------------------------------------------------------------------------

PRICED: dict[str, Any] = {"model": "claude-sonnet-4-5", "upstream_host": "api.anthropic.com"}


def test_costs_are_worked_out_again(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    write(database, *request("i1", **PRICED), *request("i2", cost=None), *request("i3", cost=None, **PRICED))
    write(database, *request("i4", source="provider", **PRICED))
    before = database.query("select * from aibridge_token_usages order by id")
    dry = report(capsys, database, "--reprice", "--dry-run", "--json").json()
    assert database.query("select * from aibridge_token_usages order by id") == before
    by_model = {row["model"]: row for row in dry["rows"]}
    new = by_model["claude-sonnet-4-5"]
    assert (new["token_usages"], new["changed"], new["unpriced"], new["new_unpriced"]) == (2, 2, 1, 0)
    assert (by_model["claude-1"]["new_cost_usd"], by_model["claude-1"]["changed"]) == (None, 0)
    assert report(capsys, database, "--reprice", "--json").json()["rows"] == dry["rows"]
    rows = {row["id"]: row for row in database.query("select * from aibridge_token_usages")}
    assert rows[uid("t-i4")]["cost_usd"] == 0.5
    assert rows[uid("t-i1")]["cost_usd"] == rows[uid("t-i3")]["cost_usd"] == pytest.approx(new["new_cost_usd"] / 2)
    assert rows[uid("t-i1")]["cost_source"] == "price_list"
    hourly = database.query("select model, cost_usd, unpriced from aibridge_hourly_usage order by model")
    assert [(row["model"], row["unpriced"]) for row in hourly] == [("claude-1", 1), ("claude-sonnet-4-5", 0)]
    assert hourly[1]["cost_usd"] == pytest.approx(new["new_cost_usd"] + 0.5)
    again = report(capsys, database, "--reprice", "--json").json()
    assert again["totals"]["changed"] == 0


def test_only_the_rows_of_a_period_a_user_or_a_model_are_priced_again(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    write(sqlite, *request("i1", **PRICED), *request("i2", initiator_id="bob", **PRICED))
    for options, expected in (
        (("--actor", "bob"), 1),
        (("--model", "gpt*"), 0),
        (("--since", "2026-11-02"), 0),
        (("--until", "2026-11-01"), 2),
    ):
        found = report(capsys, sqlite, "--reprice", "--dry-run", "--json", *options).json()
        assert found["totals"]["token_usages"] == expected, options


def test_a_dry_run_is_one_of_pricing_only(sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        report(capsys, sqlite, "daily", "--dry-run")
    assert ended.value.code == 2
    assert "--dry-run needs --reprice" in capsys.readouterr().err


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("aibridge 0.")


def test_sessions_beyond_the_limit_are_one_row(sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        write(sqlite, *request(f"i{number}", AT.replace(hour=number), client_session_id=f"s{number}"))
    rows = report(capsys, sqlite, "sessions", "--limit", "2", "--json").json()["rows"]
    assert [(row["session_id"], row["cost_usd"]) for row in rows] == [("s3", 0.5), ("s2", 0.5), (None, 1.0)]
    assert "other sessions" in report(capsys, sqlite, "sessions", "--limit", "2").out
    for options in (("--limit", "0"), ("--limit", "4"), ()):
        rows = report(capsys, sqlite, "sessions", "--json", *options).json()["rows"]
        assert [row["session_id"] for row in rows] == ["s3", "s2", "s1", "s0"]


@pytest.mark.parametrize(
    ("arguments", "environ", "place"),
    [
        (["--database", "/tmp/x.db"], {}, "--database"),
        ([], {"AIBRIDGE_DATABASE": "/tmp/x.db"}, "AIBRIDGE_DATABASE in the environment"),
    ],
)
def test_a_wrong_database_is_reported_with_what_named_it(
    arguments: list[str],
    environ: dict[str, str],
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["report", *arguments]) != 0
    error = capsys.readouterr().err
    assert f"{place}: found text" in error and 'did you mean "sqlite:////tmp/x.db"?' in error
