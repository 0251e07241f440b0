"""A request in a WebSocket that the provider refuses is sent again: without what was added, or after a pause."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aibridge_addon.interception import attempts
from tests.conftest import StartProxy
from tests.integration.exchanges import wait_for_ended
from tests.integration.sockets import TIMEOUT, Provider, served, through
from tests.integration.test_socket_tools import answer_of, as_stream, asked, create, events, start, tools_in, turns_of
from tests.integration.turns import INJECTED, Turns, call, own, recorded, thought
from tests.integration.turns import text as words
from tests.support.mcp_servers import HttpMcp

LONG = "x" * 40_000
BAD = "bmcp_ours_area"
BUSY = {"type": "server_error", "code": "server_is_overloaded", "message": "Our servers are busy"}
FULL = {"code": "context_length_exceeded", "message": "Your input exceeds the context window of this model."}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pauses between attempts."""
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.0)


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    with served(found.serve) as found.port:
        yield found


def error(inner: dict[str, Any], status: int | None = 400, **members: Any) -> str:
    return json.dumps({"type": "error", "error": inner} | ({"status": status} if status else {}) | members)


def outputs(request: dict[str, Any]) -> list[str]:
    return [item["output"] for item in request["input"] if item.get("type") == "function_call_output"]


# --- the first turn --------------------------------------------------------------------------------------------------

NAMES: dict[str, Callable[[str, int], dict[str, Any]]] = {
    "name": lambda name, _: {"message": f"Invalid schema for function '{name}'", "type": "invalid_request_error"},
    "place": lambda _, place: {"message": "Invalid schema", "param": f"tools[{place}].parameters"},
}


@pytest.mark.parametrize("lane", ["", "one"])
@pytest.mark.parametrize("status", [400, 422, None])
@pytest.mark.parametrize("words_for_it", NAMES)
def test_a_tool_that_the_provider_refuses_is_taken_out_and_stays_out(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp, words_for_it: str, status: int | None, lane: str
) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([words("Let me see. "), call("echo", text="hi")], [words("Done.")])
    members = {"stream_id": lane} if lane else {}
    offered = sorted({"Read", BAD, *_offered(process, provider, turns, members)} - {"Read"})
    refusal = NAMES[words_for_it](BAD, 1 + offered.index(BAD))
    provider.answer(error(refusal, status, **members))
    for number in (0, 1):
        provider.answer(*_in_lane(events(turns, number), members))
    provider.answer(*_in_lane(events(turns, 1), members))
    with through(process) as client:
        client.send(json.dumps(create(turns, **members)))
        received = answer_of(client)
        client.send(json.dumps(create(turns, **members)))
        answer_of(client)
    turns.check_usage(turns.check(as_stream(received), streaming=True))
    refused, again, follow_up, later = (asked(provider, number) for number in range(1, 5))
    assert set(tools_in(refused)) - set(tools_in(again)) == {BAD}
    assert tools_in(again) == tools_in(follow_up) == tools_in(later)
    assert again == refused | {"tools": again["tools"]}
    assert [row["turns"] for row in wait_for_ended(process, 3)] == [1, 2, 1]
    assert any(f"refuses the tool {BAD}" in line for line in process.log_tail.splitlines())


def _offered(process: Any, provider: Provider, turns: Turns, members: dict[str, Any]) -> list[str]:
    """The tools that a request gets before any was refused."""
    provider.answer(*_in_lane(events(turns, 1), members))
    with through(process) as client:
        client.send(json.dumps(create(turns, **members)))
        answer_of(client)
    return tools_in(asked(provider, 0))


def _in_lane(said: list[str], members: dict[str, Any]) -> list[str]:
    return [json.dumps(json.loads(event) | members) for event in said]


def test_a_model_that_takes_no_tools_gets_none_of_ours(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp
) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([words("Done.")])
    request = {name: value for name, value in create(turns).items() if name != "tools"}
    provider.answer(error({"message": "m does not support tools"}))
    provider.answer(*events(turns, 0))
    provider.answer(*events(turns, 0))
    with through(process) as client:
        for _ in range(2):
            client.send(json.dumps(request))
            assert answer_of(client)[-1]["type"] == "response.completed"
    assert ["tools" in asked(provider, number) for number in range(3)] == [True, False, False]


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_other_errors_take_no_tool_out(start_proxy: StartProxy, provider: Provider, ours: HttpMcp, status: int) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([words("Done.")])
    said = error(NAMES["name"](BAD, 0), status)
    provider.answer(said)
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        assert client.recv() == said
    assert len(provider.received) == 1
    assert [(row["turns"], row["http_status"]) for row in wait_for_ended(process, 1)] == [(1, status)]


