"""The HTTP endpoint for scrapers and probes, over real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any, Protocol

import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from aibridge_addon import records
from aibridge_addon.config import schema
from aibridge_addon.config.values import Listen
from aibridge_addon.records.pages import PageAnswer, PageRequest
from aibridge_addon.telemetry.prometheus import listener, workers
from aibridge_addon.telemetry.prometheus.listener import Listener, ListenError
from aibridge_addon.telemetry.prometheus.metrics import Metrics

LOOPBACK = Listen("127.0.0.1", 0)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


HAS_IPV6 = has_ipv6()


class Start(Protocol):
    def __call__(self, address: Listen = LOOPBACK, **options: Any) -> Listener: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Start listeners; afterwards all are stopped, and so are their threads."""
    with ExitStack() as stack:

        def make(address: Listen = LOOPBACK, **options: Any) -> Listener:
            made = Listener(address, options.pop("registry", Metrics(schema.Metrics()).registry), **options)
            made.start()
            stack.callback(made.stop)
            return made

        yield make
    for thread in threading.enumerate():
        if thread.name == "aibridge-metrics":
            thread.join(10)  # `stop` waits for the port only
            assert not thread.is_alive()


class Wordy:
    """A collector with a lot to say."""

    def __init__(self, size: int) -> None:
        self._text = "x" * size

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("wordy", self._text, value=1)


class Slow:
    """A collector that takes as long as the test wants."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()

    def collect(self) -> Iterator[Metric]:
        self.entered.set()
        self.leave.wait(10)
        yield from ()


def ask(
    port: int,
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    host: str = "127.0.0.1",
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def parse_openmetrics(text: str) -> Iterator[Metric]:
    yield from openmetrics.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]


def converse(port: int, sent: bytes) -> bytes:
    """Send these bytes; return all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        received = b""
        while data := connection.recv(65536):
            received += data
        return received


def test_a_scrape_gets_the_text_format(start: Start) -> None:
    metrics = Metrics(schema.Metrics())
    metrics.emit(records.Tunnelled())
    response, body = ask(start(registry=metrics.registry).port, "/metrics")
    assert response.status == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert [sample.value for sample in families["aibridge_tunnels"].samples] == [1]


