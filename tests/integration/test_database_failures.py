"""A database that cannot be written to: whether the traffic goes on, and that nothing is lost when it can be again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.conftest import RunToExit, StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client, wait_for_ended
from tests.support.client import RawHttp1
from tests.support.database import Table, locked, query
from tests.support.fixtures import case
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, Gate, Pause, ScriptedUpstream, unused_port

PATH = "/v1/messages"
SIMPLE = case("messages/simple/streaming")
REQUEST = SIMPLE.request
EVENTS = [event + b"\n\n" for event in SIMPLE.body.split(b"\n\n") if event]
LONG = 60.0


def config(port: int, recording: str) -> str:
    return (
        f"recording: {recording}\n"
        "providers:\n"
        f"  - {{name: anthropic, type: anthropic, base_url: 'https://localhost:{port}'}}\n"
        f"  - {{name: openai, type: openai, base_url: 'https://localhost:{port}/v1'}}\n"
    )


def ask(proxy: RunningProxy, n: int = 1) -> None:
    """Have requests answered, whole and unchanged."""
    with Client(proxy, ANTHROPIC) as client:
        for _ in range(n):
            seen = client.post(PATH, REQUEST)
            assert (seen.status, seen.body) == (200, SIMPLE.body)


# --- while it runs


@pytest.mark.parametrize("durable", ["true", "false"])
def test_traffic_goes_on_while_the_database_is_locked_and_nothing_is_lost(
    start_proxy: StartProxy, upstream: ScriptedUpstream, durable: str
) -> None:
    proxy = start_proxy(config=config(upstream.port, f"{{durable: {durable}, on_failure: open}}"))
    upstream.answer(*[Answer.event_stream(SIMPLE.body)] * 12)
    ask(proxy)
    wait_for_ended(proxy, 1)
    with locked(proxy.database):
        ask(proxy, 10)
        assert len(proxy.rows("aibridge_interceptions")) == 1
        proxy.wait_for_log("cannot be written to")
    rows = wait_for_ended(proxy, 11, LONG)
    assert [row["status"] for row in rows] == ["completed"] * 11
    assert len({row["id"] for row in rows}) == 11
    tables: tuple[Table, ...] = ("aibridge_token_usages", "aibridge_user_prompts")
    for table in tables:
        recorded = [row["interception_id"] for row in proxy.rows(table)]
        assert sorted(recorded) == sorted(row["id"] for row in rows)
    proxy.wait_for_log("can be written to again")
    ask(proxy)
    assert len(wait_for_ended(proxy, 12)) == 12
    assert "lost" not in proxy.log


def test_nothing_is_passed_on_unrecorded_where_the_configuration_says_so(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(config=config(upstream.port, "{on_failure: closed}"))
    upstream.answer(Answer.event_stream(SIMPLE.body), Answer.event_stream(SIMPLE.body))
    ask(proxy)
    with locked(proxy.database):
        for host, path in ((ANTHROPIC, PATH), (OPENAI, "/v1/chat/completions"), (OPENAI, "/v1/responses")):
            for http2 in (False, True):
                with Client(proxy, host, http2=http2) as client:
                    refused = client.post(path, REQUEST)
                assert (refused.status, refused.content_type) == (503, "application/json")
                error = json.loads(refused.body)
                assert error["error"]["message"]
                assert error.get("type") == ("error" if host == ANTHROPIC else None)
    rows = wait_for_ended(proxy, 7, LONG)
    assert [row["error_type"] for row in rows] == [None, *["recording_unavailable"] * 6]
    assert {(row["status"], row["http_status"]) for row in rows[1:]} == {("failed", None)}
    proxy.wait_for_log("can be written to again")
    ask(proxy)
    assert len(upstream.requests) == 2


def test_the_end_of_an_answer_is_kept_back_where_its_rows_cannot_be_written(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(config=config(upstream.port, "{on_failure: closed}"))
    gate = Gate()
    upstream.answer(Answer.event_stream(*EVENTS[:-1], Pause(gate), EVENTS[-1]))
    begun = b"".join(EVENTS[:-1])
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.request("POST", PATH, body=REQUEST)
        client.read_head()
        assert client.read_body_until(EVENTS[-2]) == begun
        with locked(proxy.database):
            gate.open()
            end = client.read_body()
    assert end.startswith(b"event: error\n") and b"message_stop" not in end
    [row] = wait_for_ended(proxy, 1, LONG)
    assert row["status"] == "completed", "the provider has answered, and has to be paid"


@pytest.mark.parametrize(("on_failure", "status"), [("open", 200), ("closed", 503)])
def test_readiness_and_metrics_show_that_the_database_is_away(
    start_proxy: StartProxy, upstream: ScriptedUpstream, on_failure: str, status: int
) -> None:
    address = f"127.0.0.1:{unused_port()}"
    more = f"metrics: {{listen: '{address}'}}\n"
    proxy = start_proxy(config=more + config(upstream.port, f"{{on_failure: {on_failure}}}"))

    def state() -> tuple[int, object]:
        answer = httpx.get(f"http://{address}/readyz", trust_env=False)
        return answer.status_code, answer.json()["degraded"]

    def spooled() -> float:
        text = httpx.get(f"http://{address}/metrics", trust_env=False).text
        [line] = [line for line in text.splitlines() if line.startswith("aibridge_recorder_spooled_bytes ")]
        return float(line.split()[1])

    assert (state(), spooled()) == ((200, []), 0)
    upstream.answer(*[Answer.event_stream(SIMPLE.body)] * 2)
    with locked(proxy.database):
        with Client(proxy, ANTHROPIC) as client:
            client.post(PATH, REQUEST)
        assert state() == (status, ["database"])
        assert spooled() == sum(file.stat().st_size for file in (proxy.folder / "aibridge-spool").glob("*.log")) > 0
    proxy.wait_for_log("can be written to again")
    assert (state(), spooled()) == ((200, []), 0)
    ask(proxy)


def test_what_exceeds_the_spool_is_lost_and_counted(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=config(upstream.port, "{spool: {path: small-spool, max_bytes: 4KiB}}"))
    upstream.answer(*[Answer.event_stream(SIMPLE.body)] * 12)
    ask(proxy)
    wait_for_ended(proxy, 1)
    with locked(proxy.database):
        ask(proxy, 10)
        proxy.wait_for_log("records lost so far: the spool is full")
        spool = proxy.folder / "small-spool"
        assert 0 < sum(file.stat().st_size for file in spool.iterdir()) <= 4096
    proxy.wait_for_log("can be written to again")
    ask(proxy)
    assert 2 < len(wait_for_ended(proxy, 3)) < 12


def test_a_spool_that_cannot_be_made_stops_the_start(run_to_exit: RunToExit, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.write_text("no folder")
    code, output = run_to_exit(config=f"recording: {{spool: {{path: '{place}'}}}}\nmetrics: {{listen: null}}\n")
    assert code == 1
    [message] = [line for line in output.splitlines() if "cannot start" in line]
    assert "recording.spool.path" in message and str(place) in message


@pytest.mark.parametrize("files", ["aibridge.db", "aibridge.db*"])
def test_a_file_that_is_deleted_while_it_is_in_use_is_made_anew(
    start_proxy: StartProxy, upstream: ScriptedUpstream, files: str
) -> None:
    proxy = start_proxy(config=config(upstream.port, "{}"))
    upstream.answer(*[Answer.event_stream(SIMPLE.body)] * 4)
    ask(proxy)
    wait_for_ended(proxy, 1)
    for file in proxy.folder.glob(files):
        file.unlink()
    ask(proxy, 3)
    proxy.wait_for_log("deleted or replaced")
    poll_until(proxy.database.exists, what="a new file")
    rows = wait_for_ended(proxy, 3, LONG)
    assert [row["status"] for row in rows] == ["completed"] * 3
    assert len(proxy.rows("aibridge_token_usages")) == 3


# --- when it starts


def a_folder(place: Path) -> Path:
    place.mkdir()
    return place


def in_no_folder(place: Path) -> Path:
    return place / "nowhere" / "aibridge.db"


def below_a_file(place: Path) -> Path:
    place.write_text("")
    return place / "aibridge.db"


def no_database(place: Path) -> Path:
    place.write_bytes(b"This is a letter, and no database at all. " * 100)
    return place


def cut_off(place: Path) -> Path:
    with closing(sqlite3.connect(place)) as connection:
        connection.executescript("create table t (a); insert into t values (zeroblob(100000));")
    content = bytearray(place.read_bytes())
    content[100:4096] = b"\xff" * 3996
    place.write_bytes(content)
    return place


def of_another_program(place: Path) -> Path:
    with closing(sqlite3.connect(place)) as connection:
        connection.execute("create table aibridge_interceptions (colour text)")
    return place


def read_only(place: Path) -> Path:
    return Path("/proc/self") / f"{place.name}.db"  # not writable, not even for root


UNUSABLE = [
    a_folder,
    in_no_folder,
    below_a_file,
    no_database,
    cut_off,
    of_another_program,
    read_only,
]


@pytest.mark.parametrize("make", UNUSABLE)
def test_a_database_that_cannot_be_used_stops_the_start(
    run_to_exit: RunToExit, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    database = make(tmp_path / "place")
    code, output = run_to_exit(config=f"database: sqlite:///{database}\nmetrics: {{listen: null}}\n")
    assert code == 1
    [message] = [line for line in output.splitlines() if "cannot start" in line]
    assert str(database) in message
    assert "Traceback" not in output


def test_a_start_that_fails_leaves_a_strange_database_as_it_was(run_to_exit: RunToExit, tmp_path: Path) -> None:
    database = of_another_program(tmp_path / "place")
    before = query(database, "select * from sqlite_master")
    assert run_to_exit(config=f"database: sqlite:///{database}\nmetrics: {{listen: null}}\n").code == 1
    assert query(database, "select * from sqlite_master") == before


def test_a_locked_database_stops_the_start(run_to_exit: RunToExit, tmp_path: Path) -> None:
    database = tmp_path / "aibridge.db"
    with locked(database):
        code, output = run_to_exit(config=f"database: sqlite:///{database}\nmetrics: {{listen: null}}\n")
    assert code == 1
    [message] = [line for line in output.splitlines() if "cannot start" in line]
    assert str(database) in message and "locked" in message
    assert "Traceback" not in output
