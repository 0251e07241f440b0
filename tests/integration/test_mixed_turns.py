"""What a client's next request lacks is put into it again, by whichever process it comes to: calls, results, ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client
from tests.integration.turns import (
    BY_DIALECT,
    CLIENTS_RESULT,
    CONNECTED,
    INJECTED,
    MODES,
    VERSIONS,
    Turns,
    call,
    configuration,
    own,
    results,
    text,
    thought,
)
from tests.support.client_view import CLIENTS
from tests.support.in_process import InProcessProxy
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, ScriptedUpstream

RESTARTS = pytest.mark.parametrize("restarts", [False, True], ids=["same proxy", "next proxy"])


@pytest.fixture
def upstream(make_upstream: MakeUpstream, http2: bool) -> ScriptedUpstream:
    return make_upstream(alpn=[HTTP2 if http2 else HTTP1])


Proxies = tuple[InProcessProxy, Callable[[], InProcessProxy]]


@pytest.fixture
def proxies(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, restarts: bool) -> Proxies:
    """The proxy that answers first, and what gives the one that the next request comes to: with the same database."""
    config = configuration(upstream.url, f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}")
    first = start_proxy(config=config)
    first.wait_for_log(CONNECTED)

    def then() -> InProcessProxy:
        if not restarts:
            return first
        first.close()
        second = start_proxy(config=config, folder=first.folder)
        second.wait_for_log(CONNECTED)
        return second

    return first, then


def ask(proxy: RunningProxy, turns: Turns, body: bytes, *, http2: bool) -> bytes:
    with Client(proxy, turns.host, http2=http2) as client:
        seen = client.post(turns.path, body)
    assert seen.status == 200
    return seen.body


@VERSIONS
@RESTARTS
@MODES
@BY_DIALECT
def test_the_next_request_has_the_call_and_the_result_that_the_client_does_not_know(
    proxies: Proxies,
    upstream: ScriptedUpstream,
    dialect: str,
    streaming: bool,
    http2: bool,
) -> None:
    turns = Turns(dialect, [thought("Hm."), text("Both. "), call("echo", text="hi"), own(path="a")])
    done = Turns(dialect, [text("Done.")])
    upstream.answer(*turns.answers(streaming=streaming), *done.answers(streaming=streaming))
    first, then = proxies
    answer = ask(first, turns, turns.request(streaming=streaming), http2=http2)
    assert turns.check(answer, streaming=streaming).ends_for_calls

    sent = turns.next_request(answer, streaming=streaming)
    assert INJECTED not in sent
    done.check(ask(then(), done, sent, http2=http2), streaming=streaming)
    request = upstream.requests[1]
    CLIENTS[dialect].check_history(request.json(), turns.written[0].said, turns.call_ids(0))
    assert results(request) == ["hi", CLIENTS_RESULT]


@pytest.mark.parametrize("http2", [False], ids=["h1"])
@RESTARTS
@MODES
def test_thinking_that_the_client_sends_back_has_the_call_that_followed_it_again(
    proxies: Proxies, upstream: ScriptedUpstream, streaming: bool, http2: bool
) -> None:
    """The provider gets what it has said, turn by turn, though the client has it as one message."""
    turns = Turns("messages", [thought("Hm."), call("echo", text="hi")], [thought("So."), own(path="a")])
    done = Turns("messages", [text("Done.")])
    upstream.answer(*turns.answers(streaming=streaming), *done.answers(streaming=streaming))
    first, then = proxies
    answer = ask(first, turns, turns.request(streaming=streaming), http2=http2)
    ask(then(), done, turns.next_request(answer, streaming=streaming), http2=http2)
    (_, *loop), sent = upstream.requests[1].json()["messages"], upstream.requests[2].json()["messages"]
    assert sent[1:3] == loop
    assert sent[3] == {"role": "assistant", "content": turns.written[1].said}
    assert [block["tool_use_id"] for block in sent[4]["content"]] == turns.call_ids(1)
    assert len(sent) == 5


NAMING: dict[str, tuple[str, Any]] = {
    "response": ("responses", lambda name: {"previous_response_id": name}),
    "thread": ("messages", lambda name: {"thread": {"type": "continue", "previous_message_id": name}}),
    "diagnostics": ("messages", lambda name: {"diagnostics": {"previous_message_id": name, "level": 1.50}}),
}
"""Where a request names an earlier answer."""


@pytest.mark.parametrize("http2", [False], ids=["h1"])
@RESTARTS
@MODES
@pytest.mark.parametrize("naming", NAMING)
def test_an_answer_of_several_turns_is_named_by_its_last_ones_id(
    proxies: Proxies,
    upstream: ScriptedUpstream,
    naming: str,
    streaming: bool,
    http2: bool,
) -> None:
    dialect, members = NAMING[naming]
    turns = Turns(dialect, [text("See. "), call("echo", text="hi")], [text("Done.")], [text("Bye.")])
    upstream.answer(*turns.answers(streaming=streaming))
    first, then = proxies
    known = turns.view(ask(first, turns, turns.request(streaming=streaming), http2=http2), streaming=streaming).id
    assert known == turns.first_id
    ask(then(), turns, turns.request(streaming=streaming, **members(known)), http2=http2)
    sent = upstream.requests[2].json()
    expected = members(turns.written[1].body["id"])
    assert {name: sent[name] for name in expected} == expected
    assert json.dumps(sent).count(known) == 0
