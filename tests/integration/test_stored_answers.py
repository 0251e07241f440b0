"""A stored answer of several turns is one answer for the client that fetches or deletes it."""

from __future__ import annotations

import gzip
import json
from typing import Any

import openai
import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import OPENAI, Client, Seen
from tests.integration.turns import CONNECTED, INJECTED, Turns, call, configuration, own, recorded, text, thought
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Answer, ScriptedUpstream

DELETED = {"object": "response", "deleted": True}
MISSING = {"error": {"type": "invalid_request_error", "message": "no such response"}}


@pytest.fixture(params=[False, True], ids=["h1", "h2"])
def http2(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def upstream(make_upstream: MakeUpstream, http2: bool) -> ScriptedUpstream:
    return make_upstream(alpn=[HTTP2 if http2 else HTTP1])


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> RunningProxy:
    proxy = start_proxy(config=configuration(upstream.url, f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"))
    proxy.wait_for_log(CONNECTED)
    return proxy


TURNS = Turns(
    "responses", [thought("Hm."), text("One. "), call("echo", text="a")], [call("add", a=1, b=2)], [text("Two.")]
)
IDS = [str(written.body["id"]) for written in TURNS.written]


def stored(number: int, turns: Turns = TURNS, **members: Any) -> Answer:
    """What the provider has of a turn."""
    return Answer.json({**turns.written[number].body, "object": "response", **members})


def made(client: Client, upstream: ScriptedUpstream, turns: Turns = TURNS, *, streaming: bool = False) -> Seen:
    """An answer of these turns."""
    upstream.answer(*turns.answers(streaming=streaming))
    seen = client.post(turns.path, turns.request(streaming=streaming))
    assert seen.status == 200
    return seen


def paths(upstream: ScriptedUpstream, method: str) -> list[str]:
    return [request.target for request in upstream.requests if request.method == method]


@pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "blocking"])
def test_a_fetched_answer_is_what_the_client_saw(
    proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool, streaming: bool
) -> None:
    with Client(proxy, OPENAI, http2=http2) as client:
        made(client, upstream, streaming=streaming)
        upstream.answer(*(stored(number) for number in range(3)))
        fetched = client.ask("GET", f"/v1/responses/{IDS[0]}?include%5B%5D=x")
    assert fetched.status == 200
    TURNS.check_usage(TURNS.check(fetched.body, streaming=False))
    assert paths(upstream, "GET") == [f"/v1/responses/{id_}?include%5B%5D=x" for id_ in IDS]
    assert len(proxy.rows("aibridge_interceptions")) == 1 and recorded(proxy).outcome == ("completed", 3, None)


@pytest.mark.parametrize(("after", "first"), [("", 0), ("&starting_after=4", 5)])
def test_an_answer_can_be_fetched_as_a_stream(
    proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool, after: str, first: int
) -> None:
    with Client(proxy, OPENAI, http2=http2) as client:
        made(client, upstream)
        upstream.answer(*(stored(number) for number in range(3)))
        fetched = client.ask("GET", f"/v1/responses/{IDS[0]}?stream=true{after}")
    assert fetched.headers["content-type"].startswith("text/event-stream")
    assert paths(upstream, "GET") == [f"/v1/responses/{id_}" for id_ in IDS]
    events = [json.loads(block.partition(b"data: ")[2]) for block in fetched.body.split(b"\n\n") if block]
    assert (events[0]["sequence_number"], events[-1]["type"]) == (first, "response.completed")
    assert INJECTED not in fetched.body
    if not after:
        TURNS.check_usage(TURNS.check(fetched.body, streaming=True))


def test_a_deleted_answer_is_deleted_in_all_its_turns(
    proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    with Client(proxy, OPENAI, http2=http2) as client:
        made(client, upstream)
        upstream.answer(*(Answer.json({"id": id_, **DELETED}) for id_ in (IDS[1], IDS[2], IDS[0])))
        answer = client.ask("DELETE", f"/v1/responses/{IDS[0]}")
    assert (answer.status, json.loads(answer.body)) == (200, {"id": IDS[0], **DELETED})
    assert paths(upstream, "DELETE") == [f"/v1/responses/{id_}" for id_ in (IDS[1], IDS[2], IDS[0])]


def test_a_deletion_goes_on_where_it_was_left(proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool) -> None:
    """A turn that is gone already is no error; another error ends the request before the turn that the client knows."""
    path = f"/v1/responses/{IDS[0]}"
    with Client(proxy, OPENAI, http2=http2) as client:
        made(client, upstream)
        upstream.answer(Answer.json({"id": IDS[1], **DELETED}), Answer.json(MISSING, 429))
        assert client.ask("DELETE", path).status == 429
        upstream.answer(Answer.json(MISSING, 404), Answer.json({"id": IDS[2], **DELETED}))
        upstream.answer(Answer.json({"id": IDS[0], **DELETED}))
        assert json.loads(client.ask("DELETE", path).body) == {"id": IDS[0], **DELETED}


@pytest.mark.parametrize("number", [0, 1])
def test_an_error_about_a_turn_is_the_answer(
    proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool, number: int
) -> None:
    with Client(proxy, OPENAI, http2=http2) as client:
        made(client, upstream)
        upstream.answer(*(stored(n) for n in range(number)), Answer.json(MISSING, 404))
        fetched = client.ask("GET", f"/v1/responses/{IDS[0]}")
    assert (fetched.status, json.loads(fetched.body)) == (404, MISSING)


def test_a_mixed_turn_is_fetched_without_the_hidden_call(
    proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    turns = Turns("responses", [call("echo", text="a"), own(path="b")])
    with Client(proxy, OPENAI, http2=http2) as client:
        made(client, upstream, turns)
        packed = gzip.compress(json.dumps({**turns.written[0].body, "object": "response"}).encode())
        upstream.answer(Answer(200, [("content-type", "application/json"), ("content-encoding", "gzip")], (packed,)))
        fetched = client.ask("GET", f"/v1/responses/{turns.first_id}")
    assert INJECTED not in fetched.body
    assert [item["name"] for item in json.loads(fetched.body)["output"]] == ["Read"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_other_answers_pass_as_they_are(
    proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool, method: str
) -> None:
    """An answer of one turn, one that is not stored, and one of another actor's or another's credential."""
    plain = Turns("responses", [text("Hello.")])
    with Client(proxy, OPENAI, http2=http2) as client:
        made(client, upstream, plain)
        for id_ in (plain.first_id, "resp_unknown"):
            upstream.answer(Answer.json({"id": id_, "bmcp_ours_echo": 1}))
            body = client.ask(method, f"/v1/responses/{id_}").body
            assert json.loads(body) == {"id": id_, "bmcp_ours_echo": 1}
        upstream.answer(*TURNS.answers(streaming=False), Answer.json(MISSING, 404))
        client.post(TURNS.path, TURNS.request(streaming=False, store=False))
        assert client.ask(method, f"/v1/responses/{IDS[0]}").status == 404
    assert paths(upstream, method)[-1:] == [f"/v1/responses/{IDS[0]}"]


def test_openais_own_client_fetches_and_deletes_it(
    proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    client = openai.OpenAI(api_key="sk-test", base_url=f"{proxy.proxy_url}/openai/v1", max_retries=0)
    upstream.answer(*TURNS.answers(streaming=False))
    created = client.responses.create(model="m", input="hi")
    upstream.answer(*(stored(number, tools=[]) for number in range(3)))
    assert client.responses.retrieve(created.id).output_text == created.output_text == "One. Two."
    upstream.answer(*(Answer.json({"id": id_, **DELETED}) for id_ in (IDS[1], IDS[2], IDS[0])))
    client.responses.delete(created.id)
    assert len(paths(upstream, "DELETE")) == 3
