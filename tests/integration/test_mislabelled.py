"""Answers whose label does not fit: their first bytes decide, with tools and without."""

from __future__ import annotations

import json

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, Seen, wait_for_ended
from tests.integration.turns import (
    BY_DIALECT,
    CONNECTED,
    INJECTED,
    MODES,
    VERSIONS,
    Asked,
    Turns,
    call,
    configuration,
    recorded,
    text,
)
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Answer, Gate, Pause, ScriptedUpstream

LABELS = (None, "text/plain", "application/json", "application/octet-stream")
BY_LABEL = pytest.mark.parametrize("label", LABELS, ids=str)


@pytest.fixture
def upstream(make_upstream: MakeUpstream, request: pytest.FixtureRequest) -> ScriptedUpstream:
    http2 = getattr(request.node, "callspec", None) is not None and request.node.callspec.params.get("http2", False)
    return make_upstream(alpn=[HTTP2 if http2 else HTTP1])


@pytest.fixture
def plain(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(config=configuration(upstream.url, ""))


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> RunningProxy:
    proxy = start_proxy(
        config=configuration(
            upstream.url, f"keepalive_interval: 0.2\nservers: {{ours: {{type: http, url: '{ours.url}'}}}}"
        )
    )
    proxy.wait_for_log(CONNECTED)
    return proxy


def labelled(answer: Answer, label: str | None, **more: str) -> Answer:
    headers = [("content-type", label)] if label is not None else []
    return Answer(answer.status, [*headers, *more.items()], answer.steps)


def ask(proxy: RunningProxy, turns: Turns, *, streaming: bool, http2: bool = False, usage: bool = True) -> Seen:
    with Client(proxy, turns.host, http2=http2) as client:
        return client.post(turns.path, turns.request(streaming=streaming, usage=usage))


def loop(dialect: str) -> Turns:
    return Turns(dialect, [text("Let me see. "), call("echo", text="hi")], [text("Done.")])


@BY_LABEL
@MODES
@BY_DIALECT
def test_without_tools_the_answer_passes_untouched_and_is_recorded(
    plain: RunningProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool, label: str | None
) -> None:
    turns = Turns(dialect, [text("Done.")])
    given = turns.answers(streaming=streaming)[0]
    upstream.answer(labelled(given, "text/event-stream" if not streaming and label is None else label))
    answer = ask(plain, turns, streaming=streaming)
    assert answer.body == b"".join(step for step in given.steps if isinstance(step, bytes))
    wait_for_ended(plain, 1)
    rows = recorded(plain)
    assert rows.outcome == ("completed", 1, None)
    assert [(row["output_tokens"], row["completeness"]) for row in rows.tokens] == [(5, "complete")]


@BY_LABEL
@VERSIONS
@BY_DIALECT
def test_with_tools_a_stream_is_merged_whatever_its_turns_are_labelled(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, label: str | None, http2: bool
) -> None:
    turns = loop(dialect)
    upstream.answer(*(labelled(given, label) for given in turns.answers(streaming=True)))
    answer = ask(proxy, turns, streaming=True, http2=http2)
    assert answer.content_type is not None and answer.content_type.startswith("text/event-stream")
    turns.check_usage(turns.check(answer.body, streaming=True))
    rows = recorded(proxy)
    assert rows.outcome == ("completed", 2, None) and len(rows.tokens) == 2


@BY_LABEL
@BY_DIALECT
def test_with_tools_a_mislabelled_stream_is_streamed_from_its_first_event_on(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, label: str | None
) -> None:
    turns = Turns(dialect, [text("Done.")])
    first, *rest = turns.events(0)
    gate = Gate()
    upstream.answer(labelled(Answer.event_stream(first, Pause(gate), *rest), label))
    with Client(proxy, turns.host) as client:
        asked = Asked(client, turns.path, turns.request(streaming=True))
        assert asked.status() == 200
        begun = asked.until(b"\n\n")
        gate.open()
        turns.check(begun + asked.rest(), streaming=True)


@BY_DIALECT
def test_a_body_with_the_label_of_a_stream_is_merged(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str
) -> None:
    turns = loop(dialect)
    upstream.answer(*(labelled(given, "text/event-stream") for given in turns.answers(streaming=False)))
    turns.check_usage(turns.check(ask(proxy, turns, streaming=False).body, streaming=False))


@BY_LABEL
@pytest.mark.parametrize("with_tools", [False, True])
def test_the_usage_that_we_asked_for_is_taken_out_of_a_mislabelled_stream(
    request: pytest.FixtureRequest, upstream: ScriptedUpstream, label: str | None, with_tools: bool
) -> None:
    turns = Turns("chat_completions", [text("Done.")])
    given = turns.answers(streaming=True)[0]
    whole = b"".join(step for step in given.steps if isinstance(step, bytes))
    upstream.answer(Answer(200, [("content-type", label)] if label else [], whole, framing="length"))
    used: RunningProxy = request.getfixturevalue("proxy" if with_tools else "plain")
    answer = ask(used, turns, streaming=True, usage=False)
    assert b'"usage":{' not in answer.body.replace(b" ", b"") and answer.body.endswith(b"data: [DONE]\n\n")
    assert turns.check(answer.body, streaming=True).usage is None
    wait_for_ended(used, 1)
    assert [row["output_tokens"] for row in recorded(used).tokens] == [5]


def test_a_body_that_answers_a_request_for_usage_passes_untouched(
    plain: RunningProxy, upstream: ScriptedUpstream
) -> None:
    turns = Turns("chat_completions", [text("Done.")])
    body = b'{"id":"c","choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}],"usage":null}'
    for label in ("application/json", "text/event-stream"):
        upstream.answer(Answer(200, [("content-type", label)], body))
        assert ask(plain, turns, streaming=True, usage=False).body == body


@pytest.mark.parametrize("with_tools", [False, True])
@BY_DIALECT
def test_an_error_that_comes_as_an_event_passes_and_its_words_are_recorded(
    request: pytest.FixtureRequest, upstream: ScriptedUpstream, dialect: str, with_tools: bool
) -> None:
    event = b'event: error\ndata: {"type":"error","error":{"type":"invalid_request_error","message":"Too long"}}\n\n'
    upstream.answer(Answer.event_stream(event, status=400))
    used: RunningProxy = request.getfixturevalue("proxy" if with_tools else "plain")
    answer = ask(used, Turns(dialect), streaming=True)
    assert (answer.status, answer.body) == (400, event)
    wait_for_ended(used, 1)
    rows = recorded(used)
    assert rows.outcome == ("failed", 1, "invalid_request_error")
    assert rows.interception["error_message"] == "Too long"


@pytest.mark.parametrize("coding", ["utf-8", "none", "identity", "aws-chunked"])
@MODES
@BY_DIALECT
def test_a_name_that_is_no_coding_changes_nothing(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool, coding: str
) -> None:
    turns = loop(dialect)
    label = "text/event-stream" if streaming else "application/json"
    upstream.answer(
        *(labelled(given, label, **{"content-encoding": coding}) for given in turns.answers(streaming=streaming))
    )
    turns.check_usage(turns.check(ask(proxy, turns, streaming=streaming).body, streaming=streaming))
    assert [row["completeness"] for row in recorded(proxy).tokens] == ["complete"] * 2


@MODES
@BY_DIALECT
def test_an_unknown_coding_passes_and_leaves_a_partial_row_and_a_line_in_the_log(
    plain: RunningProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    turns = Turns(dialect, [text("Done.")])
    given = turns.answers(streaming=streaming)[0]
    label = "text/event-stream" if streaming else "application/json"
    upstream.answer(labelled(given, label, **{"content-encoding": "dcb"}))
    answer = ask(plain, turns, streaming=streaming)
    assert answer.body == b"".join(step for step in given.steps if isinstance(step, bytes))
    wait_for_ended(plain, 1)
    [row] = recorded(plain).tokens
    assert (row["completeness"], row["output_tokens"], row["cost_usd"]) == ("partial", 0, None)
    assert plain.log.count("unsupported content coding: 'dcb'") == 1


@pytest.mark.parametrize("label", [*LABELS, "text/event-stream"], ids=str)
@MODES
@pytest.mark.parametrize("turn", [1, 2])
@BY_DIALECT
def test_no_call_is_shown_of_an_answer_in_an_unknown_coding(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool, label: str | None, turn: int
) -> None:
    turns = loop(dialect)
    first, _ = turns.answers(streaming=streaming)
    upstream.answer(*[first][: turn - 1], labelled(first, label, **{"content-encoding": "dcb"}))
    answer = ask(proxy, turns, streaming=streaming)
    assert INJECTED not in answer.body and b"error" in answer.body
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("failed", turn, "undecodable_answer")


def test_json_for_a_client_that_asked_for_a_stream_is_one_body_without_calls(
    proxy: RunningProxy, upstream: ScriptedUpstream
) -> None:
    turns = Turns("messages", [text("Done.")])
    upstream.answer(turns.answers(streaming=False)[0])
    with Client(proxy, ANTHROPIC) as client:
        answer = client.post(turns.path, turns.request(streaming=True))
    assert json.loads(answer.body) == turns.written[0].body
    assert recorded(proxy).outcome == ("completed", 1, None)
