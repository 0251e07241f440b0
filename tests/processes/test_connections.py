"""A process with few file descriptors, and clients that open more connections than it has."""

from __future__ import annotations

import resource
import socket
import sys
from contextlib import ExitStack
from urllib.request import urlopen

import psutil  # type: ignore[import-untyped]
import pytest

from tests.conftest import MakeUpstream, StartMitmdump
from tests.integration.answers import SIMPLE, ask, config
from tests.integration.test_metrics import parsed
from tests.support.client import RawHttp1
from tests.support.mitmdump import Mitmdump
from tests.support.upstream import Answer, unused_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sets the limit of another process")

FILES = 1_024
IDLE = 1_100


@pytest.fixture
def opened() -> ExitStack:
    """Let this process open so many connections, and close them in the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * IDLE:
        pytest.skip("the test itself may not open enough connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * IDLE), hard))
    return ExitStack()


@pytest.mark.parametrize("sent", [b"", b"GET /half HTTP/1.1\r\n"], ids=["nothing", "half a head"])
@pytest.mark.parametrize("addresses", [1, 100], ids=["one client", "many clients"])
def test_more_idle_connections_than_descriptors_shut_no_other_client_out(
    mitmdump: StartMitmdump, make_upstream: MakeUpstream, opened: ExitStack, sent: bytes, addresses: int
) -> None:
    upstream = make_upstream(handler=lambda _: Answer.event_stream(SIMPLE.body))
    metrics = unused_port()
    more = f"limits: {{header_timeout: 600}}\nmetrics: {{listen: '127.0.0.1:{metrics}'}}"
    proxy = mitmdump(config=config(upstream.port, more))
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
    with opened, RawHttp1.connect("127.0.0.1", proxy.port) as used:
        for n in range(IDLE):
            source = (f"127.0.1.{n % addresses + 1}", 0)
            idle = socket.create_connection(("127.0.0.1", proxy.port), 60, source_address=source)
            opened.callback(idle.close)
            idle.sendall(sent)
        ask(proxy, 3)
        used.request("GET", "/nothing")  # another client's connection, which has waited all the time
        assert used.read_head().status == 404
        process = psutil.Process(proxy.pid)
        ask(proxy)
        assert process.num_fds() < FILES
        assert is_at_rest(proxy)
        with urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=20) as answer:
            series = parsed(answer.read().decode())
        reason = "connections_per_client" if addresses == 1 else "open_files"
        assert series["refused_total", frozenset({("reason", reason)})] > 0
    assert "Too many open files" not in proxy.log
    proxy.terminate()
    assert proxy.wait() == 0


def is_at_rest(proxy: Mitmdump) -> bool:
    """Whether the process does nothing, at one of many looks: one that accepts in vain does not rest."""
    process = psutil.Process(proxy.pid)
    return any(process.status() == psutil.STATUS_SLEEPING for _ in range(10_000))
