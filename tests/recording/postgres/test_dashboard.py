"""Coder's Grafana dashboard: its nine panels and four variables return the right numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aibridge_addon.records import (
    InterceptionEnded,
    InterceptionStarted,
    Record,
    TokenUsage,
    ToolUsage,
    UserPrompt,
)
from tests.support.dashboard import QUERIES, expanded
from tests.support.databases import Database, PostgresDatabase, SqliteDatabase, write
from tests.support.examples import uid
from tests.support.moves import exported, imported

FROM = datetime(2026, 3, 1, tzinfo=UTC)
TO = datetime(2026, 3, 3, tzinfo=UTC)
FIRST = datetime(2026, 3, 1, 10, tzinfo=UTC)
SECOND = datetime(2026, 3, 2, 10, tzinfo=UTC)
AFTER = datetime(2026, 3, 4, tzinfo=UTC)


def day(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


def sums(*numbers: int, **labels: str) -> dict[str, object]:
    return {**labels, **dict(zip(("input", "output", "cache_read", "cache_write"), numbers, strict=True))}


EXPECTED: Mapping[str, list[dict[str, object]]] = {
    "username": [{"username": "ada"}, {"username": "bob"}, {"username": "eve"}],
    "provider": [{"provider": name} for name in ("anthropic", "copilot", "openai")],
    "model": [{"model": name} for name in ("claude-a", "claude-b", "gpt-x")],
    "client": [{"client": name} for name in ("Claude Code", "Codex", "Unknown")],
    "Total usage": [sums(1111, 2222, 3333, 4044)],
    "Leaderboard per user": [
        sums(1000, 2000, 3000, 4000, username="bob"),
        sums(111, 222, 333, 44, username="ada"),
    ],
    "Top models": [{"model": "claude-a", "n": 2}, {"model": "claude-b", "n": 1}, {"model": "gpt-x", "n": 1}],
    "Top clients": [{"client": "Claude Code", "n": 3}, {"client": "Codex", "n": 1}],
    "Approximate Cost": [
        sums(100, 200, 300, 0, provider="openai", model="gpt-x"),
        sums(1011, 2022, 3033, 4044, provider="anthropic", model="claude-a"),
    ],
    "Total interceptions": [{"n": 4}],
    "Interceptions over time by user": [
        {"time": FROM.timestamp(), "metric": "ada", "value": 2},
        {"time": FROM.timestamp() + 86400, "metric": "bob", "value": 2},
    ],
    "User Prompts": [
        {
            "created_at": day(FIRST),
            "username": "ada",
            "provider": "anthropic",
            "model": "claude-a",
            "prompt": "why?",
        }
    ],
    "Tool Calls": [
        {
            "created_at": day(SECOND),
            "username": "bob",
            "model": "claude-a",
            "tool": "search",
            "input": {"query": "x"},
            "injected": True,
            "server_url": "https://mcp.example/",
            "invocation_error": "boom",
        }
    ],
}


def exchange(
    name: str, who: str, provider: str, model: str, client: str, at: datetime, *counts: tuple[int, int, int, int]
) -> Iterator[Record]:
    yield InterceptionStarted(
        id=uid(name),
        initiator_id=who,
        provider=provider,
        provider_name=provider,
        model=model,
        client=client,
        client_session_id=None,
        user_agent=None,
        route="/v1/messages" if provider != "openai" else "/v1/responses",
        streaming=True,
        credential_kind="byok",
        credential_hint="",
        correlating_tool_call_id=None,
        metadata={},
        started_at=at,
    )
    dialect = "chat_completions" if provider == "openai" else "messages"
    for tokens, out, read, written in counts:
        yield TokenUsage(
            *(uid(name), "msg", provider, provider, model, tokens, out, read, written),
            completeness="complete",
            extra={},
            created_at=at,
            dialect=dialect,
        )
    yield InterceptionEnded(uid(name), "completed", model, 200, None, None, 1, at)


def fill(database: Database) -> None:
    write(
        database,
        *exchange("1", "ada", "anthropic", "claude-a", "Claude Code", FIRST, (10, 20, 30, 40), (1, 2, 3, 4)),
        *exchange("2", "ada", "openai", "gpt-x", "Codex", FIRST, (100, 200, 300, 7)),
        *exchange("3", "bob", "anthropic", "claude-a", "Claude Code", SECOND, (1000, 2000, 3000, 4000)),
        *exchange("4", "bob", "anthropic", "claude-b", "Claude Code", SECOND),
        *exchange("5", "eve", "copilot", "gpt-x", "Unknown", AFTER, (5, 5, 5, 5)),
        UserPrompt(uid("1"), "msg", "why?", FIRST),
        ToolUsage(
            *(uid("3"), "msg", "call", "search", {"query": "x"}, True, SECOND),
            server_name="s",
            server_url="https://mcp.example/",
            invocation_error="boom",
        ),
    )


@pytest.fixture(params=["written", "imported from SQLite", "imported from PostgreSQL"])
def filled(request: pytest.FixtureRequest, postgres: PostgresDatabase, tmp_path: Path) -> PostgresDatabase:
    source: Database = postgres
    if request.param == "imported from SQLite":
        source = SqliteDatabase(tmp_path / "source.db")
    elif request.param == "imported from PostgreSQL":
        source = request.getfixturevalue("other_postgres")
    fill(source)
    if source is not postgres:
        for _ in range(2):
            imported(postgres, exported(source))
    return postgres


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_returns_the_right_numbers(filled: PostgresDatabase, name: str) -> None:
    assert filled.query(expanded(QUERIES[name], FROM, TO)) == EXPECTED[name]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"username": "(ada)"}, sums(111, 222, 333, 44)),
        ({"username": "(ada|bob)", "provider": "(openai)"}, sums(100, 200, 300, 0)),
        ({"model": "(claude\\-a)"}, sums(1011, 2022, 3033, 4044)),
        ({"client": "(Codex)"}, sums(100, 200, 300, 0)),
    ],
)
def test_the_variables_filter(filled: PostgresDatabase, variables: dict[str, str], expected: dict[str, object]) -> None:
    assert filled.query(expanded(QUERIES["Total usage"], FROM, TO, **variables)) == [expected]


def test_cached_tokens_have_the_names_of_the_dialect_and_no_others(filled: PostgresDatabase) -> None:
    names = filled.query(
        "select i.provider, array_agg(distinct name order by name) as names from aibridge_interceptions i"
        " join aibridge_token_usages t on t.interception_id = i.id, jsonb_object_keys(t.metadata) as name group by 1"
    )
    assert {row["provider"]: row["names"] for row in names} == {
        "anthropic": ["cache_creation_input", "cache_read_input"],
        "copilot": ["cache_creation_input", "cache_read_input"],
        "openai": ["prompt_cached"],
    }


@pytest.mark.parametrize("dialect", ["messages", "chat_completions"])
def test_a_provider_that_uses_the_names_of_cached_tokens_fails_no_panel(filled: PostgresDatabase, dialect: str) -> None:
    names = ("cache_read_input", "cache_creation_input", "prompt_cached")
    begun, _ = exchange("6", "ada", "anthropic", "claude-a", "Claude Code", FIRST)
    usage = TokenUsage(
        *(uid("6"), "msg", "anthropic", "anthropic", "claude-a", 0, 0, 0, 0),
        completeness="complete",
        extra=dict.fromkeys(names, "many"),
        created_at=FIRST,
        dialect=dialect,
    )
    write(filled, begun, usage)
    assert filled.query(expanded(QUERIES["Total usage"], FROM, TO)) == EXPECTED["Total usage"]
