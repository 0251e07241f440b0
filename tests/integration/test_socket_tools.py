"""Injected tools in the Responses API over a WebSocket: the client sees one answer, over its own transport."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.server import ServerConnection

from aibridge_addon.interception import attempts
from aibridge_addon.tools.calls import CANCELLED
from aibridge_addon.wire import sse
from tests.conftest import StartProxy
from tests.integration.exchanges import wait_for_ended
from tests.integration.sockets import KEY, TIMEOUT, Provider, config, read, served, through
from tests.integration.turns import CONNECTED, INJECTED, PROMPT, Turns, call, own, recorded, thought
from tests.integration.turns import text as words
from tests.support.mcp_servers import HttpMcp, ToolGate
from tests.support.running import RunningProxy

ENDS = ("response.completed", "response.incomplete", "response.failed", "error")


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    with served(found.serve) as found.port:
        yield found


def start(start_proxy: StartProxy, port: int, ours: HttpMcp, *more: str, mcp: str = "") -> RunningProxy:
    section = f"mcp: {{keepalive_interval: 0.1, servers: {{ours: {{type: http, url: '{ours.url}'}}}}{mcp}}}"
    process = start_proxy(config=config(port, section, *more))
    process.wait_for_log(CONNECTED)
    return process


def turns_of(*turns: Any) -> Turns:
    return Turns("responses", *turns)


def events(turns: Turns, number: int) -> list[str]:
    """A turn's answer as the server's messages."""
    return [data.decode() for raw in turns.events(number) if (data := sse.parse(raw)[1])]


def create(turns: Turns, **members: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(turns.request(streaming=False, **members))
    return {"type": "response.create"} | made


def answer_of(client: ClientConnection) -> list[dict[str, Any]]:
    """The messages up to the end of an answer."""
    received: list[dict[str, Any]] = []
    while not received or received[-1]["type"] not in ENDS:
        received.append(json.loads(client.recv(TIMEOUT)))
    return received


def as_stream(received: list[dict[str, Any]]) -> bytes:
    """The same answer as it would be over HTTP."""
    return b"".join(sse.event(event["type"], json.dumps(event).encode()) for event in received)


def asked(provider: Provider, number: int) -> dict[str, Any]:
    """A request that has come to the provider, whole."""
    body = json.loads("".join(map(str, provider.received[number])))
    assert isinstance(body, dict)
    return body


def tools_in(request: dict[str, Any]) -> list[str]:
    return [tool["name"] for tool in request.get("tools", ())]


def test_two_turns_are_one_answer(start_proxy: StartProxy, provider: Provider, ours: HttpMcp) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of(
        [thought("Hm."), words("Let me see. "), call("echo", text="Grüße \U0001f600")],
        [thought("So."), words("Done.")],
    )
    provider.answer(*events(turns, 0))
    provider.answer(*events(turns, 1))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        received = answer_of(client)
        rows = recorded(process)  # without waiting: the end was held until the rows were committed
    turns.check_usage(turns.check(as_stream(received), streaming=True))
    numbers = [event["sequence_number"] for event in received if "sequence_number" in event]
    assert numbers == sorted(set(numbers))

    first, second = asked(provider, 0), asked(provider, 1)
    assert tools_in(first)[0] == "Read" and "bmcp_ours_echo" in tools_in(first)
    assert second["type"] == "response.create" and second["tools"] == first["tools"]
    outputs = [item["output"] for item in second["input"] if item.get("type") == "function_call_output"]
    assert outputs == ["Grüße \U0001f600"]
    assert second["input"][0] == first["input"][0]

    assert rows.outcome == ("completed", 2, None)
    ids = [written.body["id"] for written in turns.written]
    assert [(row["provider_response_id"], row["output_tokens"]) for row in rows.tokens] == [(ids[0], 5), (ids[1], 6)]
    assert [row["prompt"] for row in rows.prompts] == [PROMPT]
    [tool] = rows.tools
    assert (tool["tool"], tool["server_name"], tool["injected"]) == ("echo", "ours", 1)
    assert len(process.rows("aibridge_interceptions")) == 1


def test_an_answer_without_hidden_calls_passes_as_it_came(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp
) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([thought("Hm."), words("Hello. "), own(path="a")])
    said = events(turns, 0)
    said[1] = said[1].replace("{", "{ \n", 1)
    provider.answer(*said)
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        assert read(client, len(said)) == [[message] for message in said]
    assert "bmcp_ours_echo" in tools_in(asked(provider, 0))


def test_the_next_request_continues_from_the_last_turn(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp
) -> None:
    """A connection has its last answer, stored or not, and no earlier one."""
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([call("echo", text="a")], [words("One.")], [call("echo", text="b")], [words("Two.")])
    for number in range(4):
        provider.answer(*events(turns, number))
    ids = [str(written.body["id"]) for written in turns.written]
    with through(process) as client:
        client.send(json.dumps(create(turns, store=False)))
        first = answer_of(client)
        assert first[-1]["response"]["id"] == ids[0]
        said = [{"role": "user", "content": "And then?"}]
        client.send(json.dumps(create(turns, store=False, input=said, previous_response_id=ids[0])))
        second = answer_of(client)
    assert second[-1]["response"]["id"] == ids[2]
    assert INJECTED.decode() not in json.dumps([first, second])
    third, fourth = asked(provider, 2), asked(provider, 3)
    assert (third["previous_response_id"], third["input"]) == (ids[1], said)
    assert fourth["previous_response_id"] == ids[2]
    assert [item["type"] for item in fourth["input"]] == ["function_call_output"]
    assert [row["turns"] for row in process.rows("aibridge_interceptions")] == [2, 2]


def test_a_mixed_turn_ends_the_answer_and_the_next_request_brings_the_hidden_result(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp
) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([call("echo", text="ours"), own(path="a")], [words("Done.")])
    provider.answer(*events(turns, 0))
    provider.answer(*events(turns, 1))
    with through(process) as client:
        client.send(json.dumps(create(turns, store=False)))
        first = answer_of(client)
        [item] = first[-1]["response"]["output"]
        assert item["name"] == "Read"
        output = [{"type": "function_call_output", "call_id": item["call_id"], "output": "the client's own"}]
        named = first[-1]["response"]["id"]
        client.send(json.dumps(create(turns, store=False, input=output, previous_response_id=named)))
        assert answer_of(client)[-1]["type"] == "response.completed"
    given = [item["output"] for item in asked(provider, 1)["input"]]
    assert sorted(given) == ["ours", "the client's own"]
    assert sorted(row["injected"] for row in process.rows("aibridge_tool_usages")) == [0, 1]


def test_lanes_are_merged_each_for_itself(start_proxy: StartProxy, provider: Provider, ours: HttpMcp) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([call("echo", text="a")], [words("Done.")])
    for number in range(2):
        provider.answer(*(json.dumps(json.loads(event) | {"stream_id": "one"}) for event in events(turns, number)))
    with through(process) as client:
        client.send(json.dumps(create(turns, stream_id="one")))
        received = answer_of(client)
    assert {event["stream_id"] for event in received} == {"one"}
    assert asked(provider, 1)["stream_id"] == "one"


@pytest.mark.parametrize("way", ["client", "interrupt"])
def test_a_client_that_leaves_or_interrupts_cancels_the_tools(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp, way: str
) -> None:
    with ToolGate() as gate:
        process = start(start_proxy, provider.port, ours)
        turns = turns_of([call("slow", port=gate.port)])
        provider.answer(*events(turns, 0))
        with through(process) as client:
            client.send(json.dumps(create(turns)))
            gate.wait_reached()
            if way == "client":
                client.socket.shutdown(socket.SHUT_RDWR)
            else:
                client.send(json.dumps({"type": "response.interrupt"}))
                said = answer_of(client)[-1]
                assert said["type"] == "error" and "interrupted" in said["error"]["message"]
            gate.wait_abandoned()
            [row] = wait_for_ended(process, 1)
    assert row["status"] == "failed"
    assert row["error_type"] == ("client_disconnected" if way == "client" else "interrupted")
    assert [row["invocation_error"] for row in process.rows("aibridge_tool_usages")] == [CANCELLED]
    assert len(provider.received) == 1


def test_pings_keep_a_waiting_client(start_proxy: StartProxy, provider: Provider, ours: HttpMcp) -> None:
    with ToolGate() as gate:
        process = start(start_proxy, provider.port, ours)
        turns = turns_of([call("slow", port=gate.port)], [words("Done.")])
        provider.answer(*events(turns, 0))
        provider.answer(*events(turns, 1))
        pinged = threading.Event()
        with through(process) as client:
            receive = client.protocol.receive_data

            def heard(data: bytes | bytearray) -> None:
                if data.startswith(b"\x89"):
                    pinged.set()
                receive(data)

            client.protocol.receive_data = heard  # type: ignore[method-assign]
            client.send(json.dumps(create(turns)))
            gate.wait_reached()
            assert pinged.wait(TIMEOUT)
            gate.open()
            turns.check(as_stream(answer_of(client)), streaming=True)


@pytest.mark.parametrize("status", [429, None])
def test_an_error_to_a_later_turn_is_the_sockets_error(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.0)
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([words("Let me see. "), call("echo", text="a")])
    error = {"type": "error", "error": {"type": "rate_limit", "code": "rate_limit", "message": "later"}}
    provider.answer(*events(turns, 0))
    for _ in range(1 if status is None else 3):  # a later turn is retried
        provider.answer(json.dumps(error | ({"status": status} if status else {})))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        said = answer_of(client)[-1]
    assert (said["type"], said["error"]["message"]) == ("error", "later")
    rows = recorded(process)
    assert rows.outcome[0] == "failed" and rows.outcome[2] == "rate_limit"
    assert len(rows.injected) == 1


def test_an_upstream_that_closes_while_tools_run_fails_the_answer(start_proxy: StartProxy, ours: HttpMcp) -> None:
    with ToolGate() as gate:
        turns = turns_of([call("slow", port=gate.port)])

        def leave(connection: ServerConnection) -> None:
            connection.recv()
            for event in events(turns, 0):
                connection.send(event)
            gate.wait_reached()

        with served(leave) as port:
            process = start(start_proxy, port, ours)
            with through(process) as client:
                client.send(json.dumps(create(turns)))
                with pytest.raises(ConnectionClosed):
                    answer_of(client)
                gate.wait_abandoned()
                [row] = wait_for_ended(process, 1)
    assert (row["status"], row["error_type"]) == ("failed", "upstream_disconnected")


def test_the_bound_of_turns_holds(start_proxy: StartProxy, provider: Provider, ours: HttpMcp) -> None:
    process = start(start_proxy, provider.port, ours, mcp=", max_turns: 2")
    turns = turns_of([call("echo", text="a")], [call("echo", text="b")])
    for number in range(2):
        provider.answer(*events(turns, number))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        received = answer_of(client)
    assert received[-1]["response"]["output"] == []
    assert tools_in(asked(provider, 1)) == ["Read"]
    assert recorded(process).outcome == ("completed", 2, None)


@pytest.mark.parametrize(
    ("more", "members"),
    [
        ("websockets: record", {}),
        ("", {"tool_choice": "none"}),
        ("", {"tools": []}),
        ("", {"text": {"format": {"type": "json_object"}}}),
    ],
)
def test_nothing_is_injected_where_it_is_not_wanted(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp, more: str, members: dict[str, Any]
) -> None:
    process = start(start_proxy, provider.port, ours, more)
    turns = turns_of([words("Done.")])
    provider.answer(*events(turns, 0))
    sent = json.dumps(create(turns, **members))
    with through(process) as client:
        client.send(sent)
        assert read(client, len(events(turns, 0))) == [[event] for event in events(turns, 0)]
    assert provider.received == [[sent]]


def test_tools_of_an_item_are_injected_once_for_a_connection(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp
) -> None:
    """Codex sends its tools as an item, in the request with which it warms the connection up."""
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([], [call("echo", text="a")], [words("Done.")])
    for number in range(3):
        provider.answer(*events(turns, number))
    warm = create(turns, generate=False, store=False)
    warm["input"] = [{"type": "additional_tools", "role": "developer", "tools": warm.pop("tools")}]
    following = create(turns, store=False, previous_response_id=turns.first_id)
    del following["tools"]
    with through(process) as client:
        client.send(json.dumps(warm))
        answer_of(client)
        client.send(json.dumps(following))
        received = answer_of(client)
    first, second, third = (asked(provider, number) for number in range(3))
    assert [tool["name"] for tool in first["input"][0]["tools"]][:2] == ["Read", "bmcp_ours_add"]
    assert "tools" not in second and "tools" not in third
    assert second == following
    assert INJECTED.decode() not in json.dumps(received)
    assert [item["type"] for item in received[-1]["response"]["output"]] == ["message"]


def test_an_answer_that_follows_a_steering_input_is_merged_too(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp
) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([words("One.")], [call("echo", text="a")], [words("Two.")])
    steered = [json.loads(event) for event in events(turns, 1)]
    for event in steered:
        if "response" in event:
            event["response"]["previous_response_id"] = turns.first_id
    provider.answer(*events(turns, 0), *map(json.dumps, steered))
    provider.answer(*events(turns, 2))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        answer_of(client)
        received = answer_of(client)
    assert INJECTED.decode() not in json.dumps(received)
    assert [item["content"][0]["text"] for item in received[-1]["response"]["output"]] == ["Two."]
    last = asked(provider, 1)
    assert last["previous_response_id"] == turns.written[1].body["id"]
    assert [item["type"] for item in last["input"]] == ["function_call_output"]


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")
def test_openais_own_client_reads_the_turns_as_one_answer(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp
) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([words("One, "), call("echo", text="a")], [words("two, "), call("add", a=1, b=2)], [words("3.")])
    for number in range(3):
        provider.answer(*events(turns, number))
    client = openai.OpenAI(api_key=KEY, base_url=f"{process.proxy_url}/openai/v1", max_retries=0)
    with client.responses.connect() as connection:
        connection.response.create(model="m", input=PROMPT)
        for event in connection:
            if event.type == "response.completed":
                assert event.response.output_text == "One, two, 3."
                break
    assert recorded(process).outcome == ("completed", 3, None)


def test_a_budget_holds_for_a_request_with_tools(start_proxy: StartProxy, provider: Provider, ours: HttpMcp) -> None:
    budget = "budgets: [{name: one, per: all, period: day, requests: 1}]"
    process = start(start_proxy, provider.port, ours, budget)
    turns = turns_of([words("Done.")])
    provider.answer(*events(turns, 0))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        answer_of(client)
        client.send(json.dumps(create(turns)))
        [said] = answer_of(client)
    assert (said["status"], said["error"]["code"]) == (403, "budget_exceeded")
    assert len(provider.received) == 1


def test_a_large_message_of_a_visible_item_passes(start_proxy: StartProxy, provider: Provider, ours: HttpMcp) -> None:
    """It is larger than what is read. In the second turn, only its numbers change."""
    process = start(start_proxy, provider.port, ours, "limits: {sse_event: 64KiB}")
    turns = turns_of([call("echo", text="a")], [words("é" * 200_000)])
    for number in range(2):
        provider.answer(*events(turns, number))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        received = answer_of(client)
    [item] = [event["item"] for event in received if event["type"] == "response.output_item.done"]
    assert item["content"][0]["text"] == "é" * 200_000
    assert recorded(process).outcome == ("completed", 2, None)


def test_a_large_message_with_a_hidden_call_ends_the_answer_and_not_the_connection(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp
) -> None:
    process = start(start_proxy, provider.port, ours, "limits: {sse_event: 64KiB}")
    turns = turns_of([call("echo", text="x" * 100_000), words("later")], [words("Fine.")])
    provider.answer(*events(turns, 0))
    provider.answer(*events(turns, 1))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        first = answer_of(client)
        client.send(json.dumps(create(turns)))
        second = answer_of(client)
    assert (first[-1]["type"], first[-1]["status"]) == ("error", 502)
    assert (second[0]["type"], second[-1]["type"]) == ("response.created", "response.completed")
    assert INJECTED.decode() not in json.dumps([first, second])
    assert [row["status"] for row in wait_for_ended(process, 2)] == ["failed", "completed"]