def test_an_error_about_the_clients_own_tool_is_about_the_clients_own_request(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp
) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([words("Done.")])
    said = error({"message": "Invalid schema for function 'Read'", "param": "tools[0].parameters"})
    provider.answer(said)
    provider.answer(said)
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        assert client.recv() == said
    assert tools_in(asked(provider, 1)) == ["Read"] and len(provider.received) == 2
    assert recorded(process).outcome == ("failed", 1, "http_400")


def test_tools_that_the_connection_has_already_are_not_taken_out_of_a_request_without_them(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp
) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([], [call("echo", text="a")], [words("Done.")])
    provider.answer(*events(turns, 0))
    provider.answer(error(NAMES["name"](BAD, 0)))
    warm = create(turns, generate=False, store=False)
    warm["input"] = [{"type": "additional_tools", "role": "developer", "tools": warm.pop("tools")}]
    following = create(turns, store=False, previous_response_id=turns.first_id)
    del following["tools"]
    with through(process) as client:
        client.send(json.dumps(warm))
        answer_of(client)
        client.send(json.dumps(following))
        assert answer_of(client)[-1]["type"] == "error"
    assert len(provider.received) == 2


def test_kept_results_that_are_refused_become_notes(start_proxy: StartProxy, provider: Provider, ours: HttpMcp) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([call("echo", text="poison"), own(path="a")], [words("Done.")])
    provider.answer(*events(turns, 0))
    provider.answer(error({"message": "No", "type": "invalid_request_error"}))
    provider.answer(*events(turns, 1))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        first = answer_of(client)
        [item] = first[-1]["response"]["output"]
        output = [{"type": "function_call_output", "call_id": item["call_id"], "output": "the client's own"}]
        client.send(json.dumps(create(turns, input=output, previous_response_id=first[-1]["response"]["id"])))
        assert answer_of(client)[-1]["type"] == "response.completed"
    assert outputs(asked(provider, 1)) == ["poison", "the client's own"]
    note, own_output = outputs(asked(provider, 2))
    assert "left out" in note and own_output == "the client's own"


# --- later turns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413, None])
def test_a_context_that_is_full_gets_shorter_results_once(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp, status: int | None
) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([words("One. "), call("echo", text=LONG)], [words("Done.")])
    provider.answer(*events(turns, 0))
    provider.answer(error(FULL, status))
    provider.answer(*events(turns, 1))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        received = answer_of(client)
    turns.check_usage(turns.check(as_stream(received), streaming=True))
    assert [len(text) for text in outputs(asked(provider, 1))] == [40_000]
    assert all(len(text) < 6_000 for text in outputs(asked(provider, 2)))
    assert recorded(process).outcome == ("completed", 2, None)


def test_the_second_refusal_is_the_clients(start_proxy: StartProxy, provider: Provider, ours: HttpMcp) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([words("One. "), call("echo", text=LONG)])
    provider.answer(*events(turns, 0))
    provider.answer(error(FULL))
    provider.answer(error(FULL))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        said = answer_of(client)[-1]
    assert (said["type"], said["error"]["code"]) == ("error", "context_length_exceeded")
    assert len(provider.received) == 3
    assert recorded(process).outcome == ("failed", 2, "context_length_exceeded")


@pytest.mark.parametrize("conversation", ["whole", "stored", "unstored"])
def test_a_response_that_fails_because_its_context_is_full_gets_shorter_results(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp, conversation: str
) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([words("Hi.")], [words("One. "), call("echo", text=LONG)], [words("Done.")])
    provider.answer(*events(turns, 0))
    provider.answer(*events(turns, 1))
    failed = {"id": "resp_failed", "object": "response", "status": "failed", "output": [], "error": FULL}
    created = failed | {"status": "in_progress", "error": None}
    provider.answer(
        json.dumps({"type": "response.created", "response": created}),
        json.dumps({"type": "response.failed", "response": failed}),
    )
    provider.answer(*events(turns, 2))
    store = conversation != "unstored"
    members = {} if conversation == "whole" else {"previous_response_id": turns.first_id}
    with through(process) as client:
        client.send(json.dumps(create(turns, store=store)))
        answer_of(client)
        client.send(json.dumps(create(turns, store=store, **members)))
        received = answer_of(client)
    assert received[-1]["type"] == "response.completed" and INJECTED.decode() not in json.dumps(received)
    again = asked(provider, 3)
    assert all(len(text) < 6_000 for text in outputs(again))
    assert (again.get("previous_response_id") is None) == (conversation != "stored")


RETRIED = [(429, {}), (500, {}), (503, {}), (None, {}), (400, {"headers": {"x-should-retry": "true"}})]


