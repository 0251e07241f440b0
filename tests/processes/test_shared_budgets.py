"""Two processes on one database and one budget: by how much its limit may be exceeded, and that it holds then."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import StartMitmdump
from tests.support import fixtures
from tests.support.client import gateway_client
from tests.support.databases import Database
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, Gate, Pause, Request, ScriptedUpstream

StartTwo = Callable[[str], Sequence[RunningProxy]]

SIMPLE = fixtures.case("messages/simple/blocking")
JSON = [("content-type", "application/json")]
COST = 0.000336
"""US dollars for the answer of this fixture."""
BOUND = 1.0
"""Seconds. What a process knows of the other one is at most that old, as docs/budgets.md says."""
ALLOWANCE = 30.0
"""Seconds for what the documentation leaves open: the time of the queries, here on a machine that is busy."""
CLIENTS = 3
LIMIT = 60
LONG = 60.0


@pytest.fixture
def start_two(mitmdump: StartMitmdump, upstream: ScriptedUpstream, database: Database, tmp_path: Path) -> StartTwo:
    def start(limit: str) -> Sequence[RunningProxy]:
        config = (
            f"providers: [{{name: other, type: anthropic, base_url: '{upstream.url}', price_as: anthropic}}]\n"
            f"budgets: [{{name: b, per: all, period: month, {limit}}}]\ndatabase: '{database.url}'"
        )
        folders = [tmp_path / "one", tmp_path / "two"]
        for folder in folders:
            folder.mkdir()
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda folder: mitmdump(config=config, folder=folder), folders))

    return start


def ask(proxy: RunningProxy) -> int:
    with gateway_client(proxy, "/other", timeout=LONG) as client:
        return client.post("/v1/messages", content=SIMPLE.request).status_code


def test_of_many_at_once_each_process_admits_at_most_what_the_limit_has_room_for(
    start_two: StartTwo, upstream: ScriptedUpstream
) -> None:
    limit, gate = 3, Gate()
    proxies = start_two(f"requests: {limit}")
    upstream.handler = lambda _: Answer(200, JSON, [Pause(gate), SIMPLE.body])
    with ThreadPoolExecutor(20) as threads:
        asked = [threads.submit(ask, proxy) for proxy in list(proxies) * 10]
        poll_until(lambda: sum(each.done() for each in asked) >= 20 - 2 * limit, LONG, what="refusals")
        gate.open()
        statuses = [each.result() for each in asked]
    admitted = len(upstream.requests)
    assert limit <= admitted <= 2 * limit
    assert sorted(statuses) == [200] * admitted + [403] * (20 - admitted)


@pytest.mark.parametrize("limit", [f"requests: {LIMIT}", f"usd: {LIMIT * COST:.6f}"])
def test_no_request_passes_later_than_the_documented_time_after_the_limit_was_reached(
    start_two: StartTwo, upstream: ScriptedUpstream, database: Database, limit: str
) -> None:
    times: list[float] = []

    def answer(_: Request) -> Answer:
        times.append(time.monotonic())
        return Answer(200, JSON, SIMPLE.body, framing="length")

    def ask_until_refused(proxy: RunningProxy) -> None:
        # Without a history, the first requests reserve more than they use, so they may be refused earlier.
        with gateway_client(proxy, "/other", timeout=LONG) as client:
            while client.post("/v1/messages", content=SIMPLE.request).status_code == 200 or len(times) < LIMIT:
                pass

    upstream.handler = answer
    proxies = start_two(limit)
    with ThreadPoolExecutor(2 * CLIENTS) as threads:
        list(threads.map(ask_until_refused, list(proxies) * CLIENTS))
    assert times[-1] - times[LIMIT - 1] <= BOUND + ALLOWANCE
    admitted = len(times)
    assert [ask(proxy) for proxy in proxies] == [403, 403]
    assert len(times) == admitted
    recorded = "select count(*) as n from aibridge_interceptions where turns = 1 and status = 'completed'"
    poll_until(lambda: database.query(recorded) == [{"n": admitted}], LONG, what="the rows of all admitted requests")
