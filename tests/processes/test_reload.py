"""A reload of `main.py`, as saving it causes: traffic goes on, and nothing is lost or recorded twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.conftest import StartMitmdump
from tests.integration import sockets
from tests.integration.answers import BEGUN, PATH, REQUEST, SIMPLE, ask, begin, config, held, is_refused, whole
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.turns import CONNECTED, Turns, call, configuration, program, recorded, text
from tests.support import frames
from tests.support.client import RawHttp1
from tests.support.polling import poll_until
from tests.support.reloading import copy_package, reload
from tests.support.upstream import Gate, ScriptedUpstream, unused_port

RELOADS = 5


@pytest.fixture
def provider() -> Iterator[sockets.Provider]:
    found = sockets.Provider()
    with sockets.served(found.serve) as found.port:
        yield found


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return copy_package(tmp_path / "copy")


def test_a_reload_loses_and_doubles_nothing(mitmdump: StartMitmdump, upstream: ScriptedUpstream, script: Path) -> None:
    metrics = f"http://127.0.0.1:{unused_port()}"
    more = f"metrics: {{listen: '{metrics.removeprefix('http://')}'}}"
    proxy = mitmdump(config=config(upstream.port, more), script=script)
    process = psutil.Process(proxy.pid)
    upstream.answer(whole())
    ask(proxy)
    threads = 0
    for times in range(1, RELOADS + 1):
        gate = Gate()
        upstream.answer(held(gate), whole(), whole())
        with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
            begin(client)
            reload(proxy, script, times)
            ask(proxy)
            gate.open()
            assert BEGUN + client.read_body() == SIMPLE.body
            client.request("POST", PATH, body=REQUEST)
            client.read_head()
            assert client.read_body() == SIMPLE.body, "a connection outlives the reload"
        assert len(wait_for_ended(proxy, 1 + 3 * times)) == 1 + 3 * times
        assert httpx.get(f"{metrics}/healthz", trust_env=False).status_code == 200
        threads = threads or process.num_threads()
    poll_until(lambda: process.num_threads() <= threads, what="no thread more than after the first reload")
    rows = proxy.rows("aibridge_interceptions")
    assert [row["status"] for row in rows] == ["completed"] * (1 + 3 * RELOADS)
    usages = proxy.rows("aibridge_token_usages")
    assert sorted(usage["interception_id"] for usage in usages) == sorted(row["id"] for row in rows)
    proxy.terminate()
    assert proxy.wait() == 0


def test_an_answer_in_flight_at_a_reload_is_waited_for_at_the_end(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, script: Path
) -> None:
    proxy = mitmdump(config=config(upstream.port), script=script)
    gate = Gate()
    upstream.answer(held(gate))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        begin(client)
        reload(proxy, script, 1)
        proxy.terminate()
        poll_until(lambda: is_refused(proxy.port), what="new connections being refused")
        assert proxy.running
        gate.open()
        assert BEGUN + client.read_body() == SIMPLE.body
    assert proxy.wait() == 0
    [row] = proxy.rows("aibridge_interceptions")
    assert row["status"] == "completed"


def test_a_stream_that_began_before_a_reload_is_recorded_when_its_client_hangs_up(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, script: Path
) -> None:
    proxy = mitmdump(config=config(upstream.port), script=script)
    upstream.answer(held(Gate()))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        begin(client)
        reload(proxy, script, 1)
    [row] = wait_for_ended(proxy, 1)
    assert (row["status"], row["error_type"]) == ("failed", "client_disconnected")
    [usage] = proxy.rows("aibridge_token_usages")
    assert (usage["interception_id"], usage["completeness"]) == (row["id"], "partial")
    [prompt] = proxy.rows("aibridge_user_prompts")
    assert prompt["interception_id"] == row["id"]


def test_a_reload_during_a_drain_is_drained_too(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, script: Path
) -> None:
    """A connection that is open may send a request to the bridge that the reload has made."""
    proxy = mitmdump(config=config(upstream.port), script=script)
    first, second = Gate(), Gate()
    upstream.answer(held(first), whole(), held(second))
    with (
        RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as before,
        RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as after,
    ):
        begin(before)
        after.request("POST", PATH, body=REQUEST)
        after.read_head()
        assert after.read_body() == SIMPLE.body
        proxy.terminate()
        proxy.wait_for_log("draining")
        reload(proxy, script, 1)
        begin(after)
        first.open()
        assert BEGUN + before.read_body() == SIMPLE.body
        second.open()
        assert BEGUN + after.read_body() == SIMPLE.body
    assert proxy.wait() == 0
    assert [row["status"] for row in proxy.rows("aibridge_interceptions")] == ["completed"] * 3


def test_a_reload_with_a_configuration_that_has_become_wrong_ends(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, script: Path
) -> None:
    proxy = mitmdump(config=config(upstream.port), script=script)
    (proxy.folder / "aibridge.yaml").write_text("nonsense: 1\n")
    reload(proxy, script, 1)
    proxy.wait()
    assert "aibridge.yaml: nonsense" in proxy.log
    assert is_refused(proxy.port)


def test_a_socket_outlives_a_reload_and_what_follows_is_recorded(
    mitmdump: StartMitmdump, provider: sockets.Provider, script: Path
) -> None:
    process = mitmdump(config=sockets.config(provider.port), script=script)
    events = frames.events(sockets.SIMPLE)
    with sockets.through(process) as client:
        for times in range(3):
            if times:
                reload(process, script, times)
            provider.answer(*sockets.text(*events))
            client.send(frames.create(sockets.SIMPLE).decode())
            sockets.read(client, len(events))
            assert [row["status"] for row in process.rows("aibridge_interceptions")] == ["completed"] * (times + 1)


def test_a_reload_serves_on_with_the_tools(mitmdump: StartMitmdump, upstream: ScriptedUpstream, script: Path) -> None:
    proxy = mitmdump(config=configuration(upstream.url, program()), script=script)
    proxy.wait_for_log(CONNECTED)
    before = proxy.children()
    reload(proxy, script, 1)
    proxy.wait_for_log(rf"(?s){CONNECTED}.*{CONNECTED}", timeout=20)
    poll_until(lambda: not any(child.is_running() for child in before), what="the end of the first programs")
    turns = Turns("messages", [call("echo", text="0")], [text("Done.")])
    upstream.answer(*turns.answers(streaming=True))
    with Client(proxy, turns.host) as client:
        turns.check(client.post(turns.path, turns.request(streaming=True)).body, streaming=True)
    assert recorded(proxy).outcome == ("completed", 2, None)
