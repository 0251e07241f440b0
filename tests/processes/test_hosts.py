"""Two hosts behind a real HAProxy, with one PostgreSQL: one fails under load, and the other goes on."""

from __future__ import annotations

import csv
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import MakeUpstream
from tests.integration.answers import BEGUN, SIMPLE, ask, begin, held, whole
from tests.integration.exchanges import ANTHROPIC, Client
from tests.integration.turns import CLIENTS_RESULT, CONNECTED, Turns, call, configuration, own, program, results, text
from tests.processes.load import LONG, Load
from tests.support.authority import LOCAL_NAMES, Authority
from tests.support.client import RawHttp1
from tests.support.databases import PostgresDatabase
from tests.support.hosts import Host, can_make_hosts
from tests.support.polling import poll_until
from tests.support.relay import Relay
from tests.support.running import RunningProxy
from tests.support.serve import Serve
from tests.support.upstream import HTTP1, Gate, ScriptedUpstream, unused_port

CONFIGURATION = Path(__file__).parents[2] / "docs" / "deploy" / "haproxy.cfg"
PROXY, METRICS = 8080, 9464
NUMBERS = (1, 2)

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs HAProxy"),
    pytest.mark.skipif(not can_make_hosts(), reason="needs root, and network namespaces"),
]


class OnHost(Serve):
    """`aibridge serve` on a host of its own."""

    host: Host

    def connections(self) -> float:
        return sum(self.series(f"http://{self.host.address}:{METRICS}", "worker_connections").values())

    def _command(self, config: str | None) -> list[str]:
        return [*self.host.prefix, *super()._command(config)]


class Front(RunningProxy):
    """HAProxy, with the configuration of the documentation, in front of two hosts."""

    def __init__(self, folder: Path, hosts: list[OnHost]) -> None:
        super().__init__(folder)
        self.confdir = hosts[0].confdir
        self.ports = [unused_port()]
        self.hosts = hosts
        configuration = CONFIGURATION.read_text().replace("bind :8080", f"bind 127.0.0.1:{self.port}")
        for number, proxy in enumerate(hosts, 1):
            configuration = configuration.replace(f"host{number}.example", proxy.host.address)
        self._statistics = folder / "haproxy.sock"
        configuration = configuration.replace("\nglobal\n", f"\nglobal\n    stats socket {self._statistics}\n")
        (folder / "haproxy.cfg").write_text(configuration)
        self._log = folder / "haproxy.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["haproxy", "-f", str(folder / "haproxy.cfg")], stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def state(self, number: int) -> str:
        """What HAProxy knows of a host: `UP` or `DOWN`; nothing while it starts."""
        assert self._process.poll() is None, self.log
        with socket.socket(socket.AF_UNIX) as statistics:
            try:
                statistics.connect(str(self._statistics))
            except OSError:
                return ""
            statistics.sendall(b"show stat\n")
            lines = statistics.makefile().read().splitlines()
        rows = csv.DictReader([lines[0].lstrip("# "), *lines[1:]])
        return next(row["status"].split()[0] for row in rows if row["svname"] == f"host{number}")


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream(alpn=[HTTP1], names=[*LOCAL_NAMES, *(Host(number).gateway for number in NUMBERS)])


@pytest.fixture
def front(
    tmp_path: Path, upstream: ScriptedUpstream, postgres: PostgresDatabase, ca: Authority, mitmproxy_ca: Path
) -> Iterator[Front]:
    with ExitStack() as stack:
        proxies = []
        for number in NUMBERS:
            host = stack.enter_context(Host(number))
            provider = stack.enter_context(Relay(upstream.port, host.gateway))
            database = stack.enter_context(Relay(postgres.server.port, host.gateway))
            url = postgres.via(database.port).url.replace("127.0.0.1", host.gateway)
            more = f"database: '{url}'\nmetrics: {{listen: '0.0.0.0:{METRICS}'}}"
            config = configuration(f"https://{host.gateway}:{provider.port}", program(), more)
            (folder := tmp_path / f"host-{number}").mkdir()
            proxy = OnHost(
                folder,
                workers=1,
                config=config,
                upstream_ca=ca.pem,
                mitmproxy_ca=mitmproxy_ca,
                arguments=["--listen-host", host.address, "--listen-port", str(PROXY)],
            )
            proxy.host = host
            proxies.append(stack.enter_context(proxy))
            proxy.wait_for_log(CONNECTED, LONG)
        found = Front(tmp_path, proxies)
        stack.callback(found.close)
        for number in NUMBERS:
            poll_until(lambda number=number: found.state(number) == "UP", LONG)  # type: ignore[misc]
        yield found


def test_when_a_host_fails_under_load_the_other_goes_on(
    front: Front, upstream: ScriptedUpstream, postgres: PostgresDatabase
) -> None:
    upstream.handler = lambda _: whole()
    first, second = front.hosts
    load = Load(tries=True)
    with load.on(front, clients=4):
        load.wait_for(20)
        first.host.crash()
        load.wait_for(20)
        poll_until(lambda: front.state(1) == "DOWN", LONG)
        failed = len(load.failures)
        load.wait_for(20)
        assert len(load.failures) == failed, "once it is known to be down, no request fails"
    assert not load.broken
    completed = "select count(*) as n, count(distinct instance_id) as hosts from aibridge_interceptions"
    found = postgres.query(f"{completed} where status = 'completed'")[0]
    assert found["n"] >= len(load.answers)
    assert found["hosts"] == 2
    assert second.running


@pytest.mark.parametrize("dialect", ["messages", "responses"])
def test_what_began_on_a_host_that_failed_continues_on_the_other(
    front: Front, upstream: ScriptedUpstream, dialect: str
) -> None:
    mixed = Turns(dialect, [text("Both. "), call("echo", text="hi"), own(path="a")])
    done = Turns(dialect, [text("Done.")])
    upstream.answer(*mixed.answers(streaming=True))
    with Client(front, mixed.host) as client:
        answer = client.post(mixed.path, mixed.request(streaming=True)).body
        served = next(proxy for proxy in front.hosts if proxy.connections())
    assert mixed.check(answer, streaming=True).ends_for_calls
    served.host.crash()
    poll_until(lambda: front.state(front.hosts.index(served) + 1) == "DOWN", LONG)

    upstream.answer(*done.answers(streaming=True))
    with Client(front, done.host) as client:
        seen = client.post(done.path, mixed.next_request(answer, streaming=True))
    done.check(seen.body, streaming=True)
    assert results(upstream.requests[-1]) == ["hi", CLIENTS_RESULT]


def test_a_host_that_drains_finishes_what_it_has_and_gets_nothing_new(front: Front, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.answer(held(gate))
    with RawHttp1.through_proxy(front, ANTHROPIC, 443) as client:
        begin(client)
        serving = next(proxy for proxy in front.hosts if proxy.connections())
        serving.terminate()
        poll_until(lambda: front.state(front.hosts.index(serving) + 1) == "DOWN", LONG)
        upstream.handler = lambda _: whole()
        ask(front, 5)
        gate.open()
        assert BEGUN + client.read_body() == SIMPLE.body
    assert serving.wait(LONG) == 0
