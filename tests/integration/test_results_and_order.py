"""The results of tool calls, the client's own and injected ones; and the order of an interception's rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client
from tests.integration.turns import (
    BY_DIALECT,
    CLIENTS_RESULT,
    CONNECTED,
    MODES,
    Turns,
    call,
    configuration,
    own,
    recorded,
    text,
    thought,
)
from tests.support import fixtures
from tests.support.client import gateway_client
from tests.support.database import Row, Table
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.script import Answer
from tests.support.upstream import HTTP1, ScriptedUpstream


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream(alpn=[HTTP1])


ORDERED: tuple[Table, ...] = (
    "aibridge_user_prompts",
    "aibridge_answers",
    "aibridge_tool_usages",
    "aibridge_model_thoughts",
)


def rows(proxy: RunningProxy, interception: str) -> list[Row]:
    """The interception's rows that have a place, in their order."""
    found = [row for table in ORDERED for row in proxy.rows(table) if row["interception_id"] == interception]
    return sorted(found, key=lambda row: int(row["sequence"]))


@MODES
@BY_DIALECT
def test_calls_have_their_places_and_results_over_all_turns(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, dialect: str, streaming: bool
) -> None:
    mcp = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, mcp))
    proxy.wait_for_log(CONNECTED)
    turns = Turns(
        dialect,
        [thought("Hm."), call("echo", text="one"), call("echo", text="two")],
        [thought("So."), call("echo", text="three"), own(path="/a"), own(path="/b")],
    )
    upstream.answer(*turns.answers(streaming=streaming))
    with Client(proxy, turns.host) as client:
        answer = client.post(turns.path, turns.request(streaming=streaming)).body
    first = recorded(proxy).interception["id"]
    ordered = rows(proxy, first)
    assert ordered[0]["prompt"] == "What is there?"
    assert [row["sequence"] for row in ordered] == list(range(len(ordered)))
    calls = [(row["input"], row["injected"], row["result"]) for row in ordered if "tool" in row]
    assert calls == [
        ({"text": "one"}, 1, "one"),
        ({"text": "two"}, 1, "two"),
        ({"text": "three"}, 1, "three"),
        ({"path": "/a"}, 0, None),
        ({"path": "/b"}, 0, None),
    ]

    upstream.answer(*Turns(dialect, [text("Done.")]).answers(streaming=streaming))
    with Client(proxy, turns.host) as client:
        client.post(turns.path, turns.next_request(answer, streaming=streaming))
    second = recorded(proxy).interception
    assert (second["request_class"], second["thread_parent_id"]) == ("tool_result", first)
    given = [row["result"] for row in rows(proxy, first) if "tool" in row and not row["injected"]]
    assert given == [CLIENTS_RESULT] * 2


def chat_request(*messages: dict[str, Any]) -> bytes:
    return json.dumps({"model": "m", "messages": list(messages)}).encode()


@pytest.mark.parametrize("recording", ["{}", "{tool_results: false, answers: false}"])
def test_a_result_is_redacted_cut_and_switched_off(
    start_proxy: StartProxy, upstream: ScriptedUpstream, recording: str
) -> None:
    provider = f"{{name: openai, type: openai, base_url: '{upstream.url}/v1'}}"
    process = start_proxy(config=f"recording: {recording}\nproviders: [{provider}]\n")
    case = fixtures.case("chat_completions/client_tool/blocking")
    [tool] = case.expected["tools"]
    result = {
        "role": "tool",
        "tool_call_id": tool["provider_tool_call_id"],
        "content": "sk-ant-0123456789abcdef " + "é" * 20_000,
    }
    body = Answer(200, [("content-type", "application/json")], case.body)
    upstream.answer(body, body)
    with gateway_client(process, "/openai/v1") as client:
        client.post("/chat/completions", content=case.request)
        client.post("/chat/completions", content=chat_request({"role": "assistant", "content": None}, result))
    first = process.rows("aibridge_interceptions")[0]
    [row] = [row for row in process.rows("aibridge_tool_usages") if row["interception_id"] == first["id"]]
    if recording == "{}":
        assert row["result"].startswith("[redacted] é")
        assert len(row["result"].encode()) == 16 * 1024 - 1  # the last character has two bytes
        assert row["metadata"] == {"result_truncated": True}
    else:
        assert (row["result"], row["metadata"]) == (None, {})


def test_a_prompt_behind_a_result_is_a_prompt_and_its_result_is_recorded(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    process = start_proxy(config=configuration(upstream.url, ""))
    case = fixtures.case("chat_completions/client_tool/blocking")
    [tool] = case.expected["tools"]
    result = {"role": "tool", "tool_call_id": tool["provider_tool_call_id"], "content": "42"}
    body = Answer(200, [("content-type", "application/json")], case.body)
    upstream.answer(body, body)
    with gateway_client(process, "/openai/v1") as client:
        client.post("/chat/completions", content=case.request)
        client.post("/chat/completions", content=chat_request(result, {"role": "user", "content": "and?"}))
    first, second = process.rows("aibridge_interceptions")
    assert (second["request_class"], second["thread_parent_id"]) == ("prompt", first["id"])
    assert [row["result"] for row in rows(process, first["id"]) if "tool" in row] == ["42"]
    assert "and?" in [row.get("prompt") for row in rows(process, second["id"])]
