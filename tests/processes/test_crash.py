"""Processes that are killed: every answer that a client has seen is recorded, once, whatever the database does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from tests.conftest import StartMitmdump
from tests.integration.answers import ask, begin, config, held, whole
from tests.integration.exchanges import ANTHROPIC, wait_for_ended
from tests.processes.kills import LONG, ROUNDS, Counts, Load, kill, random_moments
from tests.support.client import RawHttp1
from tests.support.database import locked, query
from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.upstream import Gate, ScriptedUpstream


def emptied(proxy: Mitmdump) -> None:
    """Wait until the spool's files are gone."""
    folder = proxy.folder / "aibridge-spool"
    poll_until(lambda: not list(folder.glob("*")), LONG, what="an empty spool")


def assert_recorded_once(proxy: Mitmdump, answers: int) -> None:
    rows = wait_for_ended(proxy, answers, LONG)
    assert [(row["status"], row["error_type"]) for row in rows] == [("completed", None)] * answers
    for table in ("aibridge_token_usages", "aibridge_user_prompts"):
        found = [row["interception_id"] for row in query(proxy.database, f"select * from {table}")]
        assert sorted(map(str, found)) == sorted(str(row["id"]) for row in rows)


def test_answers_that_were_given_while_the_database_was_away_are_recorded_by_the_next_process(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream
) -> None:
    upstream.answer(*[whole()] * 7)
    first = mitmdump(config=config(upstream.port))
    ask(first)
    wait_for_ended(first, 1)
    with locked(first.database):
        ask(first, 5)
        kill(first)
    assert len(first.rows("aibridge_interceptions")) == 1
    second = mitmdump(config=config(upstream.port), folder=first.folder)
    assert_recorded_once(second, 6)
    emptied(second)
    ask(second)
    assert_recorded_once(second, 7)


@pytest.mark.parametrize("answers", [1, 20])
def test_an_answer_whose_end_was_seen_is_there_after_a_kill(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, answers: int
) -> None:
    upstream.answer(*[whole()] * answers)
    proxy = mitmdump(config=config(upstream.port))
    ask(proxy, answers)
    kill(proxy)
    assert_recorded_once(proxy, answers)


@pytest.mark.timeout(60 + 60 * ROUNDS)
@pytest.mark.parametrize("away", [False, True], ids=["the database is there", "the database is away"])
def test_every_answer_whose_end_was_seen_is_there_after_kills_under_load(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, load: Load, report: Callable[[Counts], None], away: bool
) -> None:
    upstream.handler = lambda _: whole()
    proxy = mitmdump(config=config(upstream.port))
    for moment in random_moments("sqlite"):
        with locked(proxy.database) if away else contextlib.nullcontext(), load.on(proxy, moment):
            pass
        proxy = mitmdump(config=config(upstream.port), folder=proxy.folder)
        emptied(proxy)
    counts = load.count(lambda sql: query(proxy.database, sql))
    report(counts)
    assert not load.broken
    assert (counts.missing, counts.doubled) == (0, 0)


def test_an_answer_in_progress_is_ended_by_the_next_process(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream
) -> None:
    first = mitmdump(config=config(upstream.port))
    upstream.answer(held(Gate()))
    with RawHttp1.through_proxy(first, ANTHROPIC, 443) as client:
        begin(client)
        [row] = first.wait_for_rows("aibridge_interceptions", 1)
        kill(first)
    assert row["status"] is None
    second = mitmdump(config=config(upstream.port), folder=first.folder)
    [row] = wait_for_ended(second, 1)
    assert (row["status"], row["error_type"]) == ("failed", "process_ended")
    assert str(row["ended_at"]) >= str(row["started_at"])
    instances = query(second.database, "select id, pid from aibridge_instances order by started_at")
    assert [instance["pid"] for instance in instances][-1] == second.pid
    assert row["instance_id"] == instances[0]["id"]


def test_an_answer_in_progress_in_a_living_process_stays_open(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream
) -> None:
    first = mitmdump(config=config(upstream.port))
    gate = Gate()
    upstream.answer(held(gate), whole())
    with RawHttp1.through_proxy(first, ANTHROPIC, 443) as client:
        begin(client)
        first.wait_for_rows("aibridge_interceptions", 1)
        second = mitmdump(config=config(upstream.port, f"database: 'sqlite:///{first.database}'"))
        ask(second)
        rows = first.rows("aibridge_interceptions")
        assert sorted(str(row["status"]) for row in rows) == ["None", "completed"]
        gate.open()
        client.read_body()
    assert_recorded_once(first, 2)
