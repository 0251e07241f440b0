"""What the bridge refuses by itself reaches the client as it was said, also where tools are injected."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client, Seen, wait_for_ended
from tests.integration.turns import DIALECTS, Turns, configuration, recorded, text
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

MODES = pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "blocking"])
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
BY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS)

Start = Callable[..., RunningProxy]


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream()


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> Start:
    def start(more: str = "", provider: str = "") -> RunningProxy:
        servers = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
        proxy = start_proxy(config=configuration(upstream.url, servers, more, provider))
        proxy.wait_for_log(r"MCP server ours: connected, \d+ tools")
        return proxy

    return start


def ask(proxy: RunningProxy, dialect: str, streaming: bool, http2: bool) -> Seen:
    turns = Turns(dialect, [text("Hello.")])
    with Client(proxy, turns.host, http2=http2) as client:
        return client.post(turns.path, turns.request(streaming=streaming))


@VERSIONS
@MODES
@BY_DIALECT
def test_an_open_breaker_is_told_with_the_time_that_remains(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool, http2: bool
) -> None:
    proxy = start(provider=", circuit_breaker: {failure_threshold: 1, timeout: 1000}")
    upstream.answer(Answer.json({"error": {"message": "down"}}, 503))
    assert ask(proxy, dialect, streaming, http2).status == 503
    answer = ask(proxy, dialect, streaming, http2)
    assert answer.status == 503 and int(answer.headers["retry-after"]) > 900
    assert json.loads(answer.body)["error"]["message"] == "circuit breaker is open"
    wait_for_ended(proxy, 2)
    assert recorded(proxy).outcome == ("failed", 0, "circuit_breaker_open")
    assert len(upstream.requests) == 1


@MODES
@BY_DIALECT
def test_a_request_that_cannot_be_recorded_is_told(
    start: Start, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    proxy = start(more="recording: {on_failure: closed}")
    with closing(sqlite3.connect(proxy.database)) as locked:
        locked.execute("begin exclusive")
        answer = ask(proxy, dialect, streaming, http2=False)
        locked.rollback()
    assert answer.status == 503 and "cannot be recorded" in json.loads(answer.body)["error"]["message"]
    assert upstream.requests == []
