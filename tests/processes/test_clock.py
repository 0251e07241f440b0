"""A clock that jumps, forwards and back: nothing that is open is ended, and nothing is missing, doubled or refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import StartMitmdump
from tests.integration.answers import PATH, REQUEST, ask, begin, config, held, whole
from tests.integration.exchanges import ANTHROPIC, Client
from tests.processes.load import IN_SOAK, LONG
from tests.support.client import RawHttp1
from tests.support.database import query
from tests.support.polling import poll_until
from tests.support.upstream import Gate, ScriptedUpstream

LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")
MISSING = "libfaketime is not installed. On Debian: apt-get install faketime"
STATES = "select status, error_type from aibridge_interceptions order by status"
RUNNING = {"status": None, "error_type": None}
COMPLETED = {"status": "completed", "error_type": None}


class Clock:
    """The clock of all processes that have its environment. What measures durations does not jump."""

    def __init__(self, folder: Path) -> None:
        found = [path for pattern in LIBRARIES for path in sorted(Path("/").glob(pattern.lstrip("/")))]
        if not found:
            pytest.skip(MISSING)
        self._file = folder / "clock"
        self.env = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",  # else Python compiles every module anew
        }
        self.set(timedelta())

    def set(self, ahead: timedelta) -> None:
        """Let the clock be ahead of the machine's."""
        new = self._file.with_name("clock.new")
        new.write_text(f"{ahead.total_seconds():+.0f}")
        new.replace(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.mark.parametrize("hours", [1, pytest.param(-1, marks=IN_SOAK)])
def test_what_living_processes_have_open_stays_open_after_the_clock_jumped(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, tmp_path: Path, clock: Clock, hours: int
) -> None:
    """Another process starts right after the jump, before the first one has given its next sign of life."""
    gate = Gate()
    upstream.answer(held(gate), whole(), whole())
    database = tmp_path / "aibridge.db"
    place = config(upstream.port, f"database: 'sqlite:///{database}'")
    first = mitmdump(config=place, env=clock.env)
    with RawHttp1.through_proxy(first, ANTHROPIC, 443) as client:
        begin(client)
        poll_until(lambda: query(database, STATES), LONG, what="an interception")
        clock.set(timedelta(hours=hours))
        second = mitmdump(config=place, env=clock.env)
        ask(second)
        ask(first)
        poll_until(lambda: query(database, STATES) == [RUNNING, COMPLETED, COMPLETED], LONG, what="two completed ones")
        gate.open()
        client.read_body()
    poll_until(lambda: query(database, STATES) == [COMPLETED] * 3, LONG, what="three completed interceptions")


def test_rows_and_budgets_are_right_after_the_clock_was_a_day_ahead_and_was_set_back(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, tmp_path: Path, clock: Clock
) -> None:
    """Each day has room for three requests. What was spent under the wrong date counts on that day only."""
    gate = Gate()
    upstream.answer(whole(), whole(), held(gate), *[whole()] * 2)
    database = tmp_path / "aibridge.db"
    budget = "budgets: [{name: daily, per: all, period: day, requests: 3}]"
    place = config(upstream.port, f"database: 'sqlite:///{database}'\n{budget}")
    now = datetime.now(UTC)
    # The test's own day has hours left, also where it runs right before midnight.
    today = timedelta() if now.hour < 22 else timedelta(hours=2)
    clock.set(today + timedelta(days=1))
    proxy = mitmdump(config=place, env=clock.env)

    def status() -> int:
        with Client(proxy, ANTHROPIC) as client:
            return client.post(PATH, REQUEST).status

    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        ask(proxy, 2)
        begin(client)
        assert status() == 403
        clock.set(today)
        gate.open()
        client.read_body()
    ask(proxy, 2)
    clock.set(today + timedelta(days=1))
    assert status() == 403
    refused = {"status": "failed", "error_type": "budget_exceeded"}
    expected = [*[COMPLETED] * 5, *[refused] * 2]
    poll_until(lambda: query(database, STATES) == expected, LONG, what="the end of seven interceptions")
    rows = query(database, "select * from aibridge_interceptions where status = 'completed'")
    assert all(row["time_to_first_byte_ms"] >= 0 for row in rows)
    children = "select created_at from {} where interception_id = ?"
    for row in rows:
        times = [row["started_at"]]
        for table in ("aibridge_user_prompts", "aibridge_token_usages", "aibridge_answers"):
            [child] = query(database, children.format(table), row["id"])
            times.append(child["created_at"])
        assert all(before <= after for before, after in pairwise([*times, row["ended_at"]]))
