"""The Responses API over real WebSockets, through a real proxy: what is recorded, held, refused, and left alone."""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import openai
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection

from tests.conftest import StartProxy
from tests.integration.exchanges import wait_for_ended
from tests.integration.sockets import (
    CODEX,
    KEY,
    SIMPLE,
    TIMEOUT,
    Message,
    Provider,
    config,
    read,
    served,
    text,
    through,
)
from tests.integration.stage import interceptions
from tests.support import fixtures, frames
from tests.support.client import gateway_client
from tests.support.database import locked
from tests.support.upstream import Answer, ScriptedUpstream

PREWARM = fixtures.case("responses/codex_prewarm/streaming")
TOOLS = fixtures.case("responses/parallel_tools/streaming")
THINKING = fixtures.case("responses/thinking/streaming")
PATH = "/v1/responses"
MCP = f"mcp: {{servers: {{time: {{command: '{Path(sys.executable).with_name('mcp-server-time')}'}}}}}}"


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    with served(found.serve) as found.port:
        yield found


# --- record -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["gateway", "proxy", "proxy with TLS"])
@pytest.mark.parametrize("compression", ["deflate", None])
def test_turns_on_one_connection_are_interceptions_and_pass_untouched(
    start_proxy: StartProxy, provider: Provider, way: str, compression: str | None
) -> None:
    process = start_proxy(config=config(provider.port))
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
    prewarm, codex, tools = sorted(interceptions(process), key=lambda row: str(row["started_at"]))
    for row, case in ((prewarm, PREWARM), (codex, CODEX), (tools, TOOLS)):
        assert row["route"] == PATH and row["streaming"] and row["turns"] == 1 and row["http_status"] == 200
        assert row["client"] == CODEX.expected["client"]
        assert row["client_session_id"] == CODEX.expected["client_session_id"]
        assert (row["credential_kind"], row["initiator_id"] != "") == ("byok", True)
        assert (row["upstream_host"], row["billing"]) == ("localhost", "api")
        assert row["time_to_first_byte_ms"] >= 0
        assert row["tokens"] == case.expected["tokens"]
        assert row["tools"] == case.expected.get("tools", [])
    assert prewarm["prompt"] is None
    assert codex["prompt"] == CODEX.expected["prompt"]


@pytest.mark.parametrize("compression", ["deflate", None])
def test_fragments_pass_as_they_were_cut(start_proxy: StartProxy, provider: Provider, compression: str | None) -> None:
    """Where a message is compressed, the frames are as many, but mitmproxy's compressor says what is in which."""
    process = start_proxy(config=config(provider.port))
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
    [row] = interceptions(process)
    assert row["tokens"] == THINKING.expected["tokens"]
    assert row["thoughts"] == THINKING.expected["thoughts"]


@pytest.mark.parametrize("store", [True, False])
def test_a_message_that_continues_an_answer_brings_the_results_of_its_calls(
    start_proxy: StartProxy, provider: Provider, store: bool
) -> None:
    """Codex stores nothing, and names the connection's last answer all the same."""
    process = start_proxy(config=config(provider.port))
    calls = [str(call["provider_tool_call_id"]) for call in TOOLS.expected["tools"]]
    output = [{"type": "function_call_output", "call_id": call, "output": f"of {call}"} for call in calls]
    following = {"type": "response.create", "model": "m", "previous_response_id": TOOLS.expected["response_id"]}
    with through(process) as client:
        for request, case in (
            (json.loads(frames.create(TOOLS)), TOOLS),
            (following | {"input": output}, SIMPLE),
        ):
            events = text(*frames.events(case))
            provider.answer(*events)
            client.send(json.dumps(request | {"store": store}))
            read(client, len(events))
    first, second = sorted(process.rows("aibridge_interceptions"), key=lambda row: str(row["started_at"]))
    assert (second["thread_parent_id"], second["request_class"]) == (first["id"], "tool_result")
    assert [row["result"] for row in process.rows("aibridge_tool_usages")] == [f"of {call}" for call in calls]


def test_messages_of_no_known_kind_pass_and_are_not_recorded(start_proxy: StartProxy, provider: Provider) -> None:
    process = start_proxy(config=config(provider.port))
    strange: list[Message] = ["hello", b"\x00\xff", '{"type":"codex.rate_limits"}', "[]"]
    provider.answer(*strange)
    with through(process) as client:
        client.send(b"\x00\xff")
        assert read(client, len(strange)) == [[message] for message in strange]
    assert provider.received == [[b"\x00\xff"]]
    assert process.rows("aibridge_interceptions") == []


