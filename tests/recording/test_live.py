"""A snapshot of what runs now and what was, with numbers that are worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from aibridge_addon.config.load import load
from aibridge_addon.recording import live
from aibridge_addon.recording.database import queries
from aibridge_addon.recording.live import Snapshot, per_hour, snapshot
from aibridge_addon.recording.rows import timestamp
from aibridge_addon.records import InterceptionEnded, InterceptionStarted, Record, TokenUsage
from tests.support.databases import Database, write
from tests.support.examples import ENDED, STARTED, TOKENS, uid

NOW = datetime(2026, 11, 28, 10, 5, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


def take(database: Database, now: datetime = NOW, zone: ZoneInfo = BERLIN) -> Snapshot:
    with queries(load(None, environ={}, database=database.url)) as rows:
        return snapshot(rows, now, zone)


def begun(name: str, ago: timedelta, **more: Any) -> InterceptionStarted:
    return replace(STARTED, id=uid(name), started_at=NOW - ago, **more)


def turn(name: str, ago: timedelta, number: int = 1, cost: float | None = 0.5, **more: Any) -> TokenUsage:
    return replace(
        TOKENS,
        id=uid(f"{name}-{number}"),
        interception_id=uid(name),
        created_at=NOW - ago,
        turn=number,
        kind="answer",
        cost_usd=cost,
        input_tokens=1,
        cache_read_input_tokens=20,
        cache_write_input_tokens=300,
        output_tokens=4000,
        **more,
    )


def over(name: str, ago: timedelta, **more: Any) -> InterceptionEnded:
    return replace(ENDED, interception_id=uid(name), ended_at=NOW - ago, **more)


def request(
    name: str, ago: timedelta, *, model: str = "claude-1", cost: float | None = 0.5, **more: Any
) -> list[Record]:
    return [
        begun(name, ago + SECOND, model=model, **more),
        turn(name, ago, model=model, cost=cost),
        over(name, ago, status="completed", model=model),
    ]


def names(rows: Sequence[Any]) -> list[str]:
    known = {uid(name): name for name in ("a", "b", "c", "d")}
    return [known[row["id"]] for row in rows]


def test_an_empty_database_has_an_empty_snapshot(database: Database) -> None:
    write(database)
    found = take(database)
    assert (found.in_flight, found.running, found.ended, found.errors, found.limits) == (0, [], [], [], [])
    assert not found.today and not found.recent and not found.models and not found.actors


def test_requests_in_flight_have_the_tokens_of_the_turns_that_have_ended(database: Database) -> None:
    write(
        database,
        begun("a", MINUTE),
        begun("b", HOUR, initiator_id="bob"),
        turn("b", 2 * SECOND, 1),
        turn("b", SECOND, 2, cost=0.25),
        begun("c", HOUR),
        over("c", SECOND),
    )
    found = take(database)
    assert found.in_flight == 2
    assert names(found.running) == ["b", "a"]  # the oldest one first
    first, second = found.running
    assert first["started_at"] == timestamp(NOW - HOUR)
    assert {key: first[key] for key in ("initiator_id", "client", "provider_name", "model", "silent")} == {
        "initiator_id": "bob",
        "client": "Claude Code",
        "provider_name": "anthropic-eu",
        "model": "claude-1",
        "silent": False,
    }
    assert [first[key] for key in ("turns", "input_tokens", "cache_read_input_tokens")] == [2, 2, 40]
    assert [first[key] for key in ("cache_write_input_tokens", "output_tokens", "cost_usd")] == [600, 8000, 0.75]
    assert (second["turns"], second["output_tokens"], second["cost_usd"]) == (0, 0, None)


def test_requests_of_processes_without_a_sign_of_life_come_last(database: Database) -> None:
    write(database, begun("a", 3 * HOUR), begun("b", 2 * HOUR), begun("c", HOUR), begun("d", MINUTE))
    for name, ago in (("a", 61 * SECOND), ("c", 59 * SECOND)):
        database.execute(
            "insert into aibridge_instances (id, host, pid, version, started_at, heartbeat_at) values "
            f"('{uid(name)}', 'h', 1, '', '{timestamp(NOW - HOUR)}', '{timestamp(NOW - ago)}')"
        )
    for name in ("a", "b", "c"):
        database.execute(f"update aibridge_interceptions set instance_id = '{uid(name)}' where id = '{uid(name)}'")
    found = take(database)
    assert names(found.running) == ["c", "d", "a", "b"]
    assert [row["silent"] for row in found.running] == [False, False, True, True]


def test_the_last_ones_that_ended_come_first(database: Database) -> None:
    write(
        database,
        *request("a", MINUTE),
        *request("b", SECOND, cost=None),
        begun("c", 3 * SECOND),
        over("c", 2 * SECOND),
        begun("d", HOUR),
    )
    found = take(database).ended
    assert names(found) == ["b", "c", "a"]
    assert [row["cost_usd"] for row in found] == [None, None, 0.5]
    assert [row["turns"] for row in found] == [1, 0, 1]
    assert {key: found[1][key] for key in live.END} == {
        "ended_at": timestamp(NOW - 2 * SECOND),
        "status": "failed",
        "http_status": 529,
        "error_type": "overloaded_error",
        "time_to_first_byte_ms": 250,
    }


def test_lists_are_bounded_and_the_number_in_flight_is_not(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "RUNNING", 2)
    monkeypatch.setattr(live, "ENDED", 1)
    running = [begun(name, MINUTE) for name in ("a", "b", "c")]
    write(database, *running, *request("d", MINUTE), *request("e", HOUR))
    found = take(database)
    assert (found.in_flight, len(found.running), names(found.ended)) == (3, 2, ["d"])


def test_today_begins_at_midnight_in_the_time_zone(database: Database) -> None:
    """Midnight in Berlin is 11 hours and 5 minutes ago. In Kolkata, 15:35 hours; that is not a whole hour in UTC."""
    midnight = 11 * HOUR + 5 * MINUTE
    write(
        database,
        *request("a", midnight, model="gpt-5"),
        *request("b", midnight + SECOND),
        *request("c", MINUTE, initiator_id="bob", billing="subscription"),
        *request("d", 15 * HOUR + 35 * MINUTE),
        begun("e", HOUR),
        turn("e", MINUTE, model="gpt-5", cost=None),
    )
    found = take(database)
    assert found.since == NOW - midnight
    assert found.today.columns() == {
        "interceptions": 2,
        "failed": 0,
        "input_tokens": 3,
        "cache_read_input_tokens": 60,
        "cache_write_input_tokens": 900,
        "output_tokens": 12000,
        "cost_usd": 1.0,
        "api_cost_usd": 0.5,
        "subscription_cost_usd": 0.5,
        "other_cost_usd": 0.0,
        "unpriced": 1,
    }
    assert {name: (usage.interceptions, usage.cost()) for name, usage in found.models.items()} == {
        "gpt-5": (1, 0.5),
        "claude-1": (1, 0.5),
    }
    assert {name: (usage.interceptions, usage.output_tokens) for name, usage in found.actors.items()} == {
        "ada": (1, 8000),
        "bob": (1, 4000),
    }
    assert take(database, zone=ZoneInfo("Asia/Kolkata")).today.interceptions == 4


def test_the_rate_is_that_of_the_last_ten_minutes(database: Database) -> None:
    write(
        database,
        *request("a", 10 * MINUTE),
        *request("b", SECOND, billing="subscription"),
        *request("c", 10 * MINUTE + SECOND),
        *request("d", 2 * MINUTE, cost=None),
    )
    hour = per_hour(take(database).recent)
    assert (hour.interceptions, hour.input_tokens, hour.cache_read_input_tokens) == (18, 18, 360)
    assert (hour.cache_write_input_tokens, hour.output_tokens) == (5400, 72000)
    assert (hour.cost("api"), hour.cost("subscription"), sum(hour.unpriced.values())) == (3.0, 3.0, 1)


def test_errors_of_the_last_hour_are_counted_by_kind(database: Database) -> None:
    def failed(name: str, ago: timedelta, **more: Any) -> list[Record]:
        return [begun(name, ago + SECOND), over(name, ago, **more)]

    write(
        database,
        *failed("a", 50 * MINUTE),
        *failed("b", 40 * MINUTE),
        *failed("c", HOUR + SECOND),
        *failed("d", MINUTE, error_type=None, http_status=None),
        *request("e", MINUTE),
    )
    provider = {"provider_name": "anthropic-eu"}
    assert take(database).errors == [
        {"error_type": None, "http_status": None, "failed": 1, "last_at": timestamp(NOW - MINUTE)} | provider,
        {"error_type": "overloaded_error", "http_status": 529, "failed": 2, "last_at": timestamp(NOW - 40 * MINUTE)}
        | provider,
    ]


def test_each_window_of_a_plan_has_its_newest_row_and_the_fullest_one_is_first(database: Database) -> None:
    write(database)
    for number, (window, ago, used) in enumerate([("5h", 2, 0.5), ("5h", 1, 0.25), ("7d", 3, 0.75)]):
        database.execute(
            "insert into aibridge_plan_limits (id, initiator_id, provider_name, credential_hint, window_name,"
            " used_ratio, remaining, resets_at, observed_at, metadata) values"
            f" ('{uid(str(number))}', 'ada', 'anthropic-eu', 'sk-a...efgh', '{window}', {used}, 7,"
            f" '{timestamp(NOW + HOUR)}', '{timestamp(NOW - ago * MINUTE)}', '{{}}')"
        )
    found = take(database).limits
    assert [(row["window_name"], row["used_ratio"], row["remaining"]) for row in found] == [
        ("7d", 0.75, 7.0),
        ("5h", 0.25, 7.0),
    ]
    assert [row["observed_at"] for row in found] == [timestamp(NOW - 3 * MINUTE), timestamp(NOW - MINUTE)]
