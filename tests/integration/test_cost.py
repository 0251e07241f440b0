"""One request does not cost another: what is too much passes unread, or is refused in the provider's shape."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.support.client import RawHttp1
from tests.support.mcp_servers import HttpMcp
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

PATH = "/v1/messages"
ANSWER = {"id": "msg_1", "type": "message", "model": "m", "content": [], "usage": {"input_tokens": 1}}
GZIP = [("content-encoding", "gzip")]

Start = Callable[..., RunningProxy]


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream) -> Start:
    def start(limits: str, more: str = "") -> RunningProxy:
        return start_proxy(
            config=f"limits: {{{limits}}}\n{more}\nproviders:\n"
            f"  - {{name: anthropic, type: anthropic, base_url: 'https://localhost:{upstream.port}'}}\n"
        )

    return start


def request(messages: Any, **members: Any) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 9, "messages": messages, **members}).encode()


def error_of(body: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(body)["error"]
    return error


BOMBS = {
    "a list": request([0] * 2000),
    "lists": request([[] for _ in range(2000)]),
    "objects": request([{} for _ in range(2000)]),
    "members": request([], **{f"m{number}": 0 for number in range(2000)}),
    "tools": request([{"role": "user", "content": "hi"}], tools=[{}] * 2000),
    "deep": request([{"role": "user", "content": "hi"}], tools=json.loads("[" * 900 + "]" * 900)),
}


@pytest.mark.parametrize("coded", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", BOMBS)
def test_a_request_with_too_many_values_passes_unread(
    start: Start, upstream: ScriptedUpstream, ours: HttpMcp, name: str, coded: bool
) -> None:
    proxy = start("json_values: 1000", f"mcp: {{servers: {{docs: {{url: '{ours.url}'}}}}}}")
    upstream.answer(Answer.json(ANSWER), Answer.json(ANSWER))
    body = gzip.compress(BOMBS[name]) if coded else BOMBS[name]
    with Client(proxy, ANTHROPIC) as client:
        assert client.post(PATH, body, GZIP if coded else ()).status == 200
    assert upstream.requests[0].body == body
    [row] = wait_for_ended(proxy, 1)
    # Of the request that is nested too deeply, only the tools cannot be read.
    assert row["metadata"].get("unread") == (None if name == "deep" else "limits.json_values")


@pytest.mark.parametrize("larger", [False, True])
def test_a_body_counts_as_it_is_decoded(start: Start, upstream: ScriptedUpstream, larger: bool) -> None:
    proxy = start("request_body: 64KiB")
    upstream.answer(Answer.json(ANSWER))
    body = request([{"role": "user", "content": "x" * (70_000 if larger else 60_000)}])
    with Client(proxy, ANTHROPIC) as client:
        seen = client.post(PATH, gzip.compress(body), GZIP)
        assert seen.status == (413 if larger else 200)
        if larger:
            assert error_of(seen.body)["type"] == "request_too_large"
            assert client.post(PATH, request([])).status == 200
    assert len(upstream.requests) == 1


def test_bodies_that_are_not_bridged_are_within_the_budget_and_pass_beyond_it(
    start: Start, upstream: ScriptedUpstream
) -> None:
    proxy = start("buffered: 100KiB")
    upstream.answer(*[Answer.json(ANSWER)] * 20)
    large, counted = request([{"role": "user", "content": "x" * 60_000}]), f"{PATH}/count_tokens"
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as slow, Client(proxy, ANTHROPIC) as client:
        slow.request("POST", counted, {"content-length": str(len(large))})
        slow.send(large[:-1])
        poll_until(lambda: client.post(PATH, large).status == 503, what="a refusal")
        seen = client.post(counted, large)
        assert (seen.status, upstream.requests[-1].body) == (200, large)
        slow.send(large[-1:])
        assert slow.read_head().status == 200
        slow.read_body()
        assert client.post(PATH, large).status == 200


def test_all_requests_together_are_within_one_budget(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start("buffered: 100KiB")
    upstream.answer(Answer.json(ANSWER), Answer.json(ANSWER))
    large = request([{"role": "user", "content": "x" * 60_000}])
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as slow, Client(proxy, ANTHROPIC) as client:
        slow.request("POST", PATH, {"content-length": str(len(large))})
        slow.send(large[:-1])

        def refused() -> bool:
            seen = client.post(PATH, large)
            if seen.status == 200:
                return False  # the slow one's bytes have not arrived yet
            assert (seen.status, seen.headers["retry-after"]) == (503, "1")
            assert error_of(seen.body)["type"] == "overloaded_error"
            return True

        upstream.answer(*[Answer.json(ANSWER)] * 20)
        poll_until(refused, what="a refusal")
        assert client.post(PATH, request([])).status == 200
        slow.send(large[-1:])
        assert slow.read_head().status == 200
        slow.read_body()
        assert client.post(PATH, large).status == 200