def test_a_scraper_that_accepts_openmetrics_gets_it(start: Start) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    response, body = ask(start().port, "/metrics", headers={"Accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert "aibridge_tunnels" in {family.name for family in parse_openmetrics(body.decode())}


def test_an_accept_header_that_makes_no_sense_gets_the_text_format(start: Start) -> None:
    response, body = ask(start().port, "/metrics", headers={"Accept": "application/openmetrics-text;version=latest"})
    assert (response.status, response.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b"aibridge_tunnels_total 0.0" in body


def test_a_query_does_not_hide_the_path(start: Start) -> None:
    response, _ = ask(start().port, "/metrics?x=1")
    assert response.status == 200


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/nothing"])
def test_head_has_the_headers_of_get_and_no_body(start: Start, path: str) -> None:
    port = start().port
    get, body = ask(port, path)
    head, nothing = ask(port, path, "HEAD")
    assert head.status == get.status
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(body))
    assert nothing == b""


@pytest.mark.parametrize("path", ["/", "/metrics/", "/Metrics", "//metrics", "/favicon.ico", "http://x/metrics"])
def test_other_paths_are_404(start: Start, path: str) -> None:
    response, body = ask(start().port, path)
    assert (response.status, body) == (404, b"Not Found\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_405_with_those_allowed(start: Start, method: str) -> None:
    response, _ = ask(start().port, "/metrics", method, body=b"x" * 100_000)
    assert (response.status, response.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"\x16\x03\x01\n\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nx: 1\ry: 2\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n\r\n",  # RFC 9112, section 3.2: HTTP/1.1 needs `Host`
    ],
)
def test_what_is_not_http_is_400(start: Start, sent: bytes) -> None:
    assert converse(start().port, sent).startswith(b"HTTP/1.1 400 ")


def test_a_head_without_carriage_returns_is_understood(start: Start) -> None:
    assert converse(start().port, b"GET /healthz HTTP/1.0\n\n").startswith(b"HTTP/1.1 200 ")


def test_a_connection_whose_head_is_too_large_is_closed(start: Start) -> None:
    """Tornado closes such a connection without an answer. HTTP would also allow 431."""
    port = start().port
    with suppress(ConnectionResetError):
        assert converse(port, b"GET /metrics HTTP/1.0\r\nx: " + b"x" * 2 * listener.MAX_HEAD + b"\r\n\r\n") == b""
    assert ask(port, "/healthz")[0].status == 200


def test_a_client_that_says_nothing_is_cut_off(start: Start) -> None:
    port = start(deadline=0.05).port
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        assert connection.recv(1) == b""


def test_a_client_that_does_not_read_is_cut_off(start: Start) -> None:
    size = 50_000_000
    metrics = Metrics(schema.Metrics())
    metrics.registry.register(Wordy(size))
    made = start(registry=metrics.registry, deadline=0.3)
    with socket.create_connection(("127.0.0.1", made.port), timeout=10) as idle:
        idle.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with socket.create_connection(("127.0.0.1", made.port), timeout=10) as later:
            assert later.recv(1) == b""  # its time is over, so that of the one before is
        received = 0
        with suppress(ConnectionResetError):
            while data := idle.recv(1_000_000):
                received += len(data)
        assert received < size


def test_a_collector_that_fails_is_500_and_the_next_request_is_served(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> records.Readiness:
        raise ZeroDivisionError

    port = start(registry=Metrics(schema.Metrics(), fail).registry).port
    response, body = ask(port, "/metrics")
    assert (response.status, body) == (500, b"Internal Server Error\n")
    assert ask(port, "/healthz")[0].status == 200
    assert "/metrics cannot be answered" in caplog.text


def test_health_is_ok_without_an_event_loop_to_watch(start: Start) -> None:
    response, body = ask(start().port, "/healthz")
    assert (response.status, body) == (200, b"ok\n")


async def test_health_is_ok_while_the_watched_event_loop_runs(start: Start) -> None:
    made = start(loop=asyncio.get_running_loop())
    response, body = await asyncio.to_thread(ask, made.port, "/healthz")
    assert (response.status, body) == (200, b"ok\n")


async def test_health_is_503_while_the_watched_event_loop_is_stuck(start: Start) -> None:
    made = start(loop=asyncio.get_running_loop(), health_timeout=0.05)
    response, _ = ask(made.port, "/healthz")  # on the event loop itself, so it is stuck
    assert response.status == 503


def test_health_is_503_when_the_watched_event_loop_has_been_closed(start: Start) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    response, _ = ask(start(loop=loop).port, "/healthz")
    assert response.status == 503


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
def test_readiness_is_what_the_program_says(start: Start, ready: bool, status: int) -> None:
    async def readiness() -> tuple[bool, dict[str, object]]:
        return ready, {"database": "sqlite", "draining": not ready}

    made = start(ready=readiness)
    response, body = ask(made.port, "/readyz")
    assert (response.status, response.headers["content-type"]) == (status, "application/json")
    assert json.loads(body) == {"ready": ready, "database": "sqlite", "draining": not ready}


def test_a_port_in_use_is_an_error_that_names_the_address(start: Start) -> None:
    taken = start().port
    with pytest.raises(ListenError, match=f"^address already in use: 127.0.0.1:{taken}$"):
        start(Listen("127.0.0.1", taken))


@pytest.mark.parametrize(
    ("host", "shown"), [("192.0.2.1", "192.0.2.1"), ("host.invalid", "host.invalid"), ("2001:db8::1", "[2001:db8::1]")]
)
def test_an_address_that_is_not_ours_is_an_error_that_names_it(start: Start, host: str, shown: str) -> None:
    with pytest.raises(ListenError) as caught:
        start(Listen(host, 9464))
    assert str(caught.value).endswith(f": {shown}:9464")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_all_addresses_include_those_of_ipv4(start: Start, host: str) -> None:
    assert ask(start(Listen(host, 0)).port, "/healthz")[0].status == 200


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_an_ipv6_address_is_listened_on(start: Start, host: str) -> None:
    assert ask(start(Listen(host, 0)).port, "/healthz", host="::1")[0].status == 200


def test_localhost_is_reached_by_its_ipv4_address(start: Start) -> None:
    made = start(Listen("localhost", 0))
    assert ask(made.port, "/healthz")[0].status == 200


def test_stopping_frees_the_port_for_the_next_one(start: Start) -> None:
    """A reload stops one listener and starts the next on the same port, with a scrape just before."""
    first = start()
    assert ask(first.port, "/metrics")[0].status == 200
    first.stop()
    second = start(Listen("127.0.0.1", first.port))
    assert second.port == first.port
    assert ask(second.port, "/metrics")[0].status == 200


def test_stopping_cuts_connections_that_are_open(start: Start) -> None:
    made = start()
    with socket.create_connection(("127.0.0.1", made.port), timeout=10) as connection:
        connection.sendall(b"GET /met")
        assert ask(made.port, "/healthz")[0].status == 200  # by now the first connection has been taken
        made.stop()
        with suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_a_scrape_that_takes_long_delays_neither_probes_nor_the_next_listener(start: Start) -> None:
    slow = Slow()
    first = start(registry=slow)
    with socket.create_connection(("127.0.0.1", first.port), timeout=10) as scrape:
        scrape.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert slow.entered.wait(10)
        try:
            assert ask(first.port, "/healthz")[0].status == 200
            first.stop()
            with suppress(ConnectionResetError):
                assert scrape.recv(1) == b""
            assert ask(start(Listen("127.0.0.1", first.port)).port, "/healthz")[0].status == 200
        finally:
            slow.leave.set()


def test_malformed_requests_and_scrapes_write_no_log_lines(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """mitmproxy sets the level of tornado's loggers to WARNING, for its own use of tornado."""
    caplog.set_level(logging.WARNING)
    port = start().port
    converse(port, b"nonsense\r\n\r\n")
    for path in ("/metrics", "/nothing"):
        ask(port, path)
    ask(port, "/metrics", "POST")
    assert not caplog.records


def test_stopping_twice_or_before_the_start_is_harmless(start: Start) -> None:
    made = start()
    made.stop()
    made.stop()
    Listener(LOOPBACK, Metrics(schema.Metrics()).registry).stop()


# --- pages of others --------------------------------------------------------------------------------------------------


def test_pages_to_log_in_are_answered_by_their_owner(start: Start) -> None:
    asked: list[PageRequest] = []

    async def logins(request: PageRequest) -> PageAnswer:
        asked.append(request)
        headers = {"Location": "https://as.example/", "Set-Cookie": "a=b", "Content-Type": "text/html"}
        return PageAnswer(303, headers, b"<p>")

    listening = start(logins=logins)
    connection = http.client.HTTPConnection(listening.address, timeout=10)
    connection.request("GET", "/mcp/login/x?ticket=t", headers={"Cookie": "c=d", "Sec-Purpose": "Prefetch"})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (303, b"<p>")
    assert (answer.headers["Location"], answer.headers["Set-Cookie"]) == ("https://as.example/", "a=b")
    assert answer.headers["Cache-Control"] == "no-store"
    assert asked[0].path == "/mcp/login/x"
    assert (asked[0].query, asked[0].cookie, asked[0].purpose.strip()) == ("ticket=t", "c=d", "prefetch")
    assert workers.ask(listening.address, asked[0]) == PageAnswer(
        303,
        {
            "Location": "https://as.example/",
            "Set-Cookie": "a=b",
            "Content-Type": "text/html",
            "Cache-Control": "no-store",
        },
        b"<p>",
    )


def test_without_an_owner_there_are_no_pages_to_log_in(start: Start) -> None:
    connection = http.client.HTTPConnection(start().address, timeout=10)
    connection.request("GET", "/mcp/login/x?ticket=t")
    assert connection.getresponse().status == 404
