"""HTTP/2 upstreams that restart: answers in flight end in peace, and unprocessed requests are sent again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from aibridge_addon.interception.attempts import MAX_UNPROCESSED
from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client, wait_for_ended
from tests.support.client_h2 import RawHttp2, StreamResetError
from tests.support.fixtures import case
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP2, Abort, Answer, Close, Gate, GoAway, Pause, Request, ScriptedUpstream

SIMPLE = case("messages/simple/streaming")
EVENTS = [event + b"\n\n" for event in SIMPLE.body.split(b"\n\n") if event]
PATH = "/v1/messages"
REFUSED = Abort(ErrorCodes.REFUSED_STREAM)
LAST = 2**31 - 1
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])

Start = Callable[..., RunningProxy]


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream(alpn=[HTTP2])


@pytest.fixture
def start(start_proxy: StartProxy) -> Start:
    def start(upstream: ScriptedUpstream, more: str = "max_retries: 0") -> RunningProxy:
        return start_proxy(
            config="providers:\n"
            f"  - {{name: anthropic, type: anthropic, base_url: '{upstream.url}', {more}}}\n"
            f"  - {{name: openai, type: openai, base_url: '{upstream.url}/v1', {more}}}\n"
        )

    return start


def whole() -> Answer:
    return Answer.event_stream(SIMPLE.body)


def held(*steps: Any) -> Answer:
    """An answer with these steps in its middle."""
    return Answer.event_stream(*EVENTS[:5], *steps, *EVENTS[5:])


def ask(client: RawHttp2) -> int:
    return client.request("POST", PATH, [(b"content-length", b"%d" % len(SIMPLE.request))], SIMPLE.request)


def whole_body(client: RawHttp2, stream: int) -> bytes:
    assert client.read_head(stream)[0] == 200
    return client.read_body(stream)


def through(proxy: RunningProxy) -> RawHttp2:
    return RawHttp2.through_proxy(proxy, ANTHROPIC, 443)


def statuses(proxy: RunningProxy, n: int) -> list[str]:
    return [row["status"] for row in wait_for_ended(proxy, n)]


# --- GOAWAY -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [None, LAST], ids=["the last stream", "none yet"])
@VERSIONS
def test_an_answer_in_flight_ends_in_peace_and_the_next_request_gets_a_fresh_connection(
    upstream: ScriptedUpstream, start: Start, http2: bool, last: int | None
) -> None:
    proxy = start(upstream)
    upstream.answer(held(GoAway(last)), whole())
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        assert client.post(PATH, SIMPLE.request).body == SIMPLE.body
        assert client.post(PATH, SIMPLE.request).body == SIMPLE.body
    assert [request.connection for request in upstream.requests] == [0, 1]
    assert statuses(proxy, 2) == ["completed"] * 2


def test_all_streams_up_to_the_last_id_end_in_peace(upstream: ScriptedUpstream, start: Start) -> None:
    proxy, gate = start(upstream), Gate()
    upstream.answer(held(Pause(gate)), held(Pause(gate)), held(GoAway(5)))
    with through(proxy) as client:
        streams = [ask(client)]
        upstream.wait_for_requests(1)  # one connection for all
        streams += [ask(client), ask(client)]
        assert whole_body(client, streams[2]) == SIMPLE.body
        gate.open()
        assert [whole_body(client, stream) for stream in streams[:2]] == [SIMPLE.body] * 2
    assert upstream.connections == 1
    assert statuses(proxy, 3) == ["completed"] * 3


def test_a_request_above_the_last_id_is_sent_again_at_once(upstream: ScriptedUpstream, start: Start) -> None:
    proxy, leaves, never, rest = start(upstream), Gate(), Gate(), Gate()
    upstream.answer(held(Pause(leaves), GoAway(), Pause(rest)), Answer(before=[Pause(never)]), whole())
    with through(proxy) as client:
        first = ask(client)
        upstream.wait_for_requests(1)
        second = ask(client)
        never.wait_reached()
        leaves.open()
        assert whole_body(client, second) == SIMPLE.body, "while the first answer goes on"
        rest.open()
        assert whole_body(client, first) == SIMPLE.body
    assert [request.connection for request in upstream.requests] == [0, 0, 1]
    assert upstream.requests[1].body == upstream.requests[2].body == SIMPLE.request
    [one, other] = wait_for_ended(proxy, 2)
    assert "attempts" not in one["metadata"]
    [failed, answered] = other["metadata"]["attempts"]
    assert (failed["status"], failed["then"], answered["status"]) == (None, "retry", 200)
    assert (one["status"], other["status"], other["turns"]) == ("completed", "completed", 1)


def test_a_graceful_shutdown_in_two_steps_is_understood(upstream: ScriptedUpstream, start: Start) -> None:
    """RFC 9113, section 6.8: a first GOAWAY with the highest id, and a second one with the last stream's."""
    proxy, never = start(upstream), Gate()
    second = Gate()
    upstream.answer(held(Pause(second), GoAway(LAST), GoAway()), Answer(before=[Pause(never)]), whole())
    with through(proxy) as client:
        streams = [ask(client)]
        upstream.wait_for_requests(1)
        streams.append(ask(client))
        never.wait_reached()
        second.open()
        assert [whole_body(client, stream) for stream in streams] == [SIMPLE.body] * 2
    assert statuses(proxy, 2) == ["completed"] * 2


