"""The Responses API over real WebSockets, through a real mitmdump: what is recorded, held, refused, and left alone."""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tests.conftest import StartMitmdump
from tests.integration.exchanges import OPENAI, wait_for_ended
from tests.integration.stage import told
from tests.support import fixtures, frames
from tests.support.client import gateway_client, trust
from tests.support.database import locked
from tests.support.mitmdump import Mitmdump
from tests.support.reloading import copy_package, reload
from tests.support.upstream import Answer, ScriptedUpstream

TIMEOUT = 20.0
KEY = "sk-test-0123456789abcdef"
CODEX = fixtures.case("responses/codex_main/streaming")
PREWARM = fixtures.case("responses/codex_prewarm/streaming")
SIMPLE = fixtures.case("responses/simple/streaming")
TOOLS = fixtures.case("responses/parallel_tools/streaming")
THINKING = fixtures.case("responses/thinking/streaming")
PATH = "/v1/responses"
MCP = f"mcp: {{servers: {{time: {{command: '{Path(sys.executable).with_name('mcp-server-time')}'}}}}}}"

Message = str | bytes | list[str]
Script = Callable[[ServerConnection], None]


class Provider:
    """A server that answers each message by the script, and keeps what it was sent, fragment by fragment."""

    def __init__(self) -> None:
        self.answers: list[list[Message]] = []
        self.received: list[list[str | bytes]] = []
        self.upgrades: list[Headers] = []
        self.deflated: list[bool] = []
        self.port = 0

    def answer(self, *messages: Message) -> None:
        self.answers.append(list(messages))

    def serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.upgrades.append(connection.request.headers)
        self.deflated.append(any(isinstance(e, PerMessageDeflate) for e in connection.protocol.extensions))
        try:
            while True:
                self.received.append(list(connection.recv_streaming()))
                for message in self.answers.pop(0) if self.answers else []:
                    connection.send(message)
        except ConnectionClosed:
            pass