@pytest.mark.parametrize(("status", "members"), RETRIED)
def test_a_later_turn_is_retried_before_its_first_byte(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp, status: int | None, members: dict[str, Any]
) -> None:
    """A client that retries would let the tools run again."""
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([thought("Hm."), call("echo", text="a")], [words("Two. "), call("echo", text="b")], [words("3.")])
    provider.answer(*events(turns, 0))
    for number in (1, 2):
        provider.answer(error(BUSY, status, **members))
        provider.answer(error(BUSY, status, **members))
        provider.answer(*events(turns, number))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        received = answer_of(client)
    turns.check_usage(turns.check(as_stream(received), streaming=True))
    second, third = [asked(provider, n) for n in (1, 2, 3)], [asked(provider, n) for n in (4, 5, 6)]
    assert second[0] == second[1] == second[2] and third[0] == third[1] == third[2]
    rows = recorded(process)
    assert rows.outcome == ("completed", 3, None) and len(rows.injected) == 2
    steps = [attempt.get("then") for attempt in rows.interception["metadata"]["attempts"]]
    assert steps == ["retry", "retry", None, "retry", "retry", None]


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_retries_of_a_later_turn_are_bounded(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp, retries: int
) -> None:
    process = start(start_proxy, provider.port, ours, mcp=f", later_turn_retries: {retries}")
    turns = turns_of([words("One. "), call("echo", text="a")], [words("Next.")])
    provider.answer(*events(turns, 0))
    for _ in range(retries + 1):
        provider.answer(error(BUSY, 503))
    provider.answer(*events(turns, 1))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        said = answer_of(client)[-1]
        assert (said["type"], said["status"], said["error"]["code"]) == ("error", 503, "server_is_overloaded")
        client.send(json.dumps(create(turns)))
        assert answer_of(client)[-1]["type"] == "response.completed"
    assert len(provider.received) == retries + 3
    assert [row["status"] for row in wait_for_ended(process, 2)] == ["failed", "completed"]


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_later_turn_that_is_refused_for_good_is_not_retried(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp, status: int
) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([words("One. "), call("echo", text="a")])
    provider.answer(*events(turns, 0))
    provider.answer(error({"message": "No", "type": "other"}, status))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        assert answer_of(client)[-1]["error"]["message"] == "No"
    assert len(provider.received) == 2


def test_a_retry_has_the_whole_conversation_if_the_connection_has_lost_the_answer_before_it(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp
) -> None:
    """With `store: false`, the connection drops the answer that a request which fails has named."""
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([thought("Hm."), call("echo", text="a")], [words("One.")], [call("echo", text="b")], [words("2.")])
    for number in range(3):
        provider.answer(*events(turns, number))
    provider.answer(error(BUSY, 503))
    provider.answer(*events(turns, 3))
    provider.answer(*events(turns, 1))
    said = [{"role": "user", "content": "And then?"}]
    with through(process) as client:
        client.send(json.dumps(create(turns, store=False)))
        first = answer_of(client)[-1]["response"]["id"]
        client.send(json.dumps(create(turns, store=False, input=said, previous_response_id=first)))
        second = answer_of(client)[-1]["response"]
        client.send(json.dumps(create(turns, store=False, input=said, previous_response_id=second["id"])))
        answer_of(client)
    failed, again, next_one = asked(provider, 3), asked(provider, 4), asked(provider, 5)
    assert failed["previous_response_id"] == turns.written[2].body["id"] and outputs(failed) == ["b"]
    assert again["previous_response_id"] is None
    kinds = [item.get("type") or item["role"] for item in again["input"]]
    of_call = ["function_call", "function_call_output"]
    assert [kind for kind in kinds if kind != "reasoning"] == ["user", *of_call, "message", "user", *of_call]
    assert next_one["previous_response_id"] == turns.written[3].body["id"] and next_one["input"] == said
    assert [row["status"] for row in wait_for_ended(process, 3)] == ["completed"] * 3


@pytest.mark.parametrize("way", ["leaves", "interrupts"])
def test_a_client_that_goes_during_the_pause_ends_it(
    start_proxy: StartProxy, provider: Provider, ours: HttpMcp, way: str
) -> None:
    process = start(start_proxy, provider.port, ours)
    turns = turns_of([words("One. "), call("echo", text="a")])
    provider.answer(*events(turns, 0))
    provider.answer(error(BUSY, 503, headers={"retry-after": "50"}), json.dumps({"type": "keepalive"}))
    with through(process) as client:
        client.send(json.dumps(create(turns)))
        while json.loads(client.recv(TIMEOUT))["type"] != "keepalive":
            pass
        if way == "interrupts":
            client.send(json.dumps({"type": "response.interrupt"}))
            assert "interrupted" in answer_of(client)[-1]["error"]["message"]
    [row] = wait_for_ended(process, 1)
    assert row["error_type"] == ("interrupted" if way == "interrupts" else "client_disconnected")
    assert len(provider.received) == 2
