"""Clients that ask again and again while a test does something to the database, and what they have to find in it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.answers import ask
from tests.support.databases import Database
from tests.support.polling import poll_until
from tests.support.running import RunningProxy

LONG = 60.0
OUTAGE = float(os.environ.get("SOAK_OUTAGE", "0"))
"""Seconds that an outage lasts at least. `make soak` has longer ones."""
TIMEOUT = pytest.mark.timeout(120 + 10 * OUTAGE)
"""In seconds, for tests with at most ten outages."""
IN_SOAK = pytest.mark.skipif(not OUTAGE, reason="takes long: `make soak` runs it")
CLIENTS = 2


class Load:
    """Clients that ask until the test has seen enough. Each request has a connection of its own."""

    def __init__(self, *, tries: bool = False) -> None:
        """`tries`: a client whose request fails asks again, as real ones do."""
        self._tries = tries
        self.failures: list[OSError] = []
        """Requests that failed and were made again."""
        self.answers: list[int] = []
        """One entry for each answer whose end was seen."""
        self.broken: list[Exception] = []
        """What ended a client."""
        self._enough = threading.Event()

    @contextmanager
    def on(self, *proxies: RunningProxy, clients: int = CLIENTS) -> Iterator[None]:
        """Ask these proxies, with so many clients each, until the end of the body."""
        self._enough.clear()
        workers = [threading.Thread(target=self._work, args=[proxy]) for proxy in proxies for _ in range(clients)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            self._enough.set()
            for worker in workers:
                worker.join(LONG)

    def _work(self, proxy: RunningProxy) -> None:
        try:
            while not self._enough.is_set():
                try:
                    ask(proxy)
                except OSError as e:
                    if not self._tries:
                        raise
                    self.failures.append(e)
                else:
                    self.answers.append(1)
        except Exception as e:  # noqa: BLE001 (the test reads it)
            self.broken.append(e)

    def wait_for(self, answers: int, *, seconds: float = 0.0) -> None:
        """Wait for so many more answers, and until at least so many seconds have passed."""
        wanted, until = len(self.answers) + answers, time.monotonic() + seconds

        def are_there() -> bool:
            assert not self.broken, self.broken
            return len(self.answers) >= wanted and time.monotonic() >= until

        poll_until(are_there, LONG + seconds, what=f"{answers} answers")

    def last(self, answers: int = 10) -> None:
        """Wait for so many answers during an outage, and as long as outages last."""
        self.wait_for(answers, seconds=OUTAGE)

    def assert_recorded(self, database: Database) -> None:
        """No client call was broken. Each answer is there, once, with its children."""
        assert not self.broken, self.broken
        wanted = len(self.answers)
        completed = "select count(*) as n from aibridge_interceptions where status = 'completed'"
        poll_until(lambda: database.query(completed)[0]["n"] >= wanted, LONG, what=f"{wanted} completed interceptions")
        states = "select status, error_type, count(*) as n from aibridge_interceptions group by status, error_type"
        assert database.query(states) == [{"status": "completed", "error_type": None, "n": wanted}]
        for table in ("aibridge_token_usages", "aibridge_user_prompts", "aibridge_answers"):
            counted = f"select count(*) as n, count(distinct interception_id) as of from {table}"
            assert database.query(counted) == [{"n": wanted, "of": wanted}], table
        hourly = "select sum(interceptions) as n, sum(failed) as failed from aibridge_hourly_usage"
        assert [int(found) for found in database.query(hourly)[0].values()] == [wanted, 0]
