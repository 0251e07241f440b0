"""Every SQL query of the dashboard, on a filled PostgreSQL database: the numbers were computed by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aibridge_addon.records import Record
from tests.support import examples
from tests.support.databases import PostgresDatabase, write
from tests.support.examples import uid
from tests.support.grafana import SQL, Query, expanded_sql, variables

FROM, TO = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC)
FIRST, SECOND = datetime(2026, 3, 1, 10, tzinfo=UTC), datetime(2026, 3, 2, 10, tzinfo=UTC)
AFTER = datetime(2026, 3, 4, tzinfo=UTC)
DAY = 86400
CHOSEN = {
    "username": ["ada", "o'brien"],
    "provider": ["anthropic", "openai"],
    "model": ["claude-a", "gpt-x"],
    "client": ["Claude Code", "Codex"],
}


def exchange(
    name: str,
    who: str,
    provider: str,
    model: str,
    client: str,
    at: datetime,
    *counts: tuple[int, int, int, int, float | None],
    error: str | None = None,
) -> Iterator[Record]:
    """Records of an interception of 2 s with its first byte after 500 ms. The last count is the cost."""
    yield replace(
        examples.STARTED,
        id=uid(name),
        initiator_id=who,
        provider_name=provider,
        model=model,
        client=client,
        client_session_id=f"session of {who}",
        started_at=at,
        thread_keys=(),
    )
    for tokens, out, read, written, cost in counts:
        yield replace(
            examples.TOKENS,
            interception_id=uid(name),
            provider_name=provider,
            model=model,
            created_at=at,
            input_tokens=tokens,
            output_tokens=out,
            cache_read_input_tokens=read,
            cache_write_input_tokens=written,
            cost_usd=cost,
            cost_source=None if cost is None else "price_list",
            unpriced="no price known for this model" if cost is None else None,
            extra={},
        )
    yield replace(
        examples.ENDED,
        interception_id=uid(name),
        status="completed" if error is None else "failed",
        http_status=200 if error is None else 529,
        error_type=error,
        error_message=error,
        model=None,
        ended_at=at + timedelta(seconds=2),
        time_to_first_byte_ms=500,
        thread_keys=(),
    )


@pytest.fixture
def filled(postgres: PostgresDatabase) -> PostgresDatabase:
    write(
        postgres,
        *exchange("1", "ada", "anthropic", "claude-a", "Claude Code", FIRST, (10, 20, 30, 40, 0.5), (1, 2, 3, 4, 0.25)),
        *exchange("2", "ada", "openai", "gpt-x", "Codex", FIRST, (100, 200, 300, 7, None)),
        *exchange("3", "o'brien", "anthropic", "claude-a", "Claude Code", SECOND, (1000, 2000, 3000, 4000, 2.0)),
        *exchange("4", "o'brien", "anthropic", "claude-a", "Claude Code", SECOND, error="overloaded_error"),
        *exchange("5", "eve", "anthropic", "claude-a", "Claude Code", SECOND, (5, 5, 5, 5, 1.0)),  # not chosen
        *exchange("6", "ada", "anthropic", "claude-a", "Claude Code", AFTER, (5, 5, 5, 5, 1.0)),  # not in the period
        replace(examples.PROMPT, interception_id=uid("1"), prompt="why?", created_at=FIRST),
        replace(
            examples.TOOL,
            interception_id=uid("1"),
            tool="Read",
            injected=False,
            created_at=FIRST,
            server_name=None,
            server_url=None,
            invocation_error=None,
            duration_ms=None,
            input={},
        ),
        replace(
            examples.TOOL,
            interception_id=uid("3"),
            tool="search",
            injected=True,
            created_at=SECOND,
            server_name="web",
            invocation_error="boom",
            duration_ms=40,
            input={"query": "x"},
        ),
    )
    return postgres


def sums(tokens: int, out: int, read: int, written: int) -> dict[str, Any]:
    return {"input": tokens, "output": out, "cache_read": read, "cache_write": written}


def point(at: datetime, metric: str, value: float) -> dict[str, Any]:
    return {"time": at.timestamp() // DAY * DAY, "metric": metric, "value": value}


def text(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


LATENCY = {"ttfb_p50": 500, "ttfb_p95": 500, "total_p50": 2000, "total_p95": 2000}
CLAUDE, GPT = {"provider": "anthropic", "model": "claude-a"}, {"provider": "openai", "model": "gpt-x"}
ERROR = {"error_type": "overloaded_error", "error_message": "overloaded_error"}
EXPECTED: dict[str, list[dict[str, Any]]] = {
    "Total usage": [sums(1111, 2222, 3333, 4051)],
    "Total cost": [{"cost": 2.75}],
    "Total interceptions": [{"interceptions": 4}],
    "Active users": [{"users": 2}],
    "Sessions": [{"sessions": 2}],
    "Failed share": [{"failed": 0.25}],
    "Cost over time by model": [point(FIRST, "claude-a", 0.75), point(SECOND, "claude-a", 2.0)],
    "Cost over time by user": [point(FIRST, "ada", 0.75), point(SECOND, "o'brien", 2.0)],
    "Cost by provider and model": [
        {**CLAUDE, **sums(1011, 2022, 3033, 4044), "cost": 2.75, "unpriced": 0},
        {**GPT, **sums(100, 200, 300, 7), "cost": None, "unpriced": 1},
    ],
    "Leaderboard per user": [
        {"username": "o'brien", **sums(1000, 2000, 3000, 4000)},
        {"username": "ada", **sums(111, 222, 333, 51)},
    ],
    "Unpriced models": [{**GPT, "reason": "no price known for this model", "rows": 1, "tokens": 607}],
    "Top models by interception count": [
        {"model": "claude-a", "interceptions": 3},
        {"model": "gpt-x", "interceptions": 1},
    ],
    "Top clients": [{"client": "Claude Code", "interceptions": 3}, {"client": "Codex", "interceptions": 1}],
    "Interceptions over time by user": [point(FIRST, "ada", 2), point(SECOND, "o'brien", 2)],
    "Errors by kind": [point(SECOND, "overloaded_error", 1)],
    "Latest errors": [{"time": text(SECOND), "username": "o'brien", **CLAUDE, "http_status": 529, **ERROR}],
    "Latency by model": [{**CLAUDE, "interceptions": 2, **LATENCY}, {**GPT, "interceptions": 1, **LATENCY}],
    "User Prompts": [{"time": text(FIRST), "username": "ada", **CLAUDE, "prompt": "why?"}],
    "Tool Calls": [
        {
            "time": text(SECOND),
            "username": "o'brien",
            "model": "claude-a",
            "tool": "search",
            "input": {"query": "x"},
            "injected": True,
            "server": "web",
            "error": "boom",
        },
        {
            "time": text(FIRST),
            "username": "ada",
            "model": "claude-a",
            "tool": "Read",
            "input": {},
            "injected": False,
            "server": None,
            "error": None,
        },
    ],
    "Tools": [
        {"server": "client", "tool": "Read", "calls": 1, "failed": 0, "mean_ms": None},
        {"server": "web", "tool": "search", "calls": 1, "failed": 1, "mean_ms": 40},
    ],
    "Instances": [],
}


@pytest.mark.parametrize("query", SQL, ids=str)
def test_a_panel_shows_the_right_numbers(filled: PostgresDatabase, query: Query) -> None:
    rows = filled.query(expanded_sql(query.text, FROM, TO, CHOSEN))
    if query.panel == "Latest sessions":
        sessions = [(row["username"], row["client"], row["interceptions"], row["input"], row["cost"]) for row in rows]
        assert sessions == [
            ("o'brien", "Claude Code", 2, 1000, 2.0),
            *sorted([("ada", "Claude Code", 1, 11, 0.75), ("ada", "Codex", 1, 100, None)], key=str),
        ]
    else:
        assert rows == EXPECTED[query.panel]


def test_the_instances_are_listed_with_the_age_of_their_heartbeat(filled: PostgresDatabase) -> None:
    filled.execute(
        "insert into aibridge_instances (id, host, pid, version, started_at, heartbeat_at)"
        " values (gen_random_uuid(), 'here', 1, '1.0', now(), now() - interval '1 minute')"
    )
    [query] = [query for query in SQL if query.panel == "Instances"]
    [row] = filled.query(expanded_sql(query.text, FROM, TO, CHOSEN))
    assert row["host"] == "here" and 60 <= row["seconds_ago"] < 600


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("username", ["ada", "eve", "o'brien"]),
        ("provider", ["anthropic", "openai"]),
        ("model", ["claude-a", "gpt-x"]),
        ("client", ["Claude Code", "Codex"]),
    ],
)
def test_a_variable_offers_all_values(filled: PostgresDatabase, name: str, values: list[str]) -> None:
    rows = filled.query(expanded_sql(variables()[name]["query"], FROM, TO, CHOSEN))
    assert [value for row in rows for value in row.values()] == values
