"""What a proxy reads, and what it only passes on: hosts of no provider are tunnelled as they are."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import MakeUpstream
from tests.integration.stage import CASE, H1, H2, ROUTES, Route, Stage, end_to_end, open_stage
from tests.support import fixtures
from tests.support.authority import Authority
from tests.support.client import Proxy, RawHttp1, gateway_client
from tests.support.client_h2 import RawHttp2
from tests.support.running import RunningProxy
from tests.support.script import DEFAULT_TIMEOUT, Answer, Gate, Pause
from tests.support.upstream import ScriptedUpstream

SIMPLE = fixtures.case("messages/simple/blocking")
EVENTS = (b"data: 1\n\n", b"data: 2\n\n")
EVERY_BYTE = bytes(range(256)) * 300


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, ca: Authority, mitmproxy_ca: Path) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("stage"), ca, mitmproxy_ca) as opened:
        yield opened


@pytest.fixture(scope="module")
def foreign_ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that mitmdump does not trust, and that its clients trust alone."""
    return Authority(tmp_path_factory.mktemp("foreign-ca"))


@pytest.fixture
def foreign(make_upstream: MakeUpstream, foreign_ca: Authority) -> ScriptedUpstream:
    return make_upstream(authority=foreign_ca, names=["localhost", "foreign.test"])


def tunnel(proxy: Proxy, host: str, port: int) -> RawHttp1:
    """Open a CONNECT tunnel with nothing in it yet."""
    opened = RawHttp1.connect("127.0.0.1", proxy.port)
    opened.send(f"CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n".encode())
    assert opened.read_head().status == 200
    return opened


def secure(plain: socket.socket, authority: Authority, name: str | None, alpn: Sequence[str] = ()) -> ssl.SSLSocket:
    """Begin TLS, trusting this authority and no other; without a name, none is sent."""
    context = authority.client_context()
    context.check_hostname = name is not None
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context.wrap_socket(plain, server_hostname=name)


def interceptions(proxy: RunningProxy) -> int:
    return len(proxy.rows("aibridge_interceptions"))


# --- tunnels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "name"), [("localhost", "localhost"), ("127.0.0.1", "foreign.test"), ("127.0.0.1", None)]
)
def test_a_host_of_no_provider_shows_its_own_certificate(
    stage: Stage, foreign: ScriptedUpstream, foreign_ca: Authority, host: str, name: str | None
) -> None:
    before, gate = interceptions(stage.proxy), Gate()
    foreign.answer(Answer.event_stream(EVENTS[0], Pause(gate), EVENTS[1]))
    with secure(socket.create_connection(("127.0.0.1", foreign.port), DEFAULT_TIMEOUT), foreign_ca, name) as direct:
        pinned = direct.getpeercert(binary_form=True)
    headers = [(b"Proxy-Connection", b"kept"), (b"X-Odd", b"1"), (b"Content-Length", str(len(SIMPLE.request)).encode())]
    with RawHttp1(secure(tunnel(stage.proxy, host, foreign.port).socket, foreign_ca, name), "foreign.test") as client:
        assert isinstance(client.socket, ssl.SSLSocket)
        assert client.socket.getpeercert(binary_form=True) == pinned
        client.request("POST", "/v1/messages", headers)
        client.send(SIMPLE.request)
        assert client.read_head().status == 200
        assert client.read_body_until(b"\n\n") == EVENTS[0]
        gate.open()
        assert client.read_body() == EVENTS[1]
    [request] = foreign.requests
    assert (request.sni, request.headers, request.body) == (
        name,
        ((b"host", b"foreign.test"), *headers),
        SIMPLE.request,
    )
    assert interceptions(stage.proxy) == before


def test_a_host_of_no_provider_negotiates_its_own_protocol(
    stage: Stage, foreign: ScriptedUpstream, foreign_ca: Authority
) -> None:
    foreign.answer(Answer.json({"ok": True}))
    connection = secure(tunnel(stage.proxy, "localhost", foreign.port).socket, foreign_ca, "localhost", ["h2"])
    with RawHttp2(connection, "localhost") as client:
        stream = client.request("POST", "/v1/messages", [], SIMPLE.request)
        assert client.read_head(stream)[0] == 200
        assert client.read_body(stream) == b'{"ok": true}'
    assert [(request.alpn, request.body) for request in foreign.requests] == [("h2", SIMPLE.request)]


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve each connection with this function, in a thread of its own."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(DEFAULT_TIMEOUT)
            serve(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def greet_and_echo(connection: socket.socket) -> None:
    connection.sendall(b"220 \x00\xff who are you?\r\n")
    echo(connection)


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65_536):
        connection.sendall(data)


