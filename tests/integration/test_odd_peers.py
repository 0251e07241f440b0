"""IPv6 upstreams, HTTP/1.0 clients, bodies with two codings, and requests through the proxy to the proxy itself."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.stage import interceptions
from tests.integration.turns import JSON_BODY
from tests.support import fixtures, resolver
from tests.support.client import RawHttp1, connect_through, gateway_client
from tests.support.running import RunningProxy
from tests.support.script import DEFAULT_TIMEOUT
from tests.support.upstream import Answer, ScriptedUpstream

BLOCKING = fixtures.case("messages/simple/blocking")
STREAMING = fixtures.case("messages/simple/streaming")
HTTP = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])


def provider(url: str, more: str = "") -> str:
    return f"providers: [{{name: anthropic, type: anthropic, base_url: '{url}'{more}}}]"


# --- IPv6 -----------------------------------------------------------------------------------------------------------


@contextmanager
def ipv6_server(heads: list[bytes]) -> Iterator[int]:
    """Answer each request with an empty object, and close its connection."""
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(DEFAULT_TIMEOUT)
                received = b""
                while b"\r\n\r\n" not in received:
                    received += connection.recv(65_536)
                heads.append(received.partition(b"\r\n\r\n")[0].lower())
                connection.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with server:
        yield int(server.getsockname()[1])


@pytest.mark.parametrize("key", ["", ", api_key: sk-ant-central-0123456789"])
@pytest.mark.parametrize("way", ["gateway", "proxy"])
def test_an_ipv6_address_is_in_brackets_in_the_host_header(start_proxy: StartProxy, key: str, way: str) -> None:
    heads: list[bytes] = []
    with ipv6_server(heads) as port:
        proxy = start_proxy(config=provider(f"http://[::1]:{port}", key))
        if way == "gateway":
            with gateway_client(proxy) as client:
                assert client.get("/anthropic/v1/models").status_code == 200
        else:
            for http2 in (False, True):
                with Client(proxy, ANTHROPIC, http2=http2) as tunnel:
                    assert tunnel.ask("GET", "/v1/models").status == 200
    assert heads
    for head in heads:
        assert f"\r\nhost: [::1]:{port}".encode() in head


# --- codings --------------------------------------------------------------------------------------------------------


@HTTP
def test_codings_on_two_lines_are_one_list(start_proxy: StartProxy, upstream: ScriptedUpstream, http2: bool) -> None:
    proxy = start_proxy(config=provider(upstream.url))
    upstream.answer(Answer(200, [("content-type", "application/json")], BLOCKING.body, framing="length"))
    body = gzip.compress(zlib.compress(BLOCKING.request))
    coded = [*JSON_BODY, ("content-encoding", "deflate"), ("content-encoding", "gzip")]
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        assert client.post("/v1/messages", body, coded).status == 200
    wait_for_ended(proxy, 1)
    [row] = interceptions(proxy)
    assert row["prompt"] == BLOCKING.expected["prompt"]
    [request] = upstream.requests
    assert request.body == body and request.values("content-encoding") == ["deflate", "gzip"]


# --- HTTP/1.0 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/anthropic/v1/messages", "/anthropic/v1/messages/count_tokens"])
@pytest.mark.parametrize("headers", ["host: localhost\r\n", "", "connection: keep-alive\r\n"])
def test_the_upstream_of_an_http_1_0_client_is_spoken_to_in_1_1(
    start_proxy: StartProxy, path: str, headers: str
) -> None:
    with ScriptedUpstream() as upstream:
        proxy = start_proxy(config=provider(upstream.url))
        upstream.answer(Answer.event_stream(STREAMING.body[:100], STREAMING.body[100:]))
        body = STREAMING.request
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=DEFAULT_TIMEOUT) as client:
            client.sendall(
                f"POST {path} HTTP/1.0\r\n{headers}content-type: application/json\r\n"
                f"content-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            received = b""
            while data := client.recv(65_536):  # the connection's end is the body's end
                received += data
        head, _, answer = received.partition(b"\r\n\r\n")
        assert head.split()[1] == b"200" and b"chunked" not in head.lower()
        assert answer == STREAMING.body
        [request] = upstream.requests
        assert request.http_version == "1.1"


# --- ourselves ------------------------------------------------------------------------------------------------------


def ask_in_tunnel(proxy: RunningProxy, host: str, port: int, path: str, headers: str = "") -> int:
    """Send a plain request inside of a CONNECT."""
    with RawHttp1.connect("127.0.0.1", proxy.port) as raw:
        raw.send(f"CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n".encode())
        status = raw.read_head().status
        if status != 200:
            return status
        raw.send(f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\n{headers}\r\n".encode())
        return raw.read_head().status


def ask_absolute(proxy: RunningProxy, host: str, port: int, path: str, headers: str = "") -> int:
    with RawHttp1.connect("127.0.0.1", proxy.port) as raw:
        raw.send(f"GET http://{host}:{port}{path} HTTP/1.1\r\nhost: {host}:{port}\r\n{headers}\r\n".encode())
        return raw.read_head().status


@pytest.mark.parametrize("ask", [ask_in_tunnel, ask_absolute])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
@pytest.mark.parametrize("guard", ["on", "off"])
def test_our_own_address_is_the_gateway(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ask: object, host: str, guard: str
) -> None:
    proxy = start_proxy(config=f"egress: {{guard: '{guard}'}}\n{provider(upstream.url)}")
    upstream.answer(Answer.json({}))
    assert callable(ask)
    assert ask(proxy, host, proxy.port, "/anthropic/v1/models") == 200
    assert ask(proxy, host, proxy.port, "/nothing/here") == 404
    [request] = upstream.requests
    assert request.target == "/v1/models"


def test_an_actor_header_of_a_connection_to_ourselves_is_not_trusted(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(
        config=(
            "actor: {header: X-User, default: unnamed, trusted_sources: [127.0.0.0/8]}\n"
            f"egress: {{guard: 'off'}}\n{provider(upstream.url)}"
        ),
        arguments=["-s", str(resolver.__file__)],
        env={"SCRIPTED_NAMES": json.dumps({"bridge.test": [["127.0.0.1"]]})},
    )
    answer = Answer(200, [("content-type", "application/json")], BLOCKING.body, framing="length")
    upstream.answer(answer, answer)
    body = BLOCKING.request

    def post(raw: RawHttp1) -> None:
        head = f"POST /anthropic/v1/messages HTTP/1.1\r\nhost: x\r\nx-user: root\r\ncontent-length: {len(body)}\r\n\r\n"
        raw.send(head.encode() + body)
        assert raw.read_head().status == 200

    with RawHttp1.connect("127.0.0.1", proxy.port) as raw:  # the front proxy itself
        post(raw)
    with RawHttp1.connect("127.0.0.1", proxy.port) as raw:  # a client that comes back to us
        raw.send(f"CONNECT bridge.test:{proxy.port} HTTP/1.1\r\nhost: bridge.test:{proxy.port}\r\n\r\n".encode())
        assert raw.read_head().status == 200
        post(raw)
    rows = wait_for_ended(proxy, 2)
    assert [row["initiator_id"] for row in rows] == ["root", "unnamed"]


@HTTP
def test_an_internal_provider_is_reachable_by_its_public_name(
    start_proxy: StartProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    """The public name is a private address here, or no name at all: it is not dialled."""
    config = (
        "egress: {guard: 'on'}\nproviders:\n"
        f"- {{name: anthropic, type: anthropic, hosts: [public.test, unknown.test], base_url: '{upstream.url}'}}"
    )
    proxy = start_proxy(
        config=config,
        arguments=["-s", str(resolver.__file__)],
        env={"SCRIPTED_NAMES": json.dumps({"public.test": [["10.0.0.1"]]})},
    )
    for host in ("public.test", "unknown.test"):
        upstream.answer(Answer.json({}))
        with Client(proxy, host, http2=http2) as client:
            assert client.ask("GET", "/v1/models").status == 200
    assert len(upstream.requests) == 2


def test_a_host_that_stays_where_it_is_is_still_guarded(start_proxy: StartProxy) -> None:
    proxy = start_proxy(
        config="egress: {guard: 'on'}\nproviders: [{name: azure, type: azure, hosts: ['*.azure.test']}]",
        arguments=["-s", str(resolver.__file__)],
        env={"SCRIPTED_NAMES": json.dumps({"mine.azure.test": [["10.0.0.1"]]})},
    )
    with RawHttp1.connect("127.0.0.1", proxy.port) as raw:
        raw.send(b"CONNECT mine.azure.test:443 HTTP/1.1\r\nhost: mine.azure.test:443\r\n\r\n")
        assert raw.read_head().status == 403


# --- equivalent names -----------------------------------------------------------------------------------------------


@HTTP
@pytest.mark.parametrize("host", ["API.ANTHROPIC.COM", "api.anthropic.com."])
def test_equivalent_hosts_and_paths_are_recorded(
    start_proxy: StartProxy, upstream: ScriptedUpstream, http2: bool, host: str
) -> None:
    proxy = start_proxy(config=provider(upstream.url))
    paths = ("/v1/messages", "//v1/messages", "/v1/messages/", "/v1/%6dessages", "/v1/./messages")
    for path in paths:
        upstream.answer(Answer(200, [("content-type", "application/json")], BLOCKING.body, framing="length"))
        with Client(proxy, host, http2=http2) as client:
            assert client.post(path, BLOCKING.request, JSON_BODY).status == 200
    wait_for_ended(proxy, len(paths))


@pytest.mark.parametrize("host", ["OWN.TEST", "own.test."])
def test_a_host_without_a_base_url_is_reached_by_an_equivalent_name(
    start_proxy: StartProxy, make_upstream: MakeUpstream, host: str
) -> None:
    upstream = make_upstream(names=["own.test"])
    proxy = start_proxy(
        config="providers: [{name: azure, type: azure, hosts: [own.test]}]",
        arguments=["-s", str(resolver.__file__)],
        env={"SCRIPTED_NAMES": json.dumps({host: [["127.0.0.1"]]})},
    )
    upstream.answer(Answer.json({}))
    with RawHttp1(connect_through(proxy, host, upstream.port), f"{host}:{upstream.port}") as raw:
        raw.request("POST", "/openai/v1/chat/completions", JSON_BODY, b'{"model": "m", "messages": []}')
        assert raw.read_head().status == 200
    [request] = upstream.requests
    assert (request.sni or "").lower() == "own.test"
    wait_for_ended(proxy, 1)
