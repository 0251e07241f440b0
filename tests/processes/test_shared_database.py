"""Several processes on one database: they start and write at once, and each answer is recorded once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import StartMitmdump
from tests.integration.answers import ask, config, whole
from tests.processes.load import LONG, OUTAGE
from tests.support.databases import Database, SqliteDatabase
from tests.support.polling import poll_until
from tests.support.upstream import ScriptedUpstream

ANSWERS = 5


@pytest.mark.timeout(300)
@pytest.mark.parametrize("processes", [2, 10])
def test_processes_that_start_and_write_at_once_record_each_answer_once(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, database: Database, tmp_path: Path, processes: int
) -> None:
    few = isinstance(database, SqliteDatabase)
    if few == (processes == 10) and not OUTAGE:
        pytest.skip("takes long: `make soak` runs it")
    upstream.answer(*[whole()] * ANSWERS * processes)
    place = config(upstream.port, f"database: '{database.url}'")
    folders = [tmp_path / f"process-{number}" for number in range(processes)]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(processes) as pool:
        proxies = list(pool.map(lambda folder: mitmdump(config=place, folder=folder), folders))
        list(pool.map(lambda proxy: ask(proxy, ANSWERS), proxies))
    completed = "select count(*) as n from aibridge_interceptions where status = 'completed'"
    wanted = [{"n": ANSWERS * processes}]
    poll_until(lambda: database.query(completed) == wanted, LONG, what="all completed interceptions")
    for table in ("aibridge_token_usages", "aibridge_user_prompts"):
        counted = f"select count(*) as n, count(distinct interception_id) as of from {table}"
        assert database.query(counted) == [{"n": ANSWERS * processes, "of": ANSWERS * processes}]
    assert database.query("select count(distinct instance_id) as n from aibridge_interceptions") == [{"n": processes}]
    assert not any("records lost" in proxy.log for proxy in proxies)
    if not few:  # ten processes may keep a file locked for longer than one of them waits
        assert not any("cannot be written to" in proxy.log for proxy in proxies)