@contextmanager
def served(script: Script) -> Iterator[int]:
    with serve(script, "127.0.0.1", 0, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    with served(found.serve) as found.port:
        yield found


def config(port: int, *more: str) -> str:
    return "\n".join([f"providers: [{{name: openai, type: openai, base_url: 'http://localhost:{port}/v1'}}]", *more])


@contextmanager
def through(
    process: Mitmdump, way: str = "gateway", path: str = "/responses", **options: Any
) -> Iterator[ClientConnection]:
    """A connection as Codex makes it."""
    headers = {"authorization": f"Bearer {KEY}"} | {
        name.decode().lower(): value.decode() for name, value in CODEX.request_headers
    }
    agent = headers.pop("user-agent", None)
    options |= {"additional_headers": headers, "user_agent_header": agent, "open_timeout": TIMEOUT, "max_size": None}
    if way == "gateway":
        connection = connect(f"ws://127.0.0.1:{process.port}/openai/v1{path}", proxy=None, **options)
    elif way == "proxy":
        connection = connect(f"ws://{OPENAI}/v1{path}", proxy=process.proxy_url, **options)
    else:
        trusted = trust(process)
        connection = connect(f"wss://{OPENAI}/v1{path}", proxy=process.proxy_url, ssl=trusted, **options)
    with connection as client:
        yield client


def text(*messages: bytes) -> list[str]:
    return [message.decode() for message in messages]


def read(client: ClientConnection, n: int) -> list[list[str | bytes]]:
    """The next messages, each as its fragments."""
    return [list(client.recv_streaming()) for _ in range(n)]


# --- record -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["gateway", "proxy", "proxy with TLS"])
@pytest.mark.parametrize("compression", ["deflate", None])
def test_turns_on_one_connection_are_interceptions_and_pass_untouched(
    mitmdump: StartMitmdump, provider: Provider, way: str, compression: str | None
) -> None:
    process = mitmdump(config=config(provider.port))
    cases = (PREWARM, CODEX, TOOLS)
    for case in cases:
        provider.answer(*text(*frames.events(case)))
    with through(process, way, compression=compression) as client:
        for n, case in enumerate(cases, 1):
            client.send(frames.create(case).decode())
            events = text(*frames.events(case))
            assert read(client, len(events)) == [[event] for event in events]
            # Without waiting: the last message was held until its rows were committed.
            assert [row["status"] for row in process.rows("aibridge_interceptions")] == ["completed"] * n
    assert provider.received == [[frames.create(case).decode()] for case in cases]
    assert provider.deflated == [compression is not None]
    prewarm, codex, tools = sorted(told(process), key=lambda row: str(row["started_at"]))
    for row, case in ((prewarm, PREWARM), (codex, CODEX), (tools, TOOLS)):
        assert row["route"] == PATH and row["streaming"] and row["turns"] == 1 and row["http_status"] == 200
        assert row["client"] == CODEX.expected["client"]
        assert row["client_session_id"] == CODEX.expected["client_session_id"]
        assert (row["credential_kind"], row["initiator_id"] != "") == ("byok", True)
        assert row["tokens"] == case.expected["tokens"]
        assert row["tools"] == case.expected.get("tools", [])
    assert prewarm["prompt"] is None
    assert codex["prompt"] == CODEX.expected["prompt"]


@pytest.mark.parametrize("compression", ["deflate", None])
def test_fragments_pass_as_they_were_cut(mitmdump: StartMitmdump, provider: Provider, compression: str | None) -> None:
    """Where a message is compressed, the frames are as many, but mitmproxy's compressor says what is in which."""
    process = mitmdump(config=config(provider.port))
    *events, last = text(*frames.events(THINKING))
    request = frames.create(THINKING).decode()
    asked = [request[:7], request[7:9], request[9:]]
    cut = [last[:100], last[100:101], last[101:]]
    provider.answer(*events, cut)
    with through(process, compression=compression) as client:
        client.send(asked)
        received = read(client, len(events) + 1)[-1]
    [sent] = provider.received
    for seen, said in ((received, cut), (sent, asked)):
        if compression is None:
            assert seen == [*said, ""]  # an empty frame is how the library ends a message in pieces
        else:
            assert (len(seen), "".join(map(str, seen))) == (len(said) + 1, "".join(said))
    [row] = told(process)
    assert row["tokens"] == THINKING.expected["tokens"]
    assert row["thoughts"] == THINKING.expected["thoughts"]


def test_messages_of_no_known_kind_pass_and_are_not_recorded(mitmdump: StartMitmdump, provider: Provider) -> None:
    process = mitmdump(config=config(provider.port))
    strange: list[Message] = ["hello", b"\x00\xff", '{"type":"codex.rate_limits"}', "[]"]
    provider.answer(*strange)
    with through(process) as client:
        client.send(b"\x00\xff")
        assert read(client, len(strange)) == [[message] for message in strange]
    assert provider.received == [[b"\x00\xff"]]
    assert process.rows("aibridge_interceptions") == []


def test_a_message_above_the_limit_passes_and_the_record_says_partial(
    mitmdump: StartMitmdump, provider: Provider
) -> None:
    process = mitmdump(config=config(provider.port, "limits: {sse_event: 64KiB}"))
    big = json.dumps({"type": "response.output_item.done", "item": {"text": "x" * 3_000_000}})
    *events, last = text(*frames.events(SIMPLE))
    provider.answer(*events, big, last)
    with through(process) as client:
        client.send(frames.create(SIMPLE).decode())
        assert read(client, len(events) + 2)[-2:] == [[big], [last]]
    [row] = told(process)
    assert row["status"] == "completed"
    assert [tokens["completeness"] for tokens in row["tokens"]] == ["partial"]


@pytest.mark.parametrize("by", ["client", "upstream"])
def test_a_connection_that_breaks_in_an_answer_fails_it(mitmdump: StartMitmdump, provider: Provider, by: str) -> None:
    held = threading.Event()

    def half(connection: ServerConnection) -> None:
        connection.recv()
        for event in text(*frames.events(TOOLS))[:-1]:
            connection.send(event)
        if by == "upstream":
            connection.socket.shutdown(socket.SHUT_RDWR)
        held.wait(TIMEOUT)

    with served(half) as port:
        process = mitmdump(config=config(port))
        with through(process) as client:
            client.send(frames.create(TOOLS).decode())
            read(client, len(frames.events(TOOLS)) - 1)
            if by == "client":
                client.socket.shutdown(socket.SHUT_RDWR)
            [row] = wait_for_ended(process, 1)
            held.set()
    assert (row["status"], row["error_type"]) == ("failed", f"{by}_disconnected")
    assert len(process.rows("aibridge_tool_usages")) == len(TOOLS.expected["tools"])


def test_a_client_that_drops_the_connection_at_the_end_has_all_its_rows(
    mitmdump: StartMitmdump, provider: Provider
) -> None:
    """As Codex does, right after `response.completed`."""
    process = mitmdump(config=config(provider.port))
    events = text(*frames.events(CODEX))
    provider.answer(*events)
    with through(process) as client:
        client.send(frames.create(CODEX).decode())
        read(client, len(events))
        client.socket.shutdown(socket.SHUT_RDWR)
        [row] = told(process)
    assert (row["status"], row["tokens"]) == ("completed", CODEX.expected["tokens"])


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")  # the SDK does not use it as a context manager
def test_openais_own_client_speaks_over_it(mitmdump: StartMitmdump, provider: Provider) -> None:
    process = mitmdump(config=config(provider.port))
    body = json.loads(SIMPLE.request)
    body.pop("stream", None)
    for _ in range(2):
        provider.answer(*text(*frames.events(SIMPLE)))
    client = openai.OpenAI(api_key=KEY, base_url=f"{process.proxy_url}/openai/v1", max_retries=0)
    with client.responses.connect() as connection:
        for _ in range(2):
            connection.response.create(**body)
            kinds = [connection.recv().type for _ in frames.events(SIMPLE)]
            assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert [row["tokens"] for row in told(process)] == [SIMPLE.expected["tokens"]] * 2


def test_an_error_is_told_with_its_status(mitmdump: StartMitmdump, provider: Provider) -> None:
    process = mitmdump(config=config(provider.port))
    error = '{"type":"error","status":429,"error":{"type":"usage_limit_reached","message":"later"}}'
    provider.answer(error)
    with through(process) as client:
        client.send(frames.create(CODEX).decode())
        assert client.recv() == error
    [row] = told(process)
    assert (row["status"], row["http_status"], row["error_type"]) == ("failed", 429, "usage_limit_reached")


def test_an_open_circuit_breaker_refuses_requests_and_not_the_socket(
    mitmdump: StartMitmdump, provider: Provider
) -> None:
    breaker = "{failure_threshold: 1, interval: 60, timeout: 60, max_requests: 1}"
    one = f"{{name: openai, type: openai, base_url: 'http://localhost:{provider.port}/v1', circuit_breaker: {breaker}}}"
    process = mitmdump(config=f"providers: [{one}]")
    provider.answer('{"type":"error","status":503,"error":{"type":"server_error","message":"overloaded"}}')
    with through(process) as client:
        client.send(frames.create(SIMPLE).decode())
        assert json.loads(client.recv())["error"]["message"] == "overloaded"
        client.send(frames.create(SIMPLE).decode())
        said = json.loads(client.recv())
        assert (said["type"], said["status"], said["error"]["message"]) == ("error", 503, "circuit breaker is open")
    assert len(provider.received) == 1
    rows = wait_for_ended(process, 2)
    assert [row["error_type"] for row in rows] == ["server_error", "circuit_breaker_open"]


def test_a_central_key_is_used_where_the_client_brings_none(mitmdump: StartMitmdump, provider: Provider) -> None:
    address = f"http://localhost:{provider.port}/v1"
    process = mitmdump(config=f"providers: [{{name: openai, type: openai, base_url: '{address}', api_key: {KEY}}}]")
    provider.answer(*text(*frames.events(SIMPLE)))
    with connect(f"ws://127.0.0.1:{process.port}/openai/v1/responses", proxy=None) as client:
        client.send(frames.create(SIMPLE).decode())
        read(client, len(frames.events(SIMPLE)))
    assert provider.upgrades[0]["authorization"] == f"Bearer {KEY}"
    assert told(process)[0]["credential_kind"] == "centralized"


def test_no_request_passes_that_cannot_be_recorded_where_the_configuration_wants_that(
    mitmdump: StartMitmdump, provider: Provider
) -> None:
    process = mitmdump(config=config(provider.port, "recording: {on_failure: closed}"))
    provider.answer(*text(*frames.events(SIMPLE)))
    with through(process) as client:
        client.send(frames.create(SIMPLE).decode())
        read(client, len(frames.events(SIMPLE)))
        with locked(process.database):
            client.send(frames.create(SIMPLE).decode())
            said = json.loads(client.recv(TIMEOUT))
    assert (said["type"], said["status"], said["error"]["type"]) == ("error", 503, "server_error")
    assert len(provider.received) == 1


def test_an_answer_that_cannot_be_recorded_ends_in_an_error_where_the_configuration_wants_that(
    mitmdump: StartMitmdump,
) -> None:
    gate = threading.Event()

    def slow(connection: ServerConnection) -> None:
        connection.recv()
        *events, last = text(*frames.events(SIMPLE))
        for event in events:
            connection.send(event)
        gate.wait(TIMEOUT)
        connection.send(last)

    with served(slow) as port:
        process = mitmdump(config=config(port, "recording: {on_failure: closed}"))
        with through(process) as client:
            client.send(frames.create(SIMPLE).decode())
            read(client, len(frames.events(SIMPLE)) - 1)
            with locked(process.database):
                gate.set()
                said = json.loads(client.recv(TIMEOUT))
    assert (said["type"], said["status"]) == ("error", 503)


# --- upgrade_required -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["websockets: upgrade_required", MCP])
def test_the_upgrade_is_refused_with_426_and_the_client_can_go_on_over_http(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, mode: str
) -> None:
    process = mitmdump(config=f"providers: [{{name: openai, type: openai, base_url: '{upstream.url}/v1'}}]\n{mode}")
    with pytest.raises(InvalidStatus) as refused, through(process):
        pass
    response = refused.value.response
    assert response.status_code == 426
    assert json.loads(response.body)["error"]["type"] == "invalid_request_error"
    upstream.answer(Answer.event_stream(SIMPLE.body))
    with gateway_client(process, "/openai") as client:
        assert client.post(PATH, content=SIMPLE.request).status_code == 200
    assert [request.method for request in upstream.requests] == ["POST"]
    assert [row["status"] for row in wait_for_ended(process, 1)] == ["completed"]


@pytest.mark.parametrize(
    ("provider_says", "more"),
    [
        ("", "websockets: record"),
        ("", f"websockets: record\n{MCP}"),
        ("", ""),
        ("", "websockets: auto"),
        (", inject_tools: false", MCP),
    ],
)
def test_the_upgrade_is_let_through_where_nothing_would_be_injected_or_the_configuration_says_so(
    mitmdump: StartMitmdump, provider: Provider, provider_says: str, more: str
) -> None:
    address = f"http://localhost:{provider.port}/v1"
    one = f"{{name: openai, type: openai, base_url: '{address}'{provider_says}}}"
    process = mitmdump(config=f"providers: [{one}]\n{more}")
    provider.answer(*text(*frames.events(SIMPLE)))
    with through(process) as client:
        client.send(frames.create(SIMPLE).decode())
        assert read(client, len(frames.events(SIMPLE))) == [[event] for event in text(*frames.events(SIMPLE))]
    assert len(told(process)) == 1


def test_other_websockets_of_a_provider_pass_whatever_is_configured(
    mitmdump: StartMitmdump, provider: Provider
) -> None:
    process = mitmdump(config=config(provider.port, "websockets: upgrade_required"))
    provider.answer("pong")
    with through(process, path="/realtime?model=x") as client:
        client.send(frames.create(SIMPLE).decode())
        assert client.recv() == "pong"
    assert process.rows("aibridge_interceptions") == []


def test_an_upgrade_asks_who_it_is_like_any_request(mitmdump: StartMitmdump, provider: Provider) -> None:
    process = mitmdump(config=config(provider.port, "actor: {required: true}", "websockets: upgrade_required"))
    with pytest.raises(InvalidStatus) as refused, through(process):
        pass
    assert refused.value.response.status_code == 401
    assert provider.upgrades == []


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_stop_waits_for_an_answer_and_not_for_an_idle_socket(mitmdump: StartMitmdump) -> None:
    gate = threading.Event()

    def slow(connection: ServerConnection) -> None:
        try:
            for n in itertools.count():
                connection.recv()
                *events, last = text(*frames.events(SIMPLE))
                for event in events:
                    connection.send(event)
                if n or len(idle) == 1:
                    gate.wait(TIMEOUT)
                connection.send(last)
        except ConnectionClosed:
            pass

    idle: list[ClientConnection] = []
    with served(slow) as port:
        process = mitmdump(config=config(port, "drain_timeout: 30"))
        with through(process) as first:
            first.send(frames.create(SIMPLE).decode())
            read(first, len(frames.events(SIMPLE)))
            idle.append(first)
            with through(process) as client:
                client.send(frames.create(SIMPLE).decode())
                read(client, len(frames.events(SIMPLE)) - 1)
                process.terminate()
                process.wait_for_log("draining: 1 requests under way")
                gate.set()
                assert client.recv() == text(*frames.events(SIMPLE))[-1]
                assert process.wait() == 0
    assert [row["status"] for row in process.rows("aibridge_interceptions")] == ["completed"] * 2


def test_a_socket_outlives_a_reload_and_what_follows_is_recorded(
    mitmdump: StartMitmdump, provider: Provider, tmp_path: Path
) -> None:
    script = copy_package(tmp_path / "copy")
    process = mitmdump(config=config(provider.port), script=script)
    events = frames.events(SIMPLE)
    with through(process) as client:
        for times in range(3):
            if times:
                reload(process, script, times)
            provider.answer(*text(*events))
            client.send(frames.create(SIMPLE).decode())
            read(client, len(events))
            assert [row["status"] for row in process.rows("aibridge_interceptions")] == ["completed"] * (times + 1)
