"""What passes through a proxy is the same on both sides, byte for byte, and is recorded all the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.stage import (
    CASE,
    GATEWAY,
    GATEWAY_TO_PLAIN,
    H1,
    H1_TO_H2,
    H2,
    H2_TO_H1,
    H2_TO_PLAIN,
    ROUTES,
    Route,
    Stage,
    end_to_end,
    interceptions,
    open_stage,
)
from tests.support import fixtures
from tests.support.authority import Authority
from tests.support.codings import CODINGS, Coding, encode, encode_stream, split
from tests.support.script import Answer, Gate, Header, Pause, Step

SEED = 20260102


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, ca: Authority, mitmproxy_ca: Path) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("stage"), ca, mitmproxy_ca) as opened:
        yield opened


# --- single properties ----------------------------------------------------------------------------------------------


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def message(prompt: str) -> bytes:
    content = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": prompt}]}
    return json.dumps(content).encode()


def headers_for(case: str, body: bytes = b"", *further: Header) -> list[Header]:
    length = [(b"content-length", b"%d" % len(body))] if body else []
    return [(CASE, case.encode()), *further, *length]


def prompts(stage: Stage) -> list[str]:
    return [row["prompt"] for row in stage.proxy.rows("aibridge_user_prompts")]


SIMPLE = fixtures.case("messages/simple/blocking")
SIMPLE_STREAM = fixtures.case("messages/simple/streaming")
SIMPLE_ANSWER = Answer(headers=[("content-type", "application/json")], body=SIMPLE.body, framing="length")


@pytest.mark.parametrize("route", [H1, H2], ids=str)
@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_request_is_forwarded_as_it_is_and_read(stage: Stage, route: Route, coding: Coding) -> None:
    case = f"compressed {coding} {route}"
    body = encode(message(case), coding)
    stage.answer(case, SIMPLE_ANSWER)
    with route.connect(stage) as client:
        headers = headers_for(case, body, (b"content-encoding", coding.encode()))
        assert client.exchange("POST", "/v1/messages", headers, body).body == SIMPLE.body
    assert stage.received[case].body == body
    assert end_to_end(stage.received[case].headers, keep_case=True) == headers
    assert prompts(stage).count(case) == 1


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("coding", ["identity", "gzip", "zstd"])
@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
def test_the_first_piece_arrives_before_the_second_leaves(
    stage: Stage, route: Route, coding: Coding, kind: str
) -> None:
    case, gate = f"gate {kind} {coding} {route}", Gate()
    whole = SIMPLE_STREAM.body if kind == "text/event-stream" else SIMPLE.body
    first, second = encode_stream([whole[:300], whole[300:]], coding)
    coded = [] if coding == "identity" else [("content-encoding", coding)]
    stage.answer(case, Answer(200, [("content-type", kind), *coded], [first, Pause(gate), second]))
    with opened(stage, route, case) as read:
        begun = b""
        while len(begun) < len(first):
            begun += read()
        assert begun == first == stage.bytes_sent(case)
        gate.open()
        assert b"".join(iter(read, b"")) == second


@contextmanager
def opened(stage: Stage, route: Route, case: str, target: str = "/v1/messages") -> Iterator[Callable[[], bytes]]:
    """Ask, read the answer's head, and give a function that reads the next piece of its body."""
    body = message(case)
    with route.connect(stage) as client:
        yield client.open("POST", target, headers_for(case, body), body)


VERBATIM_TARGETS = {
    "/v1/messages?beta=true": True,
    "/v1/messages?": True,
    "/v1/messages?a=1&&b=%20+%2f&c=http://x/?y": True,
    "//v1/messages": True,
    "/v1/messages/": True,
    "/v1//messages?beta=true": True,
    "/v1/%6Dessages": True,
    "/v1/messages;v=2": False,
    "/v1/../v1/messages": True,
    "/V1/Messages": False,
    "/v1/caf%C3%A9/%2F%2e": False,
}


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_targets_are_kept_as_they_are_written(stage: Stage, route: Route) -> None:
    with route.connect(stage) as client:
        for target in VERBATIM_TARGETS:
            case = f"{target} {route}"
            stage.answer(case, SIMPLE_ANSWER)
            body = message(case)
            assert client.exchange("POST", target, headers_for(case, body), body).status == 200
            resolved = ".." in target and route.client == "gateway"  # the gateway's own path
            assert stage.received[case].target == ("/v1/messages" if resolved else target)
            assert stage.received[case].authority == f"localhost:{stage.upstreams[route.upstream].port}"
    bridged = {f"{target} {route}" for target, is_bridged in VERBATIM_TARGETS.items() if is_bridged}
    assert {prompt for prompt in prompts(stage) if prompt.endswith(f" {route}") and prompt[0] == "/"} == bridged


