"""The tool loop between two versions of HTTP, and through silence of the tools and of the provider."""

from __future__ import annotations

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client
from tests.integration.turns import (
    BY_DIALECT,
    CONNECTED,
    DIALECTS,
    MODES,
    VERSIONS,
    Asked,
    Turns,
    call,
    configuration,
    recorded,
    results,
    text,
)
from tests.support.mcp_servers import HttpMcp, ToolGate
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Answer, Gate, Pause, ScriptedUpstream

SIGNS = {dialect: b"event: ping\n" if dialect == "messages" else b":" for dialect in DIALECTS}
"""How a keep-alive begins."""
UPSTREAMS = pytest.mark.parametrize("upstream_http2", [False, True], ids=["upstream h1", "upstream h2"])


@pytest.fixture
def upstream(make_upstream: MakeUpstream, upstream_http2: bool) -> ScriptedUpstream:
    return make_upstream(alpn=[HTTP2 if upstream_http2 else HTTP1])


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> RunningProxy:
    mcp = f"keepalive_interval: 0.2\nservers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, mcp))
    proxy.wait_for_log(CONNECTED)
    return proxy


@pytest.mark.parametrize(
    ("http2", "upstream_http2"),
    [(True, False), (False, True)],
    ids=["h2 client, h1 upstream", "h1 client, h2 upstream"],
)
@MODES
@BY_DIALECT
def test_two_turns_are_one_answer_between_two_versions_of_http(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, streaming: bool, http2: bool, upstream_http2: bool
) -> None:
    turns = Turns(dialect, [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
    with Client(proxy, turns.host, http2=http2) as client:
        for _ in range(2):  # the connections are as good after a loop as before it
            upstream.answer(*turns.answers(streaming=streaming))
            seen = client.post(turns.path, turns.request(streaming=streaming))
            assert seen.status == 200
            turns.check_usage(turns.check(seen.body, streaming=streaming))
            assert recorded(proxy).outcome == ("completed", 2, None)
    assert {request.http_version for request in upstream.requests} == {"2" if upstream_http2 else "1.1"}
    if upstream_http2:  # else mitmproxy takes a new connection for each request
        assert len({request.connection for request in upstream.requests}) == 1
    assert [results(request) for request in upstream.requests] == [[], ["hi"], [], ["hi"]]
    turns.check_follow_up(upstream.requests[1], 0)


def hear_signs(asked: Asked, dialect: str) -> bytes:
    """Read until the client has received three keep-alives. Nothing else is visible yet."""
    heard = b""
    signs = 0
    pieces = asked.pieces()
    while signs < 3:
        piece = next(pieces)
        heard += piece
        signs += piece.startswith(SIGNS[dialect])
    assert b"Done." not in heard
    return heard


@VERSIONS
@UPSTREAMS
@BY_DIALECT
def test_a_client_that_has_seen_nothing_yet_hears_that_a_tool_runs(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, http2: bool
) -> None:
    with ToolGate() as gate, Client(proxy, Turns(dialect).host, http2=http2) as client:
        turns = Turns(dialect, [call("slow", port=gate.port)], [text("Done.")])
        upstream.answer(*turns.answers(streaming=True))
        asked = Asked(client, turns.path, turns.request(streaming=True))
        assert asked.status() == 200
        gate.wait_reached()
        heard = hear_signs(asked, dialect)
        assert len(upstream.requests) == 1
        gate.open()
        turns.check(heard + asked.rest(), streaming=True)


@VERSIONS
@UPSTREAMS
@pytest.mark.parametrize("silent", [0, 1], ids=["first turn", "second turn"])
@BY_DIALECT
def test_a_client_hears_that_somebody_is_there_while_the_provider_says_nothing(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, http2: bool, silent: int
) -> None:
    """The provider has sent the head of its answer, and nothing of its body."""
    turns = Turns(dialect, [call("echo", text="hi")], [text("Done.")])
    gate = Gate()
    answers = turns.answers(streaming=True)
    answers[silent] = Answer.event_stream(Pause(gate), *turns.events(silent))
    upstream.answer(*answers)
    with Client(proxy, turns.host, http2=http2) as client:
        asked = Asked(client, turns.path, turns.request(streaming=True))
        assert asked.status() == 200
        gate.wait_reached()
        heard = hear_signs(asked, dialect)
        gate.open()
        turns.check(heard + asked.rest(), streaming=True)
    assert results(upstream.requests[1]) == ["hi"]
