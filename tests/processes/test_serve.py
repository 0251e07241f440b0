"""`aibridge serve`: workers share a port, end and start again, reload and stop, and no client notices."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest

from tests.conftest import Proxies
from tests.integration.answers import BEGUN, SIMPLE, ask, begin, config, held, whole
from tests.integration.exchanges import ANTHROPIC
from tests.processes.load import LONG, Load
from tests.support.authority import Authority
from tests.support.client import RawHttp1
from tests.support.databases import SqliteDatabase
from tests.support.polling import poll_until
from tests.support.serve import WORKERS, Serve
from tests.support.upstream import Gate, ScriptedUpstream, unused_port

CONNECTIONS = 20

StartServe = Callable[..., Serve]


@pytest.fixture
def serve(ca: Authority, mitmproxy_ca: Path, tmp_path: Path) -> Iterator[StartServe]:
    with closing(Proxies(Serve, tmp_path, [], {"upstream_ca": ca.pem, "mitmproxy_ca": mitmproxy_ca})) as proxies:
        yield proxies


@pytest.fixture
def metrics() -> str:
    return f"http://127.0.0.1:{unused_port()}"


def configured(upstream: ScriptedUpstream, metrics: str, more: str = "") -> str:
    return config(upstream.port, f"metrics: {{listen: '{metrics.removeprefix('http://')}'}}\n{more}")


@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
def test_connections_are_spread_evenly_and_every_answer_is_recorded(
    serve: StartServe, upstream: ScriptedUpstream, metrics: str, event_loop: str
) -> None:
    upstream.answer(*[whole()] * 100_000)
    proxy = serve(config=configured(upstream, metrics), event_loop=event_loop)
    with ExitStack() as clients:
        for _ in range(CONNECTIONS):
            clients.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
        poll_until(lambda: sum(proxy.series(metrics, "worker_connections").values()) == CONNECTIONS, LONG)
        assert set(proxy.series(metrics, "worker_connections").values()) == {CONNECTIONS / WORKERS}
        load = Load()
        with load.on(proxy, clients=4):
            load.wait_for(20)
    load.assert_recorded(SqliteDatabase(proxy.database))
    counted = proxy.series(metrics, "interceptions_total")
    assert sum(counted.values()) == len(load.answers)
    assert len(counted) == WORKERS, "each worker has served some"
    poll_until(lambda: sum(proxy.series(metrics, "worker_connections").values()) == 0, LONG)


def test_a_worker_that_was_killed_is_started_again_and_the_other_serves(
    serve: StartServe, upstream: ScriptedUpstream, metrics: str
) -> None:
    upstream.answer(*[whole()] * 100_000)
    proxy = serve(config=configured(upstream, metrics))
    for number in (1, 2):
        proxy.workers[0].kill()  # the oldest: first the one, then the other
        ask(proxy)
        proxy.wait_for_log(rf"worker {number} has ended \(SIGKILL\), and is started again in 1 s")
        proxy.wait_until_all_serve(metrics)
    assert proxy.series(metrics, "worker_restarts_total") == {"1": 1.0, "2": 1.0}
    proxy.terminate()
    assert proxy.wait(LONG) == 0


def test_sighup_reloads_one_worker_after_the_other(serve: StartServe, upstream: ScriptedUpstream, metrics: str) -> None:
    upstream.answer(*[whole()] * 100_000)
    proxy = serve(config=configured(upstream, metrics, "actor: {default: ada}"))
    file = proxy.folder / "aibridge.yaml"
    load = Load()
    with load.on(proxy, clients=2):
        load.wait_for(5)
        file.write_text(file.read_text().replace("ada", "bob"))
        proxy.hang_up()
        poll_until(lambda: proxy.log.count("aibridge: configuration") == 2 * WORKERS, LONG)
        load.wait_for(10)
        file.write_text("database: 5")
        proxy.hang_up()
        proxy.wait_for_log("the configuration is not reloaded: all workers keep the old one", LONG)
        load.wait_for(10)
    load.assert_recorded(SqliteDatabase(proxy.database))
    initiators = {row["initiator_id"] for row in proxy.rows("aibridge_interceptions")}
    assert initiators == {"ada", "bob"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_waits_for_answers_under_way(
    serve: StartServe, upstream: ScriptedUpstream, metrics: str, number: signal.Signals
) -> None:
    gates = [Gate(), Gate()]
    upstream.answer(*(held(gate) for gate in gates))
    proxy = serve(config=configured(upstream, metrics))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as one, RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as other:
        begin(one)
        begin(other)
        proxy.terminate() if number is signal.SIGTERM else proxy.interrupt()
        poll_until(lambda: proxy.log.count("draining: requests under way: 1") == WORKERS, LONG)
        for client, gate in zip((one, other), gates, strict=True):
            gate.open()
            assert BEGUN + client.read_body() == SIMPLE.body
    assert proxy.wait(LONG) == 0
    assert [row["status"] for row in proxy.rows("aibridge_interceptions")] == ["completed"] * 2


def test_workers_end_when_the_supervisor_was_killed(
    serve: StartServe, upstream: ScriptedUpstream, metrics: str
) -> None:
    upstream.answer(whole())
    proxy = serve(config=configured(upstream, metrics))
    workers = proxy.workers
    assert len(workers) == WORKERS
    proxy.kill()
    poll_until(lambda: not any(worker.is_running() for worker in workers), LONG, what="the workers' end")


def test_probes_see_all_workers(serve: StartServe, upstream: ScriptedUpstream, metrics: str) -> None:
    proxy = serve(config=configured(upstream, metrics))
    proxy.wait_until_all_serve(metrics)
    assert httpx.get(f"{metrics}/healthz", trust_env=False).status_code == 200
    ready = httpx.get(f"{metrics}/readyz", trust_env=False)
    assert ready.status_code == 200
    assert {number: found["ready"] for number, found in ready.json()["workers"].items()} == {"1": True, "2": True}


# --- what cannot start ----------------------------------------------------------------------------------------------


def failed(serve_folder: Path, **options: object) -> tuple[int, str]:
    proxy = Serve(serve_folder, **options)  # type: ignore[arg-type]
    ended = proxy.run_to_exit(LONG)
    return ended.code, ended.output


def test_a_wrong_configuration_is_reported_once(tmp_path: Path, mitmproxy_ca: Path) -> None:
    code, output = failed(tmp_path, config="websocket: 5", mitmproxy_ca=mitmproxy_ca)
    assert code == 2
    assert output.count('did you mean "websockets"') == 1


def test_a_port_in_use_is_reported_once(tmp_path: Path, mitmproxy_ca: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        code, output = failed(
            tmp_path, config="metrics: {listen: null}", mitmproxy_ca=mitmproxy_ca, arguments=["--listen-port", port]
        )
    assert code == 1
    assert output.count(f"127.0.0.1:{port} is in use by another program") == 1


@pytest.mark.parametrize(
    "mode", ["wireguard", "local:curl", "dns", "reverse:dns://127.0.0.1:53", "reverse:http3://a.example"]
)
def test_modes_that_take_more_than_tcp_connections_need_one_worker(tmp_path: Path, mode: str) -> None:
    code, output = failed(tmp_path, config="metrics: {listen: null}", mode=[mode])
    assert code == 2
    assert "a mode of TCP connections, or --workers 1" in output


def test_a_password_file_that_cannot_be_used_is_named(tmp_path: Path, mitmproxy_ca: Path) -> None:
    code, output = failed(
        tmp_path, config="metrics: {listen: null}", mitmproxy_ca=mitmproxy_ca, arguments=["--proxyauth", "@/no/file"]
    )
    assert (code, output.count("the password file /no/file cannot be read: it does not exist")) == (1, 1)
