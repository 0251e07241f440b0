"""Values of the wire that are not what they should be, with tools: nothing hangs, every request has its row."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.turns import BY_DIALECT, CONNECTED, INJECTED, MODES, Turns, call, configuration, text
from tests.support.fixtures import case
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

DEPTH = 1_500
DEEP = "[" * DEPTH + "]" * DEPTH
MESSAGE = case("messages/simple/blocking")


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> RunningProxy:
    servers = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, servers))
    proxy.wait_for_log(CONNECTED)
    return proxy


PLACES = ("tools", "tool", "messages", "content", "metadata", "unknown")


def nested(turns: Turns, place: str) -> bytes:
    """A request with a deeply nested value."""
    body: dict[str, Any] = json.loads(turns.request(streaming=False))
    history = "input" if turns.dialect == "responses" else "messages"
    match place:
        case "tools":
            body["tools"] = "DEEP"
        case "tool":
            body["tools"][0]["input_schema"] = "DEEP"
        case "messages":
            body[history].insert(0, "DEEP")
        case "content":
            body[history][-1]["content"] = "DEEP"
        case _:
            body[place] = "DEEP"
    return json.dumps(body).replace('"DEEP"', DEEP).encode()


@BY_DIALECT
def test_a_deeply_nested_request_has_its_row(proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str) -> None:
    turns = Turns(dialect, [text("Hi.")])
    for place in PLACES:
        upstream.answer(*turns.answers(streaming=False))
        with Client(proxy, turns.host) as client:
            answer = client.post(turns.path, nested(turns, place))
            assert answer.status == 200, place
    assert len(wait_for_ended(proxy, len(PLACES))) == len(PLACES) == len(upstream.requests)


ODD_ENDS = [[], {}, ["tool_use"], 5, True]


@MODES
@pytest.mark.parametrize("odd", ODD_ENDS)
def test_an_odd_stop_reason_beside_a_hidden_call_ends(
    proxy: RunningProxy, upstream: ScriptedUpstream, odd: Any, streaming: bool
) -> None:
    turns = Turns("messages", [text("0. "), call("echo", text="hi")], [text("Done.")])
    reason = json.dumps(odd)
    for answer in turns.answers(streaming=streaming):
        body = b"".join(step for step in answer.steps if isinstance(step, bytes))
        changed = body.replace(b'"tool_use", "stop_sequence"', reason.encode() + b', "stop_sequence"')
        for written in (b'"stop_reason": "tool_use"', b'"stop_reason":"tool_use"'):
            changed = changed.replace(written, b'"stop_reason":' + reason.encode())
        upstream.answer(Answer(headers=answer.headers, body=changed))
    with Client(proxy, turns.host) as client:
        seen = client.post(turns.path, turns.request(streaming=streaming))
    assert INJECTED not in seen.body
    assert wait_for_ended(proxy, 1)[0]["status"] is not None


@MODES
@pytest.mark.parametrize("odd", [{}, [], 5, None])
def test_a_hidden_call_with_an_odd_id_stays_hidden(
    proxy: RunningProxy, upstream: ScriptedUpstream, odd: Any, streaming: bool
) -> None:
    turns = Turns("messages", [text("0. "), call("echo", text="hi")], [text("Done.")])
    [call_id] = turns.injected_ids(0)
    for answer in turns.answers(streaming=streaming):
        body = b"".join(step for step in answer.steps if isinstance(step, bytes))
        changed = body.replace(json.dumps(call_id).encode(), json.dumps(odd).encode())
        upstream.answer(Answer(headers=answer.headers, body=changed))
    with Client(proxy, turns.host) as client:
        seen = client.post(turns.path, turns.request(streaming=streaming))
    assert INJECTED not in seen.body and b"Done." in seen.body
    assert wait_for_ended(proxy, 1)[0]["status"] == "completed"


LIMITS = [
    ("retry-after", "Wed, 21 Oct 2015 07:28:00 +99999999999999999999"),
    ("retry-after", "9" * 5_000),
    ("retry-after-ms", "nan"),
    ("date", "Wed, 99 Oct 99999 07:28:00 +9999"),
    ("anthropic-ratelimit-requests-reset", "99999-99-99T99:99:99Z"),
    ("anthropic-ratelimit-unified-5h-reset", "9" * 400),
    ("anthropic-ratelimit-unified-5h-utilization", "1e999"),
    ("x-ratelimit-reset-tokens", "9" * 400 + "d"),
    ("x-ratelimit-remaining-tokens", "-1e400"),
    ("x-codex-primary-reset-after-seconds", "9" * 400),
    ("x-codex-primary-used-percent", "NaN"),
    ("x-should-retry", "\x7f"),
]


@pytest.mark.parametrize("keys", ["k-12345678", "[k-12345678, k-87654321]"])
def test_odd_headers_of_a_refusal_are_forwarded(
    start_proxy: StartProxy, make_upstream: MakeUpstream, keys: str
) -> None:
    upstream = make_upstream()
    provider = f"{{name: anthropic, type: anthropic, base_url: '{upstream.url}', api_key: {keys}, max_retries: 1}}"
    proxy = start_proxy(config=f"providers:\n- {provider}\n")
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "m"}}
    for name, value in LIMITS:
        refusal = Answer.json(error, status=400, headers=[(name, value)])
        upstream.answer(refusal)
        with Client(proxy, ANTHROPIC) as client:
            assert client.post("/v1/messages", MESSAGE.request).status == 400
    limited = Answer.json(error, status=429, headers=[LIMITS[0]])
    upstream.answer(limited, limited, limited)
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages", MESSAGE.request).status == 429
    assert len(wait_for_ended(proxy, len(LIMITS) + 1)) == len(LIMITS) + 1