@pytest.mark.parametrize("target", ["/v1/messages", "/v1/files"])
@pytest.mark.parametrize("route", [H1, GATEWAY], ids=str)
def test_a_client_that_expects_100_continue_gets_it(stage: Stage, route: Route, target: str) -> None:
    case = f"expect {target} {route}"
    stage.answer(case, SIMPLE_ANSWER)
    body = message(case)
    with route.connect_raw(stage) as client:
        prefix = "/anthropic-h1" if route == GATEWAY else ""
        client.request("POST", prefix + target, headers_for(case, body, (b"expect", b"100-continue")))
        assert client.read_head().raw == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert client.read_head().status == 200
        assert client.read_body() == SIMPLE.body
    assert stage.received[case].body == body


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_probes_are_forwarded_and_answered(stage: Stage, route: Route, method: str) -> None:
    with route.connect(stage) as client:
        for target in ("/", "/v1/models?limit=1", "/v1/messages"):
            case = f"{method} {target} {route}"
            stage.answer(case, Answer.json({"data": []}, 405))
            seen = client.exchange(method, target, headers_for(case))
            assert (seen.status, seen.body) == (405, b"" if method == "HEAD" else b'{"data": []}')
            assert seen.headers == [(b"content-type", b"application/json"), (b"content-length", b"12")]
            received = stage.received[case]
            assert (received.method, received.target, received.body) == (method, target, b"")


@pytest.mark.parametrize("target", ["/v1/messages", "/v1/files"])
@pytest.mark.parametrize("route", [H1, H1_TO_H2, GATEWAY], ids=str)
def test_a_request_body_may_be_chunked(stage: Stage, route: Route, target: str) -> None:
    case = f"chunked {target} {route}"
    stage.answer(case, SIMPLE_ANSWER)
    body = message(case)
    with route.connect_raw(stage) as client:
        prefix = "/anthropic-h1" if route == GATEWAY else ""
        client.request("POST", prefix + target, headers_for(case, b"", (b"transfer-encoding", b"chunked")))
        for piece in [*split(body, seed=SEED), b""]:
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert client.read_head().status == 200
        assert client.read_body() == SIMPLE.body
    assert stage.received[case].body == body
    assert stage.received[case].header("content-length") is None
    assert (case in prompts(stage)) == (target == "/v1/messages")


@pytest.mark.parametrize("target", ["/v1/messages", "/v1/files"])
@pytest.mark.parametrize("route", [H2, H2_TO_H1, H2_TO_PLAIN], ids=str)
def test_an_http2_request_body_needs_no_length(stage: Stage, route: Route, target: str) -> None:
    case = f"no length {target} {route}"
    stage.answer(case, SIMPLE_ANSWER)
    body = message(case)
    with route.connect(stage) as client:
        assert client.exchange("POST", target, headers_for(case), body).body == SIMPLE.body
    assert stage.received[case].body == body


@pytest.mark.parametrize("target", ["/v1/messages", "/v1/files"])
@pytest.mark.parametrize("route", [H1, H2_TO_H1, GATEWAY_TO_PLAIN], ids=str)
def test_an_answer_may_end_with_its_connection(stage: Stage, route: Route, target: str) -> None:
    case = f"eof {target} {route}"
    pieces = split(SIMPLE_STREAM.body, seed=SEED)
    stage.answer(case, Answer(200, [("content-type", "text/event-stream")], pieces, "eof"))
    body = message(case)
    with route.connect(stage) as client:
        seen = client.exchange("POST", target, headers_for(case, body), body)
    assert (seen.status, seen.headers, seen.body) == (
        200,
        [(b"content-type", b"text/event-stream")],
        SIMPLE_STREAM.body,
    )


def test_a_status_line_is_kept(stage: Stage) -> None:
    stage.answer("reason", Answer(529, [("X-A", "1"), ("x-a", "2")], b"{}", "length", reason=b"Quite  Overloaded"))
    with H1.connect_raw(stage) as client:
        client.request("GET", "/v1/models", headers_for("reason"))
        assert (
            client.read_head().raw == b"HTTP/1.1 529 Quite  Overloaded\r\nX-A: 1\r\nx-a: 2\r\ncontent-length: 2\r\n\r\n"
        )


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("name", ["crlf_lines", "long_unicode"])
def test_an_event_may_be_cut_within_a_character_or_a_line_end(stage: Stage, route: Route, name: str) -> None:
    fixture = fixtures.case(f"messages/{name}/streaming")
    case, body = f"{name} {route}", fixture.body
    cuts = [i for i in range(1, len(body)) if body[i - 1 : i] == b"\r" or 0x80 <= body[i] < 0xC0]
    assert cuts
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    stage.answer(case, Answer.event_stream(*pieces))
    with opened(stage, route, case) as read:
        assert b"".join(iter(read, b"")) == body
    assert told_of(stage, case)["tokens"] == fixture.expected["tokens"]


def told_of(stage: Stage, prompt: str) -> dict[str, Any]:
    [found] = [row for row in interceptions(stage.proxy) if row["prompt"] == prompt]
    return found


@pytest.mark.parametrize("route", [H1, H2, GATEWAY], ids=str)
def test_a_large_answer_streams(stage: Stage, route: Route) -> None:
    case, gate = f"large {route}", Gate()
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x" * 64 * 1024}}
    big = f"event: content_block_delta\ndata: {json.dumps(delta)}\n\n".encode()
    before, stop, after = SIMPLE_STREAM.body.partition(b"event: content_block_stop")
    steps: list[Step] = [before, Pause(gate), *[big] * 320, stop + after]
    stage.answer(case, Answer.event_stream(*steps))
    digest, size = hashlib.sha256(), 0
    with opened(stage, route, case) as read:
        while size < len(before):
            piece = read()
            size += len(piece)
            digest.update(piece)
        gate.open()
        for piece in iter(read, b""):
            digest.update(piece)
    assert digest.hexdigest() == sha256(before + big * 320 + stop + after)
    assert told_of(stage, case)["tokens"] == SIMPLE_STREAM.expected["tokens"]
