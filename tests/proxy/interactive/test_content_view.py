"""The content view, over every fixture and over what is no AI exchange."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mitmproxy import contentviews, http
from mitmproxy.contentviews import Metadata
from mitmproxy.test import taddons, tflow
from mitmproxy.websocket import WebSocketMessage
from wsproto.frame_protocol import Opcode

from aibridge_addon.proxy.interactive.content_view import ConversationView
from aibridge_addon.proxy.interactive.conversation import MAX_MESSAGES, MAX_TEXT
from tests.support import fixtures
from tests.support.fixtures import BEDROCK_MODEL, Case

PATHS = {
    ("messages", True): "/v1/messages?beta=true",
    ("messages", False): "/anthropic/v1/messages",
    ("chat_completions", True): "/v1/chat/completions",
    ("chat_completions", False): "/openai/deployments/x/chat/completions?api-version=1",
    ("responses", True): "/v1/responses",
    ("responses", False): "/backend-api/codex/responses",
    ("invoke", True): f"/model/{BEDROCK_MODEL}/invoke-with-response-stream",
    ("invoke", False): f"/model/{BEDROCK_MODEL}/invoke",
    ("converse", True): f"/model/{BEDROCK_MODEL}/converse-stream",
    ("converse", False): f"/model/{BEDROCK_MODEL}/converse",
}
CASES = [*fixtures.cases(), *fixtures.invoke_cases()]


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    if "ai conversation" not in contentviews.registry:
        contentviews.add(ConversationView())


def flow_with(
    path: str, request: bytes, answer: bytes = b"", content_type: str = "", status: int = 200
) -> http.HTTPFlow:
    flow = tflow.tflow(resp=True)
    flow.request.path = path
    flow.request.headers["content-type"] = "application/json"
    flow.request.raw_content = request
    assert flow.response is not None
    flow.response.status_code = status
    flow.response.headers["content-type"] = content_type
    flow.response.raw_content = answer
    return flow


def shown(flow: http.HTTPFlow, message: http.Message | WebSocketMessage | None) -> contentviews.ContentviewResult:
    assert message is not None
    with taddons.context():  # the views read mitmproxy's options
        return contentviews.prettify_message(message, flow)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_exchange_of_the_fixtures_is_a_conversation(case: Case) -> None:
    path = PATHS[case.dialect, case.streaming]
    flow = flow_with(path, case.request, case.body, case.content_type, case.status)
    asked, answered = shown(flow, flow.request), shown(flow, flow.response)
    assert asked.view_name == "AI conversation" and "=== " in asked.text
    if answered.view_name == "AI conversation":
        assert "=== assistant" in answered.text or "=== error" in answered.text or "tokens: " in answered.text
    for tool in case.expected.get("tool_usages", ()):
        assert tool["tool"] in answered.text


def test_most_answers_of_the_fixtures_can_be_shown() -> None:
    names = []
    for case in CASES:
        path = PATHS[case.dialect, case.streaming]
        flow = flow_with(path, case.request, case.body, case.content_type, case.status)
        names.append(shown(flow, flow.response).view_name)
    assert names.count("AI conversation") > 0.9 * len(names)


def request(**members: Any) -> bytes:
    return json.dumps({"model": "m", **members}).encode()


def test_the_parts_of_a_request_are_shown_by_role() -> None:
    body = request(
        system=[{"type": "text", "text": "Be brief."}],
        tools=[{"name": "Read"}, {"type": "web_search_20250305"}],
        messages=[
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [{"type": "tool_use", "name": "Read", "input": {"path": "x"}}]},
            {"role": "user", "content": [{"type": "tool_result", "content": "the file"}, {"type": "image"}]},
        ],
    )
    flow = flow_with("/v1/messages", body)
    assert shown(flow, flow.request).text.splitlines() == [
        "model: m",
        "tools: Read, web_search_20250305",
        *("", "=== system", "Be brief.", "", "=== user", "Hello"),
        *("", "=== assistant", '[call Read] {"path": "x"}', "", "=== user", "[result] the file", "[image]"),
    ]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"messages": 1}', b'{"messages": [1, null, {"role": {}, "content": {}}]}', b"\xff\0"],
)
def test_what_is_no_conversation_is_left_to_the_other_views(body: bytes) -> None:
    flow = flow_with("/v1/messages", body)
    shown(flow, flow.request)
    assert ConversationView().render_priority(b"{}", Metadata()) < 0
    elsewhere = flow_with("/v1/models", b"{}")
    assert shown(elsewhere, elsewhere.request).view_name == "JSON"


def test_hostile_and_very_long_texts_stay_text_and_are_cut() -> None:
    hostile = "\x1b[31m\u202e<script>\0"
    messages = [{"role": "user", "content": hostile + "x" * 1_000_000}] * (MAX_MESSAGES + 5)
    flow = flow_with("/v1/messages", request(messages=messages[:3], tools=[{"name": hostile}]))
    text = shown(flow, flow.request).text
    assert "\x1b" not in text and "\u202e" not in text and "\0" not in text and "<script>" in text
    assert len(text) < 4 * (MAX_TEXT + 200)
    many = flow_with("/v1/messages", request(messages=[{"role": "user", "content": "x"}] * (MAX_MESSAGES + 5)))
    assert "(5 earlier messages are not shown)" in shown(many, many.request).text


def test_messages_of_a_websocket_are_shown_one_by_one() -> None:
    flow = flow_with("/v1/responses", b"")
    texts = []
    response = {"id": "r", "model": "gpt", "status": "completed", "output": [], "usage": {"input_tokens": 3}}
    for event in (
        {"type": "response.create", "model": "gpt", "input": "Hello"},
        {"type": "response.output_text.delta", "delta": "Hi"},
        {"type": "response.completed", "response": response},
    ):
        message = WebSocketMessage(Opcode.TEXT, True, json.dumps(event).encode())
        texts.append(shown(flow, message).text)
    assert "=== user\nHello" in texts[0]
    assert texts[1] == "response.output_text.delta: Hi"
    assert "model: gpt" in texts[2]
