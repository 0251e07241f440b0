"""Processes that are killed at random moments under load, and what the database has to contain afterwards."""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import count

from tests.integration.answers import PATH, REQUEST, SIMPLE
from tests.integration.exchanges import ANTHROPIC, Client
from tests.support.database import Row
from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until

LONG = 60.0
SOAK = "SOAK_KILLS" in os.environ
ROUNDS = int(os.environ.get("SOAK_KILLS", "2"))
"""Kills of each test under load. `make soak` has more."""
CLIENTS = 4
INTERCEPTIONS = """
select status, error_type, ended_at,
    (select min(prompt) from aibridge_user_prompts as kept where kept.interception_id = interception.id) as prompt,
    (select count(*) from aibridge_user_prompts as kept where kept.interception_id = interception.id) as prompts,
    (select count(*) from aibridge_token_usages as kept where kept.interception_id = interception.id) as usages,
    (select count(*) from aibridge_answers as kept where kept.interception_id = interception.id) as answers
from aibridge_interceptions as interception
"""
HOURLY = "select coalesce(sum(interceptions), 0) as n, coalesce(sum(failed), 0) as failed from aibridge_hourly_usage"

Query = Callable[[str], list[Row]]
Print = Callable[[str], None]


def kill(proxy: Mitmdump) -> None:
    proxy.kill()
    assert proxy.wait() == -9


@dataclass(frozen=True)
class Counts:
    rounds: int
    answers: int
    """Whose end a client saw."""
    broken: int
    """Calls that failed before their process was killed."""
    missing: int
    """Answers whose end a client saw, without their interception and each of its rows."""
    doubled: int
    """Interceptions that are there twice, or one of their rows."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.rounds} kills, {self.answers} answers seen, {self.broken} client calls broken before a kill, "
            f"{self.missing} answered interceptions missing, {self.doubled} doubled"
        )


class Load:
    """Clients that ask again and again until the process is killed. Each request has a prompt of its own."""

    def __init__(self, say: Print) -> None:
        """`say` gets a line for each round."""
        self.answers: list[str] = []
        """The prompts of the answers whose end was seen."""
        self.broken: list[Exception] = []
        """What ended a client before its process was killed."""
        self.rounds = 0
        self._say = say
        self._numbers = count(1)

    @contextmanager
    def on(self, proxy: Mitmdump, answers: int) -> Iterator[None]:
        """Ask from before the body on. After it, wait for this number of answers, and kill the process."""
        before, killed = len(self.answers), threading.Event()
        workers = [threading.Thread(target=self._work, args=[proxy, killed]) for _ in range(CLIENTS)]
        for worker in workers:
            worker.start()
        try:
            yield
            poll_until(lambda: len(self.answers) >= before + answers, LONG, what=f"{answers} answers")
        finally:
            killed.set()
            kill(proxy)
            for worker in workers:
                worker.join(LONG)
        self.rounds += 1
        self._say(f"kill {self.rounds} of {ROUNDS} after {len(self.answers) - before} answers")

    def _work(self, proxy: Mitmdump, killed: threading.Event) -> None:
        try:
            while True:
                prompt = f"Question {next(self._numbers)}"
                request = json.loads(REQUEST)
                request["messages"][0]["content"] = prompt
                with Client(proxy, ANTHROPIC) as client:
                    assert client.post(PATH, json.dumps(request).encode()).body == SIMPLE.body
                self.answers.append(prompt)
        except Exception as e:  # noqa: BLE001 (the test reads it)
            if not killed.is_set():
                self.broken.append(e)

    def count(self, query: Query) -> Counts:
        """Wait for the end of every interception, and compare them with what the clients saw."""

        def all_ended() -> list[Row] | None:
            rows = query(INTERCEPTIONS)
            return rows if all(row["ended_at"] is not None for row in rows) else None

        rows = poll_until(all_ended, LONG, what="the end of every interception")
        completed = [row for row in rows if row["status"] == "completed"]
        whole = {row["prompt"] for row in completed if row["prompts"] and row["usages"] and row["answers"]}
        doubled = [row for row in rows if max(row["prompts"], row["usages"], row["answers"]) > 1]
        repeated = [prompt for prompt, times in Counter(row["prompt"] for row in completed).items() if times > 1]
        assert {row["error_type"] for row in rows if row["status"] == "failed"} <= {"process_ended"}
        [hourly] = query(HOURLY)
        assert (int(hourly["n"]), int(hourly["failed"])) == (len(rows), len(rows) - len(completed))
        missing = set(self.answers) - whole
        counts = Counts(self.rounds, len(self.answers), len(self.broken), len(missing), len(doubled) + len(repeated))
        self._say(f"{counts}; {len(rows) - len(completed)} interceptions ended by the next process")
        return counts


def random_moments(seed: str) -> list[int]:
    """Return after how many answers the process of each round is killed. The most frequent is soon after its start."""
    generator = random.Random(seed)
    return [min(1 + int(generator.expovariate(0.1)), 60) for _ in range(ROUNDS)]