def test_a_message_above_the_limit_passes_and_the_record_says_partial(
    start_proxy: StartProxy, provider: Provider
) -> None:
    process = start_proxy(config=config(provider.port, "limits: {sse_event: 64KiB}"))
    big = json.dumps({"type": "response.output_item.done", "item": {"text": "x" * 3_000_000}})
    *events, last = text(*frames.events(SIMPLE))
    provider.answer(*events, big, last)
    with through(process) as client:
        client.send(frames.create(SIMPLE).decode())
        assert read(client, len(events) + 2)[-2:] == [[big], [last]]
    [row] = interceptions(process)
    assert row["status"] == "completed"
    assert [tokens["completeness"] for tokens in row["tokens"]] == ["partial"]


@pytest.mark.parametrize("by", ["client", "upstream"])
def test_a_connection_that_breaks_in_an_answer_fails_it(start_proxy: StartProxy, provider: Provider, by: str) -> None:
    held = threading.Event()

    def half(connection: ServerConnection) -> None:
        connection.recv()
        for event in text(*frames.events(TOOLS))[:-1]:
            connection.send(event)
        if by == "upstream":
            connection.socket.shutdown(socket.SHUT_RDWR)
        held.wait(TIMEOUT)

    with served(half) as port:
        process = start_proxy(config=config(port))
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
    start_proxy: StartProxy, provider: Provider
) -> None:
    """As Codex does, right after `response.completed`."""
    process = start_proxy(config=config(provider.port))
    events = text(*frames.events(CODEX))
    provider.answer(*events)
    with through(process) as client:
        client.send(frames.create(CODEX).decode())
        read(client, len(events))
        client.socket.shutdown(socket.SHUT_RDWR)
        [row] = interceptions(process)
    assert (row["status"], row["tokens"]) == ("completed", CODEX.expected["tokens"])


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")  # the SDK does not use it as a context manager
def test_openais_own_client_speaks_over_it(start_proxy: StartProxy, provider: Provider) -> None:
    process = start_proxy(config=config(provider.port))
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
    assert [row["tokens"] for row in interceptions(process)] == [SIMPLE.expected["tokens"]] * 2


def test_an_error_is_told_with_its_status(start_proxy: StartProxy, provider: Provider) -> None:
    process = start_proxy(config=config(provider.port))
    error = '{"type":"error","status":429,"error":{"type":"usage_limit_reached","message":"later"}}'
    provider.answer(error)
    with through(process) as client:
        client.send(frames.create(CODEX).decode())
        assert client.recv() == error
    [row] = interceptions(process)
    assert (row["status"], row["http_status"], row["error_type"]) == ("failed", 429, "usage_limit_reached")


def test_an_open_circuit_breaker_refuses_requests_and_not_the_socket(
    start_proxy: StartProxy, provider: Provider
) -> None:
    breaker = "{failure_threshold: 1, interval: 60, timeout: 60, max_requests: 1}"
    one = f"{{name: openai, type: openai, base_url: 'http://localhost:{provider.port}/v1', circuit_breaker: {breaker}}}"
    process = start_proxy(config=f"providers: [{one}]")
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


def test_a_central_key_is_used_where_the_client_brings_none(start_proxy: StartProxy, provider: Provider) -> None:
    address = f"http://localhost:{provider.port}/v1"
    process = start_proxy(config=f"providers: [{{name: openai, type: openai, base_url: '{address}', api_key: {KEY}}}]")
    provider.answer(*text(*frames.events(SIMPLE)))
    with connect(f"ws://127.0.0.1:{process.port}/openai/v1/responses", proxy=None) as client:
        client.send(frames.create(SIMPLE).decode())
        read(client, len(frames.events(SIMPLE)))
    assert provider.upgrades[0]["authorization"] == f"Bearer {KEY}"
    assert interceptions(process)[0]["credential_kind"] == "centralized"


def test_no_request_passes_that_cannot_be_recorded_where_the_configuration_wants_that(
    start_proxy: StartProxy, provider: Provider
) -> None:
    process = start_proxy(config=config(provider.port, "recording: {on_failure: closed}"))
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
    start_proxy: StartProxy,
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
        process = start_proxy(config=config(port, "recording: {on_failure: closed}"))
        with through(process) as client:
            client.send(frames.create(SIMPLE).decode())
            read(client, len(frames.events(SIMPLE)) - 1)
            with locked(process.database):
                gate.set()
                said = json.loads(client.recv(TIMEOUT))
    assert (said["type"], said["status"]) == ("error", 503)