def test_a_server_may_speak_first(stage: Stage) -> None:
    with raw_server(greet_and_echo) as port, tunnel(stage.proxy, "localhost", port) as client:
        assert client.read_until(b"\r\n") == b"220 \x00\xff who are you?\r\n"
        client.send(EVERY_BYTE + b"end")
        assert client.read_until(b"end") == EVERY_BYTE + b"end"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("data", [EVERY_BYTE, b"\n", b"SSH-2.0-x\r\n", b"\x16\x03 is not TLS at all"])
def test_any_protocol_passes_a_tunnel(stage: Stage, host: str, data: bytes) -> None:
    with raw_server(echo) as port, tunnel(stage.proxy, host, port) as client:
        for part in (data, b"and on", data):
            client.send(part)
            assert client.read_until(part) == part


def test_plain_http_within_a_tunnel_is_not_looked_at(stage: Stage) -> None:
    request = b"POST /v1/messages HTTP/1.1\r\nHost: anthropic-h1.test\r\nProxy-Connection: x\r\n\r\n"
    with raw_server(echo) as port, tunnel(stage.proxy, "localhost", port) as client:
        client.send(request)
        assert client.read_until(request) == request


# --- plain HTTP to others ---------------------------------------------------------------------------------------------


def test_a_plain_request_to_a_host_of_no_provider_passes_untouched(stage: Stage, make_upstream: MakeUpstream) -> None:
    upstream, before, gate = make_upstream(authority=None), interceptions(stage.proxy), Gate()
    upstream.answer(Answer(299, [("X-Odd", "1"), ("x-odd", "2")], [EVENTS[0], Pause(gate), EVENTS[1]]))
    headers = [(b"X-Odd", b"1"), (b"X-API-Key", b"theirs"), (b"x-odd", b"2"), (b"Accept-Encoding", b"br")]
    with RawHttp1.connect("127.0.0.1", stage.proxy.port) as client:
        client.authority = f"localhost:{upstream.port}"
        target = f"http://{client.authority}//v1/messages?a=%20b&"
        client.request("POST", target, [*headers, (b"Proxy-Connection", b"keep-alive")], SIMPLE.request)
        head = client.read_head()
        assert (head.status, head.headers[:2]) == (299, ((b"X-Odd", b"1"), (b"x-odd", b"2")))
        assert client.read_body_until(b"\n\n") == EVENTS[0]
        gate.open()
        assert client.read_body() == EVENTS[1]
    [request] = upstream.requests
    assert (request.target, request.body) == ("//v1/messages?a=%20b&", SIMPLE.request)
    length = (b"content-length", str(len(SIMPLE.request)).encode())
    assert end_to_end(request.headers, keep_case=True) == [*headers, length]
    assert interceptions(stage.proxy) == before


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_plain_request_to_a_host_of_no_provider_streams(stage: Stage, host: str) -> None:
    arrived = threading.Event()

    def serve(connection: socket.socket) -> None:
        peer = RawHttp1(connection, "localhost")
        peer.read_until(b"first")
        arrived.set()
        peer.read_until(b"second")
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    with raw_server(serve) as port, RawHttp1.connect("127.0.0.1", stage.proxy.port) as client:
        client.authority = f"{host}:{port}"
        large = b"x" * 2**20  # above `limits.passthrough_body`, up to which other addons see a body
        client.request("POST", f"http://{client.authority}/upload", [(b"content-length", b"%d" % (11 + len(large)))])
        client.send(b"first")
        assert arrived.wait(DEFAULT_TIMEOUT)
        client.send(large + b"second")
        assert (client.read_head().status, client.read_body()) == (200, b"ok")


