"""`aibridge report` and `aibridge sessions` as processes of their own, while a proxy writes to the same database."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartMitmdump
from tests.integration.answers import ask, config, whole
from tests.support.databases import Database, SqliteDatabase
from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.upstream import ScriptedUpstream

LONG = 60.0
COMMAND = Path(sys.executable).with_name("aibridge")
OUTPUT = 19
"""Tokens of an answer."""
REPORTS = ("weekly", "sessions", "users")
"""From roll-ups, and from rows."""


def read(database: Database, *arguments: str) -> Any:
    """Return the JSON that a command prints. It says nothing but which database it reads."""
    command = [str(COMMAND), *arguments, "--json", "--database", database.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LONG)
    assert done.returncode == 0, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("database: ")
    return json.loads(done.stdout)


@contextmanager
def asking(proxy: Mitmdump, answered: list[int]) -> Iterator[None]:
    """Ask again and again during the body. `answered` gets one entry for each answer."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            ask(proxy)
            answered.append(1)

    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(work)
        try:
            yield
        finally:
            over.set()
        worker.result(2 * LONG)


def completed(database: Database) -> int:
    [row] = database.query("select count(*) as n from aibridge_interceptions where status = 'completed'")
    return int(row["n"])


@pytest.mark.timeout(600)
def test_reports_and_sessions_are_read_while_a_proxy_writes(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, database: Database
) -> None:
    upstream.answer(*[whole()] * 5_000)
    proxy = mitmdump(config=config(upstream.port, f"database: '{database.url}'"))
    ask(proxy)
    poll_until(lambda: completed(database), LONG, what="the first row")
    answered, seen = [1], [1]
    with asking(proxy, answered):
        for kind in REPORTS:
            before = len(answered)
            totals = read(database, "report", kind)["totals"]
            seen.append(totals["interceptions"])
            assert totals["failed"] == 0
            # The last row of an answer's tokens may be written just before its end.
            assert seen[-1] * OUTPUT <= totals["output_tokens"] <= (seen[-1] + 1) * OUTPUT
            [session] = read(database, "sessions", "--limit", "1")["rows"]
            shown = read(database, "sessions", "show", session["session_id"])
            assert [row["session_id"] for row in shown["rows"]][:1] == [session["session_id"]]
            poll_until(lambda: len(answered) > before, LONG, what="further answers")  # noqa: B023
    poll_until(lambda: completed(database) == len(answered), LONG, what="all rows")
    assert seen == sorted(seen)
    assert [read(database, "report", kind)["totals"]["interceptions"] for kind in REPORTS] == [len(answered)] * 3
    assert "cannot be written to" not in proxy.log


def test_reading_writes_nothing_to_a_file(mitmdump: StartMitmdump, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.answer(whole())
    database = SqliteDatabase(tmp_path / "aibridge.db")
    proxy = mitmdump(config=config(upstream.port, f"database: '{database.url}'"))
    ask(proxy)
    proxy.terminate()
    proxy.wait()
    before = database.path.read_bytes()
    for arguments in (["report"], ["report", "tools"], ["sessions"], ["tokens", "list"]):
        read(database, *arguments)
    assert database.path.read_bytes() == before