# --- upgrade_required -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["websockets: upgrade_required", f"websockets: upgrade_required\n{MCP}"])
def test_the_upgrade_is_refused_with_426_and_the_client_can_go_on_over_http(
    start_proxy: StartProxy, upstream: ScriptedUpstream, mode: str
) -> None:
    process = start_proxy(config=f"providers: [{{name: openai, type: openai, base_url: '{upstream.url}/v1'}}]\n{mode}")
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
        ("", MCP),
        (", inject_tools: false", MCP),
    ],
)
def test_the_upgrade_is_let_through_where_nothing_would_be_injected_or_the_configuration_says_so(
    start_proxy: StartProxy, provider: Provider, provider_says: str, more: str
) -> None:
    address = f"http://localhost:{provider.port}/v1"
    one = f"{{name: openai, type: openai, base_url: '{address}'{provider_says}}}"
    process = start_proxy(config=f"providers: [{one}]\n{more}")
    provider.answer(*text(*frames.events(SIMPLE)))
    with through(process) as client:
        client.send(frames.create(SIMPLE).decode())
        assert read(client, len(frames.events(SIMPLE))) == [[event] for event in text(*frames.events(SIMPLE))]
    assert len(interceptions(process)) == 1


def test_other_websockets_of_a_provider_pass_whatever_is_configured(
    start_proxy: StartProxy, provider: Provider
) -> None:
    process = start_proxy(config=config(provider.port, "websockets: upgrade_required"))
    provider.answer("pong")
    with through(process, path="/realtime?model=x") as client:
        client.send(frames.create(SIMPLE).decode())
        assert client.recv() == "pong"
    assert process.rows("aibridge_interceptions") == []


def test_an_upgrade_asks_who_it_is_like_any_request(start_proxy: StartProxy, provider: Provider) -> None:
    process = start_proxy(config=config(provider.port, "actor: {required: true}", "websockets: upgrade_required"))
    with pytest.raises(InvalidStatus) as refused, through(process):
        pass
    assert refused.value.response.status_code == 401
    assert provider.upgrades == []


# --- limits -----------------------------------------------------------------------------------------------------------

SMALL = "limits: {websocket_message: 100KiB}"


@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("by", ["client", "provider"])
@pytest.mark.parametrize("cut", [1, 100], ids=["whole", "fragments"])
def test_a_message_above_the_limit_closes_the_connection_with_1009(
    start_proxy: StartProxy, provider: Provider, compression: str | None, by: str, cut: int
) -> None:
    process = start_proxy(config=config(provider.port, SMALL))
    large: Message = ["x" * (4_000_000 // cut)] * cut if cut > 1 else "x" * 4_000_000
    with through(process, compression=compression, max_size=None) as client:
        if by == "client":
            with suppress(ConnectionClosed):
                client.send(large)
        else:
            provider.answer(large)
            client.send("{}")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(TIMEOUT)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    assert len(provider.received) == (by == "provider")


@pytest.mark.parametrize("compression", ["deflate", None])
def test_messages_within_the_limit_pass_one_after_the_other(
    start_proxy: StartProxy, provider: Provider, compression: str | None
) -> None:
    process = start_proxy(config=config(provider.port, SMALL))
    for _ in range(4):
        provider.answer("y" * 90_000)
    with through(process, compression=compression) as client:
        for _ in range(4):
            client.send("x" * 90_000)
            client.ping()
            assert client.recv(TIMEOUT) == "y" * 90_000
    assert [sum(map(len, message)) for message in provider.received] == [90_000] * 4


def test_empty_frames_count_too(start_proxy: StartProxy, provider: Provider) -> None:
    process = start_proxy(config=config(provider.port, SMALL))
    with through(process, compression=None) as client:
        with suppress(ConnectionClosed):
            client.send(itertools.chain(["x"], itertools.repeat("", 10_000)))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(TIMEOUT)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


@pytest.mark.parametrize("compression", ["deflate", None])
def test_messages_that_nothing_reads_have_no_limit_and_stay_as_they_are(
    start_proxy: StartProxy, provider: Provider, compression: str | None
) -> None:
    process = start_proxy(config=config(provider.port, SMALL))
    large = "x" * 1_000_000
    provider.answer(large)
    with through(process, path="/realtime?model=x", compression=compression) as client:
        client.send([large[:7], large[7:]])
        assert client.recv(TIMEOUT) == large
    assert "".join(map(str, provider.received[0])) == large


# --- other routes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["proxy with TLS", "gateway"], ids=["proxy", "gateway"])
def test_a_websocket_passes_on_a_route_that_is_not_bridged(start_proxy: StartProxy, way: str) -> None:
    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message[::-1])

    with served(echo) as port:
        process = start_proxy(config=config(port))
        with through(process, way, "/realtime?model=x") as client:
            for sent, expected in (("hello", "olleh"), ("wörld", "dlröw")):
                client.send(sent)
                assert client.recv(TIMEOUT) == expected
    assert process.rows("aibridge_interceptions") == []
