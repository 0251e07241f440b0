"""The circuit breaker between real clients and a real upstream with scripted failures.

Its times are whole seconds, so the test's clock is not used here: what depends on it is in `tests/test_breaker.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client, Seen, wait_for_ended
from tests.integration.turns import Asked
from tests.support import fixtures
from tests.support.client_h2 import StreamResetError
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Abort, Answer, Gate, Pause, ScriptedUpstream, unused_port

MESSAGES = fixtures.case("messages/simple/blocking")
STREAM = fixtures.case("messages/simple/streaming")
CHAT = fixtures.case("chat_completions/simple/blocking")
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
LONG = "{failure_threshold: 2, interval: 1000, timeout: 1000}"
SHORT = "{failure_threshold: 2, interval: 1000, timeout: 1, max_requests: 2}"
NAMED = 'endpoint="/v1/messages",model="claude-sonnet-4-5",provider="anthropic"'

Start = Callable[..., RunningProxy]


@pytest.fixture
def upstream(make_upstream: MakeUpstream, request: pytest.FixtureRequest) -> ScriptedUpstream:
    """One that speaks HTTP/1, unless the test says `http2`."""
    params = getattr(request.node, "callspec", None)
    return make_upstream(alpn=[HTTP2 if params and params.params.get("http2") else HTTP1])


@pytest.fixture
def metrics_port() -> int:
    return unused_port()


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream, metrics_port: int) -> Start:
    def start(breaker: str, url: str = "") -> RunningProxy:
        url = url or upstream.url
        return start_proxy(
            config=f"metrics: {{listen: '127.0.0.1:{metrics_port}'}}\nproviders:\n"
            f"  - {{name: anthropic, type: anthropic, base_url: '{url}', circuit_breaker: {breaker}}}\n"
            f"  - {{name: openai, type: openai, base_url: '{url}/v1', circuit_breaker: {breaker}}}\n"
        )

    return start


def body(model: str = "claude-sonnet-4-5", case: fixtures.Case = MESSAGES) -> bytes:
    return json.dumps(json.loads(case.request) | {"model": model}).encode()


def good(case: fixtures.Case = MESSAGES) -> Answer:
    return Answer(200, [("content-type", "application/json")], case.body, framing="length")


def bad(status: int) -> Answer:
    return Answer.json({"type": "error", "error": {"type": f"http_{status}", "message": "No"}}, status)


def ask(proxy: RunningProxy, http2: bool = False, content: bytes | None = None) -> Seen:
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        return client.post("/v1/messages", content or body())


def scraped(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text


def numbers(port: int) -> dict[str, str]:
    """The samples of circuit breakers, as they are exposed once every record so far has reached the sinks."""
    poll_until(lambda: "aibridge_recorder_queue_depth 0.0" in scraped(port), 20, what="an empty queue of records")
    text = scraped(port)
    return {
        name: value
        for name, _, value in (line.rpartition(" ") for line in text.splitlines())
        if name.startswith("aibridge_circuit_breaker")
    }


@pytest.mark.parametrize("status", [503, 504, 529])
@VERSIONS
def test_failures_in_a_row_open_it_and_the_client_is_told_when_to_come_back(
    start: Start, upstream: ScriptedUpstream, metrics_port: int, http2: bool, status: int
) -> None:
    proxy = start(LONG)
    upstream.answer(bad(status), bad(status))
    assert [ask(proxy, http2).status for _ in range(2)] == [status] * 2
    turned_away = ask(proxy, http2)
    assert turned_away.status == 503 and 900 < int(turned_away.headers["retry-after"]) <= 1000
    assert json.loads(turned_away.body) == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "circuit breaker is open"},
    }
    assert len(upstream.requests) == 2
    rows = wait_for_ended(proxy, 3)
    assert (rows[2]["status"], rows[2]["error_type"], rows[2]["turns"]) == ("failed", "circuit_breaker_open", 0)
    assert numbers(metrics_port) == {
        f"aibridge_circuit_breaker_state{{{NAMED}}}": "1.0",
        f"aibridge_circuit_breaker_trips_total{{{NAMED}}}": "1.0",
        f"aibridge_circuit_breaker_rejects_total{{{NAMED}}}": "1.0",
    }


def test_another_model_route_or_provider_is_not_turned_away(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start(LONG)
    upstream.answer(bad(529), bad(529), good(), good(CHAT))
    assert [ask(proxy).status for _ in range(2)] == [529] * 2
    assert ask(proxy, content=body("claude-haiku-4-5")).status == 200
    with Client(proxy, OPENAI) as client:
        assert client.post("/v1/chat/completions", body("claude-sonnet-4-5", CHAT)).status == 200
    assert ask(proxy).status == 503


def test_openais_clients_are_told_in_openais_words(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start(LONG)
    upstream.answer(bad(503), bad(503))
    with Client(proxy, OPENAI) as client:
        answers = [client.post("/v1/chat/completions", CHAT.request) for _ in range(3)]
    error = json.loads(answers[2].body)["error"]
    assert (error["message"], error["type"], error["code"]) == (
        "circuit breaker is open",
        "server_error",
        "service_unavailable",
    )


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_other_errors_are_no_failures_of_the_provider(start: Start, upstream: ScriptedUpstream, status: int) -> None:
    proxy = start(LONG)
    upstream.answer(*[bad(status)] * 4)
    assert [ask(proxy).status for _ in range(4)] == [status] * 4


@VERSIONS
def test_an_upstream_that_cannot_be_reached_opens_it(start: Start, http2: bool) -> None:
    proxy = start(LONG, url=f"https://localhost:{unused_port()}")
    assert [ask(proxy, http2).status for _ in range(3)] == [502, 502, 503]


@VERSIONS
def test_streams_that_die_open_it(start: Start, upstream: ScriptedUpstream, http2: bool) -> None:
    proxy = start(LONG)
    upstream.answer(*[Answer.event_stream(STREAM.body[:200], Abort())] * 2)
    for _ in range(2):
        with Client(proxy, ANTHROPIC, http2=http2) as client:
            asked = Asked(client, "/v1/messages", body(case=STREAM))
            assert asked.status() == 200
            with pytest.raises((EOFError, ConnectionError, StreamResetError)):
                asked.rest()
    wait_for_ended(proxy, 2)
    assert ask(proxy, http2).status == 503


def test_clients_that_hang_up_do_not_open_it(start: Start, upstream: ScriptedUpstream) -> None:
    proxy = start(LONG)
    for n in range(1, 4):
        upstream.answer(Answer.event_stream(STREAM.body[:200], Pause(Gate())))
        with Client(proxy, ANTHROPIC) as client:
            asked = Asked(client, "/v1/messages", body(case=STREAM))
            assert asked.status() == 200
            asked.leave()
        wait_for_ended(proxy, n)
    upstream.answer(good())
    assert ask(proxy).status == 200


def test_after_the_timeout_it_tries_and_closes_again(
    start: Start, upstream: ScriptedUpstream, metrics_port: int
) -> None:
    proxy = start(SHORT)
    upstream.answer(bad(503), bad(503))
    assert [ask(proxy).status for _ in range(2)] == [503] * 2
    gate = Gate()
    upstream.answer(Answer.event_stream(STREAM.body[:200], Pause(gate), STREAM.body[200:]), good(), good(), good())
    with Client(proxy, ANTHROPIC) as client:
        asked = poll_until(lambda: admitted(client), 20, what="a request on trial")
        assert numbers(metrics_port)[f"aibridge_circuit_breaker_state{{{NAMED}}}"] == "0.5"
        assert ask(proxy).status == 200  # the second on trial
        third = ask(proxy)
        assert (third.status, third.headers["retry-after"]) == (503, "1")
        gate.open()
        assert asked.rest()
    wait_for_ended(proxy, 4)
    poll_until(
        lambda: numbers(metrics_port)[f"aibridge_circuit_breaker_state{{{NAMED}}}"] == "0.0", 10, what="it is closed"
    )
    assert [ask(proxy).status for _ in range(2)] == [200] * 2


def admitted(client: Client) -> Asked | None:
    """Ask for the stream; None while it is turned away."""
    asked = Asked(client, "/v1/messages", body(case=STREAM))
    if asked.status() == 200:
        return asked
    asked.rest()
    return None


def test_a_failure_on_trial_opens_it_again(start: Start, upstream: ScriptedUpstream, metrics_port: int) -> None:
    proxy = start(SHORT)
    upstream.answer(*[bad(529)] * 3)
    assert [ask(proxy).status for _ in range(2)] == [529] * 2
    poll_until(lambda: ask(proxy).status == 529, 20, what="a request on trial")
    assert numbers(metrics_port)[f"aibridge_circuit_breaker_trips_total{{{NAMED}}}"] == "2.0"
