"""`aibridge report budgets`: what is spent of each budget in its current period."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from aibridge_addon import cli
from aibridge_addon.cli.budgets import current
from aibridge_addon.config.load import load
from aibridge_addon.config.schema import Settings
from tests.support.databases import Database, SqliteDatabase, write
from tests.support.examples import ENDED, STARTED, TOKENS, uid
from tests.support.reading import NOON

BUDGETS = """
budgets:
- {name: each, per: actor, period: day, timezone: Pacific/Auckland, usd: 2}
- {name: all, per: all, period: week, tokens: 100, over: warn}
- {name: calls, per: model, match: {models: ["gpt*"]}, period: month, requests: 4}
"""


def configured(database: Database, folder: Path) -> Settings:
    path = folder / "aibridge.yaml"
    path.write_text(f"database: {json.dumps(database.url)}\n{BUDGETS}")
    return load(path, environ={})


def spend(database: Database, name: str, *, days: int = 0, **more: Any) -> None:
    at = NOON - timedelta(days=days)
    tokens = replace(TOKENS, id=uid(f"t-{name}"), interception_id=uid(name), created_at=at, cost_usd=0.5)
    begun = replace(STARTED, id=uid(name), started_at=at, **more)
    write(
        database,
        begun,
        replace(tokens, cache_write_input_tokens=4),
        replace(ENDED, interception_id=uid(name), ended_at=at),
    )


def test_each_budget_has_its_subjects_and_what_is_spent_in_its_period(database: Database, tmp_path: Path) -> None:
    spend(database, "i1")
    spend(database, "i2", initiator_id="bob")
    spend(database, "i3", initiator_id="bob")
    spend(database, "i4", days=9)
    rows = current(configured(database, tmp_path), lambda: NOON)
    assert [(row["name"], row["subject"], row["spent"], row["used"], row["unit"]) for row in rows] == [
        ("each", "bob", 1.0, 0.5, "usd"),
        ("each", "ada", 0.5, 0.25, "usd"),
        ("all", "all", 30, 0.3, "tokens"),
        ("calls", None, 0, 0.0, "requests"),
    ]
    assert [(row["since"], row["resets_at"]) for row in rows[1:]] == [
        ("2026-01-03T00:00:00+13:00", "2026-01-04T00:00:00+13:00"),
        ("2025-12-29T00:00:00+00:00", "2026-01-05T00:00:00+00:00"),
        ("2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"),
    ]


def test_groups_that_tokens_give_count_without_a_header(database: Database, tmp_path: Path) -> None:
    spend(database, "i1", metadata={"actor_groups": "platform,web"})
    path = tmp_path / "aibridge.yaml"
    budgets = "budgets: [{name: groups, per: group, period: day, usd: 2}]"
    path.write_text(f"database: {json.dumps(database.url)}\n{budgets}")
    rows = current(load(path, environ={}), lambda: NOON)
    assert [(row["subject"], row["spent"]) for row in rows] == [("platform", 0.5), ("web", 0.5)]


def test_the_command_shows_a_row_for_each_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = SqliteDatabase(tmp_path / "aibridge.db")
    write(database)
    configured(database, tmp_path)
    config = ["--config", str(tmp_path / "aibridge.yaml")]
    assert cli.main(["report", "budgets", "--json", *config]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["spent"], row["limit"]) for row in found["rows"]] == [
        ("each", 0, 2.0),
        ("all", 0, 100),
        ("calls", 0, 4),
    ]
    assert cli.main(["report", "budgets", "--csv", *config]) == 0
    assert capsys.readouterr().out.splitlines()[0].split(",") == list(found["rows"][0])
    assert cli.main(["report", "budgets", *config]) == 0
    assert "each" in capsys.readouterr().out


def test_without_budgets_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--database", f"sqlite:///{tmp_path}/aibridge.db"]
    assert cli.main(["report", "budgets", *place]) == 0
    assert "Budgets are in a configuration file" in capsys.readouterr().out
    (tmp_path / "aibridge.yaml").write_text("budgets: []\n")
    assert cli.main(["report", "budgets", *place, "--config", str(tmp_path / "aibridge.yaml")]) == 0
    assert "No budgets are configured" in capsys.readouterr().out


def test_a_budget_has_a_period_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", "budgets", "--since", "2026-11-01"])
    assert ended.value.code == 2
    assert "--since has no effect" in capsys.readouterr().err
