"""Processes that are killed while PostgreSQL is away: every answer that a client has seen is recorded, once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from tests.conftest import StartMitmdump
from tests.integration.answers import ask, begin, config, held, whole
from tests.integration.exchanges import ANTHROPIC
from tests.processes.kills import LONG, ROUNDS, Counts, Load, kill, random_moments
from tests.support.client import RawHttp1
from tests.support.database import Row
from tests.support.databases import PostgresDatabase
from tests.support.mitmdump import Mitmdump
from tests.support.outages import OUTAGES, Outage, crashed
from tests.support.polling import poll_until
from tests.support.upstream import Gate, ScriptedUpstream

INTERCEPTIONS = "select * from aibridge_interceptions order by started_at"


def spooled(proxy: Mitmdump) -> list[str]:
    return [file.name for file in (proxy.folder / ".local/state/aibridge").glob("*.log")]


def wait_for_ended(postgres: PostgresDatabase) -> list[Row]:
    def all_ended() -> list[Row] | None:
        rows = postgres.query(INTERCEPTIONS)
        return rows if all(row["ended_at"] is not None for row in rows) else None

    return poll_until(all_ended, LONG, what="the end of every interception")


def assert_recorded_once(postgres: PostgresDatabase, answers: int) -> None:
    completed = "select * from aibridge_interceptions where status = 'completed'"
    poll_until(lambda: len(postgres.query(completed)) >= answers, LONG, what=f"{answers} completed interceptions")
    ids = sorted(row["id"] for row in postgres.query(INTERCEPTIONS))
    assert len(ids) == answers
    for table in ("aibridge_token_usages", "aibridge_user_prompts"):
        assert sorted(row["interception_id"] for row in postgres.query(f"select * from {table}")) == ids


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES)
def test_answers_that_were_given_during_an_outage_are_recorded_by_the_next_process(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, postgres: PostgresDatabase, outage: Outage
) -> None:
    upstream.answer(*[whole()] * 7)
    first = mitmdump(config=config(upstream.port, f"database: {postgres.url}"))
    ask(first)
    assert_recorded_once(postgres, 1)
    with outage(postgres):
        ask(first, 5)
        assert spooled(first)
        kill(first)
    second = mitmdump(config=config(upstream.port, f"database: {postgres.url}"), folder=first.folder)
    assert_recorded_once(postgres, 6)
    poll_until(lambda: not spooled(second), LONG, what="an empty spool")
    ask(second)
    assert_recorded_once(postgres, 7)


@pytest.mark.timeout(60 + 60 * ROUNDS)
@pytest.mark.parametrize("away", [False, True], ids=["the server is there", "the server crashes before"])
def test_every_answer_whose_end_was_seen_is_there_after_kills_under_load(
    mitmdump: StartMitmdump,
    upstream: ScriptedUpstream,
    postgres: PostgresDatabase,
    load: Load,
    report: Callable[[Counts], None],
    away: bool,
) -> None:
    upstream.handler = lambda _: whole()
    place = config(upstream.port, f"database: {postgres.url}")
    proxy = mitmdump(config=place)
    for moment in random_moments("postgres"):
        with contextlib.ExitStack() as outage, load.on(proxy, moment):
            seen = len(load.answers)
            poll_until(lambda: len(load.answers) > seen, LONG, what="an answer")  # noqa: B023
            if away:
                outage.enter_context(crashed(postgres))
        proxy = mitmdump(config=place, folder=proxy.folder)
        poll_until(lambda: not spooled(proxy), LONG, what="an empty spool")  # noqa: B023
    counts = load.count(postgres.query)
    report(counts)
    assert not load.broken
    assert (counts.missing, counts.doubled) == (0, 0)


def test_an_answer_in_progress_is_ended_by_another_process(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, postgres: PostgresDatabase
) -> None:
    """A process of its own folder, as on another machine. Those of living processes stay open."""
    place = config(upstream.port, f"database: {postgres.url}")
    first, living = mitmdump(config=place), mitmdump(config=place)
    gate = Gate()
    upstream.answer(held(Gate()), held(gate))
    with (
        RawHttp1.through_proxy(first, ANTHROPIC, 443) as killed,
        RawHttp1.through_proxy(living, ANTHROPIC, 443) as client,
    ):
        begin(killed)
        begin(client)
        poll_until(lambda: len(postgres.query(INTERCEPTIONS)) == 2, what="two interceptions")
        kill(first)
        mitmdump(config=place)
        rows = postgres.query(INTERCEPTIONS)
        assert [(row["status"], row["error_type"]) for row in rows] == [("failed", "process_ended"), (None, None)]
        gate.open()
        client.read_body()
    rows = wait_for_ended(postgres)
    assert [row["status"] for row in rows] == ["failed", "completed"]
