"""A reload, by saving `main.py` or by SIGHUP: traffic goes on, and nothing is lost or recorded twice."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.conftest import StartMitmdump
from tests.integration import sockets
from tests.integration.answers import BEGUN, PATH, REQUEST, SIMPLE, ask, begin, config, held, is_refused, whole
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.turns import CONNECTED, Turns, call, configuration, program, recorded, text
from tests.processes.load import Load
from tests.support import frames
from tests.support.client import RawHttp1
from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.reloading import copy_package, hang_up, reload
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


def again_by_the_script(proxy: Mitmdump, script: Path, times: int) -> None:
    reload(proxy, script, times)


def again_by_the_signal(proxy: Mitmdump, script: Path, times: int) -> None:
    hang_up(proxy)


AGAIN = pytest.mark.parametrize("again", [again_by_the_script, again_by_the_signal])
Again = Callable[[Mitmdump, Path, int], None]
WRONG = {
    "unknown key": ("nonsense: 1", "nonsense"),
    "syntax": ("actor: {default: 'x", "line"),
    "no file": (None, "aibridge.yaml"),
    "database": ("database: sqlite:////nowhere/at/all.db", "/nowhere/at/all.db"),
    "port in use": ("metrics: {listen: '127.0.0.1:TAKEN'}", "metrics.listen"),
    "dumps": ("dump_dir: /dev/null/dumps", "dump_dir"),
}


@AGAIN
def test_with_a_configuration_that_has_become_wrong_the_old_one_goes_on(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, script: Path, again: Again
) -> None:
    metrics = f"http://127.0.0.1:{unused_port()}"
    right = config(upstream.port, f"metrics: {{listen: '{metrics.removeprefix('http://')}'}}")
    proxy = mitmdump(config=right, script=script)
    file = proxy.folder / "aibridge.yaml"
    gate, times = Gate(), 0
    upstream.answer(held(gate))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client, socket.create_server(("127.0.0.1", 0)) as taken:
        begin(client)
        for text, said in WRONG.values():
            if text is None:
                file.unlink()
            else:
                file.write_text(text.replace("TAKEN", str(taken.getsockname()[1])))
            times += 1
            again(proxy, script, times)
            proxy.wait_for_log(rf"the configuration is not reloaded, the old one stays in use: .*{re.escape(said)}")
            assert httpx.get(f"{metrics}/readyz", trust_env=False).status_code == 200
            upstream.answer(whole())
            ask(proxy)
        file.write_text(right)
        again(proxy, script, times + 1)
        gate.open()
        assert BEGUN + client.read_body() == SIMPLE.body
    assert [row["status"] for row in wait_for_ended(proxy, 1 + len(WRONG))] == ["completed"] * (1 + len(WRONG))
    proxy.terminate()
    assert proxy.wait() == 0


def test_a_hang_up_reads_the_configuration_again(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    """The new providers, the new address of metrics and the new time limit of a stop count."""
    first, second = (f"127.0.0.1:{unused_port()}" for _ in range(2))
    proxy = mitmdump(config=config(upstream.port, f"drain_timeout: 600\nmetrics: {{listen: '{first}'}}"))
    text = config(upstream.port, f"drain_timeout: 0.5\nmetrics: {{listen: '{second}'}}")
    upstream.answer(held(Gate()), held(Gate()))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as before:
        begin(before)
        (proxy.folder / "aibridge.yaml").write_text(text.replace("type:", "hosts: [api.renamed.example], type:"))
        hang_up(proxy)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://{first}/readyz", trust_env=False)
        assert httpx.get(f"http://{second}/readyz", trust_env=False).json()["ready"] is True
        with RawHttp1.through_proxy(proxy, "api.renamed.example", 443) as after:
            begin(after)
            proxy.terminate()
            assert proxy.wait() == 0
    rows = proxy.rows("aibridge_interceptions")
    assert [(row["status"], row["error_type"]) for row in rows] == [("failed", "shutdown")] * 2
    usages = proxy.rows("aibridge_token_usages")
    assert sorted(usage["interception_id"] for usage in usages) == sorted(row["id"] for row in rows)


def test_ten_reloads_leak_nothing(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    metrics = f"metrics: {{listen: '127.0.0.1:{unused_port()}'}}"
    budget = "budgets: [{name: all, per: all, period: day, usd: 100}]"
    proxy = mitmdump(config=configuration(upstream.url, program(), more=f"{metrics}\n{budget}\ndump_dir: dumps"))
    process = psutil.Process(proxy.pid)

    def used() -> tuple[int, int, int]:
        return process.num_threads(), process.num_fds(), len(proxy.children())

    def count(after: int) -> tuple[int, int, int]:
        """Return what is used once the programs of the last reload have connected and those before have ended."""
        poll_until(lambda: len(re.findall(CONNECTED, proxy.log)) > after, 30, what="the connection of the programs")
        poll_until(lambda: len(proxy.children()) == children, 30, what="the end of the programs before")
        return used()

    proxy.wait_for_log(CONNECTED)
    children = len(proxy.children())
    hang_up(proxy)
    threads, files, _ = count(1)
    for times in range(2, 11):
        hang_up(proxy)
        count(times)
    poll_until(lambda: process.num_threads() <= threads, 30, what="no thread more than after the first reload")
    poll_until(lambda: process.num_fds() <= files, 30, what="no file more than after the first reload")
    proxy.terminate()
    assert proxy.wait() == 0


def test_reloads_and_a_stop_under_load_lose_no_row(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    proxy = mitmdump(config=config(upstream.port))
    upstream.handler = lambda _: whole()
    load = Load()
    with load.on(proxy, clients=3):
        for _ in range(4):
            load.wait_for(5)
            hang_up(proxy)
        load.wait_for(5)
        proxy.terminate()
        assert proxy.wait() == 0
    ended = proxy.rows("aibridge_interceptions")
    assert sum(row["status"] == "completed" for row in ended) >= len(load.answers)
    assert {row["status"] for row in ended} <= {"completed", "failed"}, "every interception has its end"
    with_tokens = {usage["interception_id"] for usage in proxy.rows("aibridge_token_usages")}
    assert {row["id"] for row in ended if row["status"] == "completed"} <= with_tokens
    assert "records lost" not in proxy.log


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


def test_a_script_that_cannot_be_loaded_again_closes_the_proxy_until_it_can(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, script: Path
) -> None:
    proxy = mitmdump(config=config(upstream.port), script=script, allow_traceback=True)
    code = script.read_text()
    upstream.answer(whole())
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.request("POST", PATH, body=REQUEST)
        assert (client.read_head().status, client.read_body()) == (200, SIMPLE.body)
        script.write_text("this is no Python")
        saved = script.stat().st_mtime + 2
        os.utime(script, (saved, saved))
        proxy.wait_for_log("could not be loaded again: new connections are closed")
        client.request("POST", PATH, body=REQUEST)
        assert client.read_head().status == 500, "on a connection that is open, a request whose head nothing has read"
    with httpx.Client(proxy=f"http://127.0.0.1:{proxy.port}", trust_env=False, verify=False) as any_client:
        for url in (f"https://{ANTHROPIC}{PATH}", "https://foreign.test/", f"http://127.0.0.1:{upstream.port}/"):
            with pytest.raises(httpx.TransportError):
                any_client.get(url)
    assert len(upstream.requests) == 1
    script.write_text(code)
    reload(proxy, script, 2)
    upstream.answer(whole())
    ask(proxy)
    assert len(wait_for_ended(proxy, 2)) == 2


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
