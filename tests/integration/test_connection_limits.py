"""What a client can do before it has authenticated: connections, heads and HTTP/2 frames are bounded and counted."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from urllib.request import urlopen

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.answers import BEGUN, EVENTS, PATH, REQUEST, SIMPLE, ask, begin, config, held
from tests.integration.exchanges import ANTHROPIC, Client
from tests.integration.test_metrics import parsed
from tests.support.client import RawHttp1, connect_through
from tests.support.client_h2 import RawHttp2
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, Gate, ScriptedUpstream, unused_port


class Limited:
    """A proxy with limits, and what it has counted."""

    def __init__(self, start: StartProxy, upstream: ScriptedUpstream, limits: str) -> None:
        self._metrics = unused_port()
        more = f"limits: {{{limits}}}\nmetrics: {{listen: '127.0.0.1:{self._metrics}'}}"
        self.proxy: RunningProxy = start(config=config(upstream.port, more))

    def closed(self, reason: str) -> float:
        with urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=20) as answer:
            series = parsed(answer.read().decode())
        return series.get(("refused_total", frozenset({("reason", reason)})), 0)

    def wait_until_closed(self, reason: str, n: int = 1) -> None:
        poll_until(lambda: self.closed(reason) >= n, what=f"{n} closed connections because of {reason}")

    def connect(self) -> RawHttp1:
        return RawHttp1.connect("127.0.0.1", self.proxy.port)


def is_closed(client: RawHttp1) -> bool:
    """Whether the proxy ends a connection, without a word or after an answer."""
    with suppress(ConnectionError):
        client.read_to_end()
    return True


@pytest.fixture
def served(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream(handler=lambda _: Answer.event_stream(SIMPLE.body))


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["connections", "connections_per_client"])
def test_a_new_connection_closes_the_oldest_idle_one(
    start_proxy: StartProxy, served: ScriptedUpstream, limit: str
) -> None:
    limited = Limited(start_proxy, served, f"{limit}: 4")
    with ExitStack() as stack:
        idle = [stack.enter_context(limited.connect()) for _ in range(4)]
        idle[0].send(b"GET /half HTTP/1.1\r\n")
        ask(limited.proxy)
        assert is_closed(idle[0])
        limited.wait_until_closed(limit)
        idle[3].request("GET", "/nothing")
        assert idle[3].read_head().status == 404


@pytest.mark.parametrize("limit", ["connections", "connections_per_client"])
def test_a_busy_connection_is_never_closed_for_a_new_one(
    start_proxy: StartProxy, upstream: ScriptedUpstream, limit: str
) -> None:
    limited = Limited(start_proxy, upstream, f"{limit}: 2")
    gates = [Gate(), Gate()]
    upstream.answer(*map(held, gates))
    with ExitStack() as stack:
        busy = [
            stack.enter_context(RawHttp1.through_proxy(limited.proxy, ANTHROPIC, 443)),
            stack.enter_context(limited.connect()),
        ]
        begin(busy[0])
        busy[1].request("POST", f"/anthropic{PATH}", body=REQUEST)
        assert busy[1].read_head().status == 200
        assert busy[1].read_body_until(EVENTS[4]) == BEGUN
        with limited.connect() as refused:
            assert is_closed(refused)
        limited.wait_until_closed(limit)
        for gate, client in zip(gates, busy, strict=True):
            gate.open()
            assert BEGUN + client.read_body() == SIMPLE.body


def test_a_connection_between_two_requests_is_closed_after_those_without_any(
    start_proxy: StartProxy, served: ScriptedUpstream
) -> None:
    limited = Limited(start_proxy, served, "connections: 2")
    with Client(limited.proxy, ANTHROPIC) as used, limited.connect() as unused:
        assert used.post(PATH, REQUEST).body == SIMPLE.body
        with limited.connect() as third:
            assert is_closed(unused)
            assert used.post(PATH, REQUEST).body == SIMPLE.body
            third.request("GET", "/nothing")
            assert third.read_head().status == 404


def test_connections_that_are_reset_at_once_are_no_errors(start_proxy: StartProxy, served: ScriptedUpstream) -> None:
    """mitmproxy logs a traceback for a connection whose peer it cannot name."""
    limited = Limited(start_proxy, served, "")
    for _ in range(200):
        limited.connect().abort()
    ask(limited.proxy)


def test_a_tunnel_of_another_host_is_busy(start_proxy: StartProxy, served: ScriptedUpstream) -> None:
    limited = Limited(start_proxy, served, "connections: 1, header_timeout: 0.2")
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"localhost:{server.getsockname()[1]}"
        with limited.connect() as client:
            client.send(f"CONNECT {host} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            assert client.read_head().status == 200
            client.send(b"\x00 no known protocol\n")
            tunnel, _ = server.accept()
            with tunnel:
                tunnel.settimeout(20)
                assert tunnel.recv(100)
                with limited.connect() as refused:
                    assert is_closed(refused)
                limited.wait_until_closed("connections")
                tunnel.sendall(b"still there\n")
                assert client.read_until(b"\n") == b"still there\n"
    assert limited.closed("header_timeout") == 0


# --- heads --------------------------------------------------------------------------------------------------------

LONG_HEAD = b"GET /nothing HTTP/1.1\r\nhost: localhost\r\nx-long: " + b"a" * 5_000
WAYS = pytest.mark.parametrize("way", ["gateway", "tunnel"])


def connect(limited: Limited, way: str) -> RawHttp1:
    return limited.connect() if way == "gateway" else RawHttp1.through_proxy(limited.proxy, ANTHROPIC, 443)


@WAYS
@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["incomplete", "complete"])
@pytest.mark.parametrize("head", [LONG_HEAD, b"G" * 5_000, b"\r\n" * 2_500], ids=["field", "line", "blank lines"])
def test_a_long_head_gets_431(
    start_proxy: StartProxy, served: ScriptedUpstream, way: str, head: bytes, end: bytes
) -> None:
    limited = Limited(start_proxy, served, "header_bytes: 4KiB")
    with connect(limited, way) as client:
        client.send(head + end)
        answer = client.read_head()
        assert (answer.status, answer.header("content-type")) == (431, "application/json")
        assert b"4096 bytes" in client.read_body()
        assert is_closed(client)
    limited.wait_until_closed("header_bytes")
    ask(limited.proxy)


def test_a_short_head_with_a_long_body_is_no_long_head(start_proxy: StartProxy, served: ScriptedUpstream) -> None:
    limited = Limited(start_proxy, served, "header_bytes: 600")
    with limited.connect() as client:
        client.request("POST", "/nothing", body=b"a" * 60_000)
        assert client.read_head().status == 404


def test_what_a_client_sends_before_it_is_answered_is_bounded(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    limited = Limited(start_proxy, upstream, "header_bytes: 4KiB")
    gate = Gate()
    upstream.answer(held(gate))
    with RawHttp1.through_proxy(limited.proxy, ANTHROPIC, 443) as client:
        begin(client)
        with suppress(ConnectionError, ssl.SSLError):
            client.send(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5_000)
            client.read_to_end()
    limited.wait_until_closed("header_bytes")
    gate.open()


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nhost: x\r\n", b"\x16\x03\x01"], ids=["nothing", "half", "tls"]
)
@WAYS
def test_an_incomplete_head_has_its_time(
    start_proxy: StartProxy, served: ScriptedUpstream, way: str, sent: bytes
) -> None:
    limited = Limited(start_proxy, served, "header_timeout: 0.3")
    with limited.connect() as client:
        if way == "tunnel":
            client.send(f"CONNECT {ANTHROPIC}:443 HTTP/1.1\r\nhost: {ANTHROPIC}\r\n\r\n".encode())
            assert client.read_head().status == 200
        client.send(sent)
        assert is_closed(client)
    limited.wait_until_closed("header_timeout")
    ask(limited.proxy)


def test_a_later_head_has_its_time_too_but_no_time_runs_between_requests(
    start_proxy: StartProxy, served: ScriptedUpstream
) -> None:
    limited = Limited(start_proxy, served, "header_timeout: 0.3")
    with limited.connect() as client, limited.connect() as idle, limited.connect() as timer:
        for each in (client, idle):
            each.request("GET", "/nothing")
            assert each.read_head().status == 404
            each.read_body()
        client.send(b"GET /noth")
        head = client.read_head()
        assert head.status == 408
        assert is_closed(client)
        assert is_closed(timer)  # it had the same time
        idle.request("GET", "/nothing")
        assert idle.read_head().status == 404
    limited.wait_until_closed("header_timeout", 2)


def test_an_answers_long_head_is_an_error_of_the_upstream(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    limited = Limited(start_proxy, upstream, "header_bytes: 4KiB")
    upstream.answer(Answer(200, [("x-long", "a" * 70_000)]))
    with Client(limited.proxy, ANTHROPIC) as client:
        assert client.post(PATH, REQUEST).status == 502


# --- HTTP/2 -------------------------------------------------------------------------------------------------------


def settings() -> Frame:
    frame = SettingsFrame(0)
    frame.settings = {SettingsFrame.HEADER_TABLE_SIZE: 4096}
    return frame


def reset(stream: int) -> list[Frame]:
    """Open a stream, and reset it."""
    block = b"\x82\x84\x87\x41\x0bexample.com"  # GET, /, https, :authority
    return [HeadersFrame(stream, block, flags=["END_HEADERS", "END_STREAM"]), RstStreamFrame(stream, error_code=8)]


def flood(of: Callable[[], Frame], n: int) -> bytes:
    return of().serialize() * n


FLOODS = {
    "rapid reset": b"".join(frame.serialize() for n in range(2_000) for frame in reset(2 * n + 1)),
    "ping": flood(lambda: PingFrame(0, b"12345678"), 20_000),
    "settings": flood(settings, 20_000),
    "priority": flood(lambda: PriorityFrame(1, depends_on=0, stream_weight=1), 20_000),
    "unknown": b"\x00\x00\x00\xfa\x00\x00\x00\x00\x00" * 20_000,
    "window updates": flood(lambda: WindowUpdateFrame(0, 1), 200_000),
    "empty data": HeadersFrame(1, b"\x83\x84\x87\x41\x0bexample.com", flags=["END_HEADERS"]).serialize()
    + flood(lambda: DataFrame(1), 20_000),
}


def send_all(client: RawHttp2, data: bytes) -> bool:
    """Send and read until the proxy closes the connection."""
    with suppress(OSError):
        client.socket.settimeout(0.01)
        while data:
            with suppress(TimeoutError, ssl.SSLWantReadError):
                while client.socket.recv(65_536):
                    pass
                return True
            client.socket.settimeout(20)
            client.socket.sendall(data[:16_384])
            data = data[16_384:]
            client.socket.settimeout(0.01)
        client.socket.settimeout(20)
        while client.socket.recv(65_536):
            pass
    return True


@pytest.fixture
def http2(start_proxy: StartProxy, served: ScriptedUpstream) -> Iterator[tuple[Limited, RawHttp2]]:
    limited = Limited(start_proxy, served, "header_bytes: 8KiB")
    with RawHttp2.through_proxy(limited.proxy, ANTHROPIC, 443) as client:
        yield limited, client


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_frames_ends_its_connection(http2: tuple[Limited, RawHttp2], kind: str) -> None:
    limited, client = http2
    assert send_all(client, FLOODS[kind])
    limited.wait_until_closed("http2_flood")
    ask(limited.proxy)


def test_a_client_that_resets_a_few_streams_is_served(http2: tuple[Limited, RawHttp2]) -> None:
    limited, client = http2
    for _ in range(50):
        client.reset(client.request("GET", "/nothing"))
    stream = client.request("POST", PATH, [(b"content-length", b"%d" % len(REQUEST))], REQUEST)
    assert client.read_head(stream)[0] == 200
    assert client.read_body(stream) == SIMPLE.body
    assert limited.closed("http2_flood") == 0


def test_a_long_header_block_ends_its_connection(http2: tuple[Limited, RawHttp2]) -> None:
    limited, client = http2
    client.request("GET", "/nothing", [(b"x-long", b"a" * 9_000)])
    assert send_all(client, b"")
    limited.wait_until_closed("header_bytes")


def test_a_header_block_without_an_end_ends_its_connection(http2: tuple[Limited, RawHttp2]) -> None:
    limited, client = http2
    frames = [HeadersFrame(1, b"\x82"), *(ContinuationFrame(1, b"a" * 1_000) for _ in range(20))]
    assert send_all(client, b"".join(frame.serialize() for frame in frames))
    limited.wait_until_closed("header_bytes")


def test_a_header_block_within_the_limit_is_read(http2: tuple[Limited, RawHttp2]) -> None:
    _, client = http2
    stream = client.request(
        "POST", PATH, [(b"x-long", b"a" * 5_000), (b"content-length", b"%d" % len(REQUEST))], REQUEST
    )
    assert client.read_head(stream)[0] == 200


def test_the_greeting_counts_as_waiting(start_proxy: StartProxy, served: ScriptedUpstream) -> None:
    """A client that has ended its TLS handshake, and sends no request."""
    limited = Limited(start_proxy, served, "header_timeout: 0.3")
    with RawHttp1(connect_through(limited.proxy, ANTHROPIC, 443), ANTHROPIC) as client:
        assert is_closed(client)
    limited.wait_until_closed("header_timeout")