@pytest.mark.parametrize("end", [(GoAway(),), (Close(),)], ids=["GOAWAY", "the end of the connection"])
def test_queued_requests_are_sent_again_on_a_fresh_connection(
    make_upstream: MakeUpstream, start: Start, end: Sequence[Any]
) -> None:
    """The upstream allows one stream at a time, so the others wait at the bridge."""
    upstream = make_upstream(alpn=[HTTP2], h2_settings={SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    proxy, gate = start(upstream), Gate()
    upstream.answer(Answer.event_stream(*EVENTS[:5], Pause(gate), *end, *EVENTS[5:]), whole(), whole())
    with through(proxy) as client:
        first = ask(client)
        assert client.read_head(first)[0] == 200
        streams = [ask(client), ask(client)]
        gate.wait_reached()
        refused = client.request("POST", PATH, [], b"no JSON")
        assert client.read_head(refused)[0] == 400, "what was sent before has been read"
        gate.open()
        assert [whole_body(client, stream) for stream in streams] == [SIMPLE.body] * 2
    assert [request.connection for request in upstream.requests] == [0, 1, 1]


def test_a_goaway_with_an_error_ends_streams_but_those_that_were_not_processed_are_sent_again(
    upstream: ScriptedUpstream, start: Start
) -> None:
    proxy, leaves, never = start(upstream), Gate(), Gate()
    calm = GoAway(error_code=ErrorCodes.ENHANCE_YOUR_CALM)
    upstream.answer(
        Answer.event_stream(*EVENTS[:5], Pause(leaves), calm, Close()), Answer(before=[Pause(never)]), whole()
    )
    with through(proxy) as client:
        first = ask(client)
        upstream.wait_for_requests(1)
        second = ask(client)
        never.wait_reached()
        leaves.open()
        assert whole_body(client, second) == SIMPLE.body
        assert b"event: error" in whole_body(client, first)
    [failed, completed] = wait_for_ended(proxy, 2)
    assert (failed["status"], completed["status"]) == ("failed", "completed")
    assert "GOAWAY with error 11" in failed["error_message"]


def test_a_request_whose_body_is_still_on_its_way_goes_on(upstream: ScriptedUpstream, start: Start) -> None:
    proxy, leaves = start(upstream), Gate()
    upstream.answer(held(Pause(leaves), GoAway(3)), Answer.json({"ok": True}))
    with through(proxy) as client:
        first = ask(client)
        leaves.wait_reached()
        upload = client.request("POST", "/v1/files", [(b"content-length", b"10")], b"01234", whole=False)
        leaves.open()
        assert whole_body(client, first) == SIMPLE.body
        client.send_rest(upload, b"56789")
        assert whole_body(client, upload) == b'{"ok": true}'
    assert upstream.requests[1].body == b"0123456789"


def test_a_clients_goaway_does_not_end_its_own_answers(upstream: ScriptedUpstream, start: Start) -> None:
    proxy, gate = start(upstream), Gate()
    upstream.answer(held(Pause(gate)))
    with through(proxy) as client:
        stream = ask(client)
        gate.wait_reached()
        client.go_away()
        gate.open()
        assert whole_body(client, stream) == SIMPLE.body
    assert statuses(proxy, 1) == ["completed"]


# --- REFUSED_STREAM -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "connections"), [(1, [0, 0]), (2, [0, 0, 1]), (3, [0, 0, 1, 1])], ids=["once", "twice", "three times"]
)
@VERSIONS
def test_a_refused_stream_is_asked_again_and_leaves_a_connection_that_only_refuses(
    upstream: ScriptedUpstream, start: Start, http2: bool, refused: int, connections: list[int]
) -> None:
    proxy = start(upstream)
    upstream.answer(*[Answer(before=[REFUSED])] * refused, whole())
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        assert client.post(PATH, SIMPLE.request).body == SIMPLE.body
    assert [request.connection for request in upstream.requests] == connections
    assert statuses(proxy, 1) == ["completed"]


def test_a_refused_stream_leaves_the_others_and_their_connection_alone(
    upstream: ScriptedUpstream, start: Start
) -> None:
    proxy, gate = start(upstream), Gate()
    upstream.answer(held(Pause(gate)), Answer(before=[REFUSED]), whole(), Answer(before=[REFUSED]), whole())
    with through(proxy) as client:
        first = ask(client)
        upstream.wait_for_requests(1)
        for _ in range(2):  # an answer in between: these are not refused in a row
            assert whole_body(client, ask(client)) == SIMPLE.body
        gate.open()
        assert whole_body(client, first) == SIMPLE.body
    assert upstream.connections == 1
    assert statuses(proxy, 3) == ["completed"] * 3


@pytest.mark.parametrize("path", ["/v1/models", "/v1/conversations/c_1"])
def test_a_passthrough_without_a_body_is_asked_again(upstream: ScriptedUpstream, start: Start, path: str) -> None:
    proxy = start(upstream)
    upstream.answer(Answer(before=[REFUSED]), Answer.json({"data": []}))
    with Client(proxy, OPENAI, http2=True) as client:
        assert client.ask("GET", path).status == 200
    assert len(upstream.requests) == 2


def test_with_central_keys_the_key_is_not_blamed(upstream: ScriptedUpstream, start: Start) -> None:
    proxy = start(upstream, "max_retries: 0, api_key: [sk-first-0000000000001, sk-second-000000000002]")
    upstream.answer(Answer(before=[REFUSED]), whole(), whole())
    with Client(proxy, ANTHROPIC) as client:
        assert client.post(PATH, SIMPLE.request).status == 200
        assert client.post(PATH, SIMPLE.request).status == 200
    assert len({request.header("x-api-key") for request in upstream.requests}) <= 2
    assert len(upstream.requests) == 3


def test_an_upstream_that_refuses_for_ever_is_asked_a_few_times(upstream: ScriptedUpstream, start: Start) -> None:
    proxy = start(upstream)

    def refuse(_request: Request) -> Answer:
        return Answer(before=[REFUSED])

    upstream.handler = refuse
    with Client(proxy, ANTHROPIC) as client:
        seen = client.post(PATH, SIMPLE.request)
    assert (seen.status, json.loads(seen.body)["type"]) == (502, "error")
    assert len(upstream.requests) == 1 + MAX_UNPROCESSED
    [row] = wait_for_ended(proxy, 1)
    assert (row["status"], row["error_type"]) == ("failed", "upstream_unreachable")


def test_a_stream_that_is_refused_after_its_head_is_not_sent_again(upstream: ScriptedUpstream, start: Start) -> None:
    proxy = start(upstream)
    upstream.answer(Answer.event_stream(*EVENTS[:2], REFUSED))
    with Client(proxy, ANTHROPIC, http2=True) as client:
        assert isinstance(client.raw, RawHttp2)
        stream = ask(client.raw)
        try:
            assert b"event: error" in whole_body(client.raw, stream)
        except StreamResetError:
            pytest.fail("the stream had an end of its own")
    assert len(upstream.requests) == 1