# --- providers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["anthropic-h1.test", "Anthropic-H1.TEST", "127.0.0.1"])
def test_a_provider_is_decrypted_and_recorded(stage: Stage, host: str) -> None:
    case, before = f"decrypted {host}", interceptions(stage.proxy)
    stage.answer(case, Answer.json(json.loads(SIMPLE.body)))
    context = ssl.create_default_context(cafile=str(stage.proxy.ca_file))
    # Only mitmproxy's authority is trusted here; where an address is asked for, the name in the greeting counts.
    connection = context.wrap_socket(tunnel(stage.proxy, host, 443).socket, server_hostname="anthropic-h1.test")
    with RawHttp1(connection, host) as client:
        client.request("POST", "/v1/messages", {CASE.decode(): case}, SIMPLE.request)
        assert client.read_head().status == 200
        client.read_body()
    assert stage.received[case].sni == "localhost"
    assert interceptions(stage.proxy) == before + 1


def test_a_plain_request_to_a_provider_is_recorded_too(stage: Stage) -> None:
    before = interceptions(stage.proxy)
    stage.answer("absolute", Answer.json(json.loads(SIMPLE.body)))
    with RawHttp1.connect("127.0.0.1", stage.proxy.port) as client:
        client.authority = "anthropic-h1.test"
        client.request("POST", "http://anthropic-h1.test/v1/messages", {CASE.decode(): "absolute"}, SIMPLE.request)
        assert client.read_head().status == 200
        client.read_body()
    assert stage.received["absolute"].sni == "localhost"
    assert interceptions(stage.proxy) == before + 1


# --- gateway and passthrough ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nobody/v1/messages",
        "/anthropic-h1x/v1/messages",
        "/ANTHROPIC-H1/v1/messages",
        "/v1/messages",
        "/openai-h1/chat/completions",
        "/openai-h1/v12/chat/completions",
        "/api/v2/aibridge",
        "/api/v2/aibridge/",
        "/api/v2/aibridge/nobody/v1/messages",
        "/metrics?x",
    ],
)
def test_an_unknown_gateway_route_is_not_found(stage: Stage, path: str, method: str) -> None:
    with gateway_client(stage.proxy) as client:
        answer = client.request(method, path, json={})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert answer.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/anthropic-h1/v1/messages?beta=true", "/v1/messages?beta=true"),
        ("/openai-plain/v1/responses", "/v1/responses"),
        ("/openai-h2/v1/chat/completions", "/v1/chat/completions"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/api/v2/aibridge"])
def test_the_gateway_has_two_prefixes(stage: Stage, prefix: str, path: str, target: str) -> None:
    case, before = prefix + path, interceptions(stage.proxy)
    stage.answer(case, Answer.json({"error": {"message": "no"}}, 400))
    with gateway_client(stage.proxy, prefix) as client:
        assert client.post(path, json={"model": "m"}, headers={CASE.decode(): case}).status_code == 400
    assert stage.received[case].target == target
    assert interceptions(stage.proxy) == before + 1


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_passthrough_routes_are_forwarded_and_not_recorded(stage: Stage, route: Route) -> None:
    before, body = interceptions(stage.proxy), SIMPLE.request + b"\n not JSON at all \xff"
    length = [(b"content-length", str(len(body)).encode())]
    with route.connect(stage) as client:
        for target in ("/v1/messages/count_tokens?beta=true", "/v1/messages/batches", "/anything/else"):
            case = f"{target} {route}"
            stage.answer(case, Answer(207, [("content-encoding", "odd")], b"\x00\xff", "length"))
            headers = [(CASE, case.encode()), (b"content-encoding", b"zstd"), *length]
            seen = client.exchange("POST", target, headers, body)
            assert (seen.status, seen.body) == (207, b"\x00\xff")
            assert seen.headers == [(b"content-encoding", b"odd"), (b"content-length", b"2")]
            received = stage.received[case]
            assert (received.target, received.body) == (target, body)
            assert end_to_end(received.headers, keep_case=True) == headers
    assert interceptions(stage.proxy) == before


@pytest.mark.parametrize("route", [H1, H2], ids=str)
def test_openai_models_are_forwarded_and_not_recorded(stage: Stage, route: Route) -> None:
    case, before = f"models {route}", interceptions(stage.proxy)
    stage.answer(case, Answer.json({"data": []}))
    with route.connect(stage, "openai") as client:
        assert client.exchange("GET", "/v1/models", [(CASE, case.encode())]).body == b'{"data": []}'
    assert interceptions(stage.proxy) == before
