"""Processes that are killed: every answer that a client has seen is recorded, once, whatever the database does."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator, Sequence

import pytest

from tests.conftest import StartMitmdump
from tests.integration.answers import ask, begin, config, held, whole
from tests.integration.exchanges import ANTHROPIC, wait_for_ended
from tests.support.client import RawHttp1
from tests.support.database import Row, locked, query
from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.upstream import Gate, ScriptedUpstream

LONG = 60.0
ROUNDS = int(os.environ.get("SOAK_KILLS", "2"))
"""Kills of each test under load. `make soak` has more."""


def kill(proxy: Mitmdump) -> None:
    proxy.kill()
    assert proxy.wait() == -9


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


def random_moments(seed: str) -> list[int]:
    """Return after how many answers the process of each round is killed. The most frequent is soon after its start."""
    generator = random.Random(seed)
    return [min(1 + int(generator.expovariate(0.1)), 60) for _ in range(ROUNDS)]


class Load:
    """Clients that ask again and again until the process is killed."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        """One entry for each answer whose end was seen."""

    @contextlib.contextmanager
    def on(self, proxy: Mitmdump, answers: int) -> Iterator[None]:
        """Ask from before the body on. After it, wait for this number of answers, and kill the process."""
        before = len(self.answers)
        workers = [threading.Thread(target=self._work, args=[proxy]) for _ in range(4)]
        for worker in workers:
            worker.start()
        try:
            yield
            poll_until(lambda: len(self.answers) >= before + answers, LONG, what=f"{answers} answers")
        finally:
            kill(proxy)
            for worker in workers:
                worker.join(LONG)

    def _work(self, proxy: Mitmdump) -> None:
        with contextlib.suppress(Exception):  # the process was killed
            while True:
                ask(proxy)
                self.answers.append(1)

    def assert_recorded(self, rows: Sequence[Row], usages: Sequence[Row]) -> None:
        """Every answer that was seen is there, once, and what else has ended was ended by the next process."""
        completed = {str(row["id"]) for row in rows if row["status"] == "completed"}
        assert len(completed) >= len(self.answers)
        assert {row["error_type"] for row in rows if str(row["id"]) not in completed} <= {"process_ended"}
        ids = [str(row["interception_id"]) for row in usages]
        assert len(ids) == len(set(ids)) and completed <= set(ids)


@pytest.mark.timeout(60 + 60 * ROUNDS)
@pytest.mark.parametrize("away", [False, True], ids=["the database is there", "the database is away"])
def test_every_answer_whose_end_was_seen_is_there_after_kills_under_load(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, away: bool
) -> None:
    upstream.answer(*[whole()] * 1_000 * ROUNDS)
    proxy = mitmdump(config=config(upstream.port))
    load = Load()
    for moment in random_moments("sqlite"):
        with locked(proxy.database) if away else contextlib.nullcontext(), load.on(proxy, moment):
            pass
        proxy = mitmdump(config=config(upstream.port), folder=proxy.folder)
        emptied(proxy)

    def all_ended() -> list[Row] | None:
        rows = proxy.rows("aibridge_interceptions")
        return rows if all(row["ended_at"] is not None for row in rows) else None

    rows = poll_until(all_ended, LONG, what="the end of every interception")
    load.assert_recorded(rows, query(proxy.database, "select * from aibridge_token_usages"))


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
