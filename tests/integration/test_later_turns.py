"""Turns after the first are sent again before their first byte, because a client's own retry would run tools again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client, wait_for_ended
from tests.integration.turns import (
    BY_DIALECT,
    CONNECTED,
    MODES,
    VERSIONS,
    Turns,
    call,
    configuration,
    recorded,
    text,
)
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Abort, Answer, AnyAnswer, Close, ScriptedUpstream

AT_ONCE = [("retry-after-ms", "1")]
BUSY = {"type": "error", "error": {"type": "overloaded_error", "message": "Busy"}}
Start = Callable[..., RunningProxy]


@pytest.fixture
def upstream(make_upstream: MakeUpstream, request: pytest.FixtureRequest) -> ScriptedUpstream:
    """One that speaks HTTP/1, unless the test says `http2`."""
    http2 = getattr(request.node, "callspec", None) is not None and request.node.callspec.params.get("http2", False)
    return make_upstream(alpn=[HTTP2 if http2 else HTTP1])


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> Start:
    def start(mcp: str = "") -> RunningProxy:
        servers = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
        proxy = start_proxy(config=configuration(upstream.url, f"{mcp}\n{servers}".strip()))
        proxy.wait_for_log(CONNECTED)
        return proxy

    return start


def two_turns(dialect: str) -> Turns:
    return Turns(dialect, [text("Let me see. "), call("echo", text="hi")], [text("Done.")])


@VERSIONS
@MODES
@BY_DIALECT
def test_a_later_turn_is_retried_twice_by_default(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool, http2: bool
) -> None:
    proxy, turns = start(), two_turns(dialect)
    first, last = turns.answers(streaming=streaming)
    upstream.answer(first, *[Answer.json(BUSY, status, AT_ONCE) for status in (503, 529)], last)
    with Client(proxy, turns.host, http2=http2) as client:
        seen = client.post(turns.path, turns.request(streaming=streaming))
    assert seen.status == 200
    turns.check_usage(turns.check(seen.body, streaming=streaming))
    rows = recorded(proxy)
    assert rows.outcome == ("completed", 2, None) and len(rows.injected) == 1
    assert [attempt["status"] for attempt in rows.interception["metadata"]["attempts"]][:2] == [503, 529]
    assert len({request.body for request in upstream.requests[1:]}) == 1


@MODES
@BY_DIALECT
def test_the_first_turn_is_not_retried(start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool) -> None:
    proxy, turns = start(), two_turns(dialect)
    upstream.answer(Answer.json(BUSY, 529, AT_ONCE))
    with Client(proxy, turns.host) as client:
        assert client.post(turns.path, turns.request(streaming=streaming)).status == 529
    assert len(upstream.requests) == 1


@MODES
@BY_DIALECT
def test_every_later_turn_has_its_own_retries(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    proxy = start("later_turn_retries: 1")
    turns = Turns(dialect, *([call("echo", text=str(n))] for n in range(3)), [text("Done.")])
    answers: list[AnyAnswer] = []
    for answer in turns.answers(streaming=streaming):
        answers += [answer, Answer.json(BUSY, 503, AT_ONCE)]
    upstream.answer(*answers[:-1])
    with Client(proxy, turns.host) as client:
        turns.check(client.post(turns.path, turns.request(streaming=streaming)).body, streaming=streaming)
    assert recorded(proxy).outcome == ("completed", 4, None)


@pytest.mark.parametrize(
    ("end", "http2"),
    # Over HTTP/2, a reset ends only the stream.
    [(Abort(), False), (Close(), False), (Close(), True)],
    ids=["reset", "closed", "closed-h2"],
)
@pytest.mark.parametrize("retries", [0, 2])
@MODES
@BY_DIALECT
def test_a_kept_connection_that_turns_out_closed_is_replaced_at_once(
    start: Start,
    upstream: ScriptedUpstream,
    dialect: str,
    streaming: bool,
    http2: bool,
    retries: int,
    end: Abort | Close,
) -> None:
    proxy, turns = start(f"later_turn_retries: {retries}"), two_turns(dialect)
    first, last = turns.answers(streaming=streaming)
    upstream.answer(first, Answer(before=[end]), last)
    with Client(proxy, turns.host, http2=http2) as client:
        seen = client.post(turns.path, turns.request(streaming=streaming))
    turns.check(seen.body, streaming=streaming)
    wait_for_ended(proxy, 1)
    assert recorded(proxy).outcome == ("completed", 2, None)
    _, on_the_kept_one, on_a_fresh_one = upstream.requests
    assert on_the_kept_one.connection != on_a_fresh_one.connection
