"""`aibridge report limits`: what is used of the plans' limits."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aibridge_addon import cli
from aibridge_addon.recording.plan_limits import COLUMNS
from aibridge_addon.records import PlanLimit
from tests.recording.test_plan_limits import of
from tests.support.databases import Database, SqliteDatabase, write
from tests.support.examples import PLAN_LIMIT
from tests.support.reading import NOON

TOKENS = of(
    "tokens",
    provider_name="openai",
    window_name="tokens",
    used_ratio=0.25,
    limit_value=2_000_000.0,
    remaining=1_500_000.0,
    metadata={},
)
CHAT = of(
    "p", provider_name="copilot", window_name="chat", used_ratio=None, resets_at=None, metadata={"unlimited": True}
)
HOSTILE = of(
    "h",
    provider_name="openai",
    window_name="=cmd|' /C calc'!A0",
    credential_hint="\x1b[31m\u202e",
    used_ratio=1.5,
    metadata={"status": "<script>\x00", "surpassed_threshold": "x", "representative": "yes"},
)


def report(database: Database, *options: str) -> int:
    return cli.main(["report", "limits", "--timezone", "UTC", "--database", database.url, *options])


def test_json_has_the_columns_of_the_table(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    write(database, PLAN_LIMIT, TOKENS, replace(PLAN_LIMIT, id=TOKENS.id[::-1], observed_at=NOON - timedelta(days=1)))
    assert report(database, "--json", "--since", "2026-01-02") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["since"], found["until"], found["timezone"], found["totals"]) == ("2026-01-02", None, "UTC", {})
    first, second = found["rows"]
    assert list(first) == list(COLUMNS)
    assert (first["window_name"], first["used_ratio"], first["metadata"]["status"]) == ("5h", 0.42, "allowed")
    assert (second["remaining"], second["limit_value"]) == (1_500_000, 2_000_000)


def test_csv_has_the_same_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = SqliteDatabase(tmp_path / "aibridge.db")
    write(database, PLAN_LIMIT)
    assert report(database, "--csv") == 0
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert tuple(row) == COLUMNS
    assert json.loads(row["metadata"]) == PLAN_LIMIT.metadata


def shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *records: PlanLimit, options: tuple[str, ...] = ()
) -> str:
    database = SqliteDatabase(tmp_path / "aibridge.db")
    write(database, *records)
    assert report(database, *options) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", ["80", "160"])
def test_the_table_shows_shares_and_resets_and_fits(
    width: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    ends = datetime(2100, 1, 1, 17, tzinfo=UTC)
    lines = shown(tmp_path, capsys, replace(PLAN_LIMIT, resets_at=ends), TOKENS, CHAT).splitlines()
    assert all(len(line) <= int(width) for line in lines)
    [window] = [line for line in lines if "5h*" in line]
    assert "42%" in window and "allowed" in window and "01-01 17:00" in window
    [tokens] = [line for line in lines if "tokens" in line]
    assert "25%" in tokens and ("1.50M" in tokens or "1,500,000" in tokens) and "was reset" in tokens
    assert "unlimited" in next(line for line in lines if "chat" in line)
    assert "* This window decides about the next request." in lines


def test_names_of_providers_cannot_control_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(tmp_path, capsys, HOSTILE)
    assert "\x1b" not in text and "\u202e" not in text and "150%" in text
    assert report(SqliteDatabase(tmp_path / "aibridge.db"), "--csv") == 0
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["window_name"].startswith("'=")


def test_without_limits_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No answer of this period has named a limit" in shown(tmp_path, capsys)
    options = ("--actor", "eve")
    assert "No answer of this period has named a limit" in shown(tmp_path, capsys, PLAN_LIMIT, options=options)


@pytest.mark.parametrize("option", ["--by=model", "--breakdown", "--model=m"])
def test_options_of_usage_have_no_effect(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", "limits", option])
    assert ended.value.code == 2
    assert "has no effect" in capsys.readouterr().err
