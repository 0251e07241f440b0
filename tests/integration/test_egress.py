"""The egress guard of a real mitmdump. Loopback stands for everything: 127.0.0.1 is private, what is above is not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import httpx
import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.support import fixtures, resolver
from tests.support.client import Head, RawHttp1, gateway_client
from tests.support.running import RunningProxy
from tests.support.script import DEFAULT_TIMEOUT, Answer
from tests.support.upstream import unused_port

GOOD, BAD = "127.0.0.2", "127.0.0.1"
DEAD = "127.0.0.3"
"""Allowed, but without a listener."""
SIMPLE = fixtures.case("messages/simple/blocking")
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
NAMES = {
    "good.test": [[GOOD]],
    "bad.test": [[BAD]],
    "both.test": [[GOOD, BAD]],
    "half.test": [[DEAD, GOOD]],
    "mapped.test": [["::ffff:127.0.0.1"]],
    "shifty.test": [[GOOD], [BAD]],
    "api.githubcopilot.com": [[BAD]],
}


class Places:
    """A server on each of the two addresses, on one port; it answers every request with `hi`."""

    def __init__(self, stack: ExitStack) -> None:
        self.reached: list[str] = []
        good = self._listen(stack, GOOD, 0)
        self.port = good
        self._listen(stack, BAD, good)

    def _listen(self, stack: ExitStack, host: str, port: int) -> int:
        server = socket.create_server((host, port))
        stack.callback(server.close)
        threading.Thread(target=self._serve, args=(server, host), daemon=True).start()
        return int(server.getsockname()[1])

    def _serve(self, server: socket.socket, host: str) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            self.reached.append(host)
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(DEFAULT_TIMEOUT)
            received = b""
            while data := connection.recv(65_536):
                received += data
                while b"\r\n\r\n" in received:
                    received = received.partition(b"\r\n\r\n")[2]
                    connection.sendall(ANSWER)


@pytest.fixture
def places() -> Iterator[Places]:
    for _ in range(20):
        with ExitStack() as stack:
            try:
                opened = Places(stack)
            except OSError:
                continue  # the port is taken on the other address
            yield opened
            return
    raise AssertionError("no port is free on both addresses")


StartGuarded = Callable[..., RunningProxy]


@pytest.fixture
def start(start_proxy: StartProxy, places: Places) -> StartGuarded:
    def start(more: str = "", guard: str = "on", options: Sequence[str] = ()) -> RunningProxy:
        egress = f"egress: {{guard: {guard}, ports: [{places.port}], allowed_private_cidrs: [{GOOD}/32, {DEAD}/32]}}"
        return start_proxy(
            config=f"{egress}\n{more}",
            arguments=["-s", str(resolver.__file__)],
            env={"SCRIPTED_NAMES": json.dumps(NAMES)},
            options=options,
        )

    return start


def connect(proxy: RunningProxy, host: str, port: int) -> tuple[RawHttp1, Head]:
    """Ask for a tunnel."""
    client = RawHttp1.connect("127.0.0.1", proxy.port)
    client.send(f"CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n".encode())
    return client, client.read_head()


def ask_plain(proxy: RunningProxy, host: str, port: int) -> tuple[RawHttp1, Head]:
    client = RawHttp1.connect("127.0.0.1", proxy.port)
    client.send(f"GET http://{host}:{port}/ HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n".encode())
    return client, client.read_head()


WAYS = pytest.mark.parametrize("ask", [connect, ask_plain], ids=["tunnel", "plain"])
Ask = Callable[[RunningProxy, str, int], tuple[RawHttp1, Head]]


@WAYS
def test_what_is_private_is_refused_by_address_and_by_name(start: StartGuarded, places: Places, ask: Ask) -> None:
    proxy = start()
    hosts = [BAD, "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "169.254.169.254", "10.0.0.1"]
    for host in (*hosts, "bad.test", "both.test", "mapped.test"):
        client, head = ask(proxy, host, places.port)
        with client:
            body = json.loads(client.read_body())
        assert (head.status, body["error"]["type"]) == (403, "permission_error"), host
        assert "private or reserved" in body["error"]["message"]
    assert places.reached == []
    proxy.wait_for_log(r"egress guard: refused 127\.0\.0\.1:\d+")


@WAYS
def test_a_port_that_is_not_listed_is_refused(start: StartGuarded, places: Places, ask: Ask) -> None:
    client, head = ask(start(), GOOD, 22)
    with client:
        assert head.status == 403 and "port 22" in json.loads(client.read_body())["error"]["message"]


@WAYS
@pytest.mark.parametrize("host", [GOOD, "good.test"])
def test_an_allowed_network_is_reached(start: StartGuarded, places: Places, ask: Ask, host: str) -> None:
    client, head = ask(start(), host, places.port)
    with client:
        assert head.status == 200
        if ask is connect:
            client.send(b"GET / HTTP/1.1\r\n\r\n")
            assert client.read_head().status == 200
        assert client.read_body() == b"hi"
    assert places.reached == [GOOD]


@WAYS
def test_a_name_whose_address_changes_is_dialled_where_it_was_checked(
    start: StartGuarded, places: Places, ask: Ask
) -> None:
    proxy = start()
    client, head = ask(proxy, "shifty.test", places.port)
    with client:
        assert head.status == 200
        if ask is connect:
            client.send(b"GET / HTTP/1.1\r\n\r\n")
            client.read_head()
        assert client.read_body() == b"hi"
    assert places.reached == [GOOD]
    client, head = ask(proxy, "shifty.test", places.port)
    with client:
        assert head.status == 403
    assert places.reached == [GOOD]


@WAYS
def test_an_address_that_does_not_answer_is_left_for_the_names_next_one(
    start: StartGuarded, places: Places, ask: Ask
) -> None:
    """Each client has a connection of its own, and so has every tunnel: what one has found out is for all."""
    proxy, statuses = start(), []
    for _ in range(3):
        client, head = ask(proxy, "half.test", places.port)
        with client:
            statuses.append(head.status)
    assert statuses == [502, 200, 200]


def test_upstream_connections_are_kept_under_their_names(start: StartGuarded, places: Places) -> None:
    client, _ = ask_plain(start(), "good.test", places.port)
    with client:
        client.read_body()
        for _ in range(3):
            client.send(f"GET http://good.test:{places.port}/ HTTP/1.1\r\nhost: good.test\r\n\r\n".encode())
            assert client.read_head().status == 200 and client.read_body() == b"hi"
    assert places.reached == [GOOD]


@WAYS
@pytest.mark.parametrize("guard", ["on", "off"])
def test_names_whose_servers_are_silent_cost_no_other_client(
    start: StartGuarded, places: Places, ask: Ask, guard: str
) -> None:
    proxy = start(guard=guard)
    with ExitStack() as waiting:
        for number in range(60):
            client = waiting.enter_context(RawHttp1.connect("127.0.0.1", proxy.port))
            line = f"GET http://silent{number}.test:{places.port}/ HTTP/1.1\r\nhost: silent{number}.test\r\n\r\n"
            client.send(line.encode())
        client, head = ask(proxy, "good.test", places.port)
        with client:
            assert head.status == 200


@WAYS
def test_a_name_that_cannot_be_resolved_is_reported(start: StartGuarded, places: Places, ask: Ask) -> None:
    client, head = ask(start(), "nowhere.test", places.port)
    with client:
        assert head.status == 502 and "cannot be resolved" in json.loads(client.read_body())["error"]["message"]


def test_a_host_of_a_provider_is_no_way_around(start: StartGuarded, places: Places) -> None:
    client, head = connect(start(), "api.githubcopilot.com", places.port)
    with client:
        assert head.status == 403
    assert places.reached == []


def test_a_providers_own_base_url_is_always_allowed(start: StartGuarded, make_upstream: MakeUpstream) -> None:
    upstream = make_upstream()
    upstream.answer(Answer.json({"id": "msg_1", "type": "message"}))
    proxy = start(f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}]")
    with gateway_client(proxy) as client:
        answer = client.post("/anthropic/v1/messages", content=SIMPLE.request)
    assert answer.status_code == 200


@pytest.mark.parametrize("guard", ["off", "auto"])
def test_without_a_guard_and_by_default_on_loopback_everything_is_reached(
    start: StartGuarded, places: Places, guard: str
) -> None:
    client, head = ask_plain(start(guard=guard), BAD, places.port)
    with client:
        assert head.status == 200 and client.read_body() == b"hi"


def test_an_unverified_upstream_is_said_aloud_and_shown(start: StartGuarded) -> None:
    port = unused_port()
    proxy = start(f"metrics: {{listen: '127.0.0.1:{port}'}}", options=["ssl_insecure=true"])
    proxy.wait_for_log("UPSTREAM CERTIFICATES ARE NOT VERIFIED")
    answer = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False)
    assert answer.json()["ssl_insecure"] is True
