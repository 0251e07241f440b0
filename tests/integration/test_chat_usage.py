"""A chat stream is asked for its usage, and the client gets the stream that it would have got without us."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import OPENAI, Client, wait_for_ended
from tests.support.client import gateway_client
from tests.support.codings import CODINGS, Coding, encode_stream, split
from tests.support.running import RunningProxy
from tests.support.script import Framing
from tests.support.upstream import Answer, ScriptedUpstream

PATH = "/v1/chat/completions"
ACCEPTING = [("accept-encoding", "gzip, br")]
FRAMINGS: tuple[Framing, ...] = ("length", "chunked")
MEBIBYTE = 1024 * 1024
ASKED = b'"stream_options":{"include_usage":true}'
REQUEST = (
    b'{"model":"gpt-4.1","seed":123456789012345678901234567890,"temperature":1.0,"top_p":1e-1,'
    b'"metadata":{"b": [1,  2.50],\n "a":"\\u00e9"},"stream":true,'
    b'"messages":[{"role":"user","content":"Ol\\u00e1 \xc3\xa9?"}],"x_unknown":-0.0}'
)
REFUSAL = (
    b'{"error":{"message":"Unrecognized request argument supplied: stream_options","type":"invalid_request_error"}}'
)


def chunk(choices: str, end: str = "") -> bytes:
    return f'data: {{"id":"chatcmpl-1","model":"gpt-4.1","choices":[{choices}]{end},"obfuscation":"q"}}\n\n'.encode()


def chunks(end: str, *numbers: int) -> list[bytes]:
    """A stream's chunks for these choices; each ends in `end`."""
    texts = [
        chunk(f'{{"index":{n},"delta":{{"content":"{t}"}},"finish_reason":null}}', end) for t in "Hi" for n in numbers
    ]
    ends = [chunk(f'{{"index":{n},"delta":{{}},"finish_reason":"stop"}}', end) for n in numbers]
    return [*texts, b": keep-alive\n\n", *ends]


USAGE = chunk("", ',"usage":{"prompt_tokens":16,"completion_tokens":6,"total_tokens":22}')
DONE = b"data: [DONE]\n\n"
AS_ASKED = [*chunks(',"usage":null', 0), USAGE, DONE]
UNASKED = [*chunks("", 0), DONE]


def config(port: int, recording: str = "") -> str:
    return (
        f"{recording}\n"
        "providers:\n"
        f"  - {{name: openai, type: openai, base_url: 'https://localhost:{port}/v1'}}\n"
        f"  - {{name: azure, type: azure, base_url: 'https://localhost:{port}'}}\n"
    )


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(config=config(upstream.port))


def ask(proxy: RunningProxy, body: bytes = REQUEST, *, http2: bool = False) -> bytes:
    with Client(proxy, OPENAI, http2=http2) as client:
        answer = client.post(PATH, body, ACCEPTING)
    assert answer.status == 200
    return answer.body


def tokens(proxy: RunningProxy, n: int = 1) -> list[tuple[int, int, str]]:
    rows = proxy.wait_for_rows("aibridge_token_usages", n)
    assert len(rows) == n
    return [(row["input_tokens"], row["output_tokens"], row["completeness"]) for row in rows]


# --- the request


@pytest.mark.parametrize("http2", [False, True])
def test_only_the_option_is_added_to_the_request(proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool) -> None:
    upstream.answer(Answer.event_stream(*AS_ASKED))
    assert ask(proxy, http2=http2) == b"".join(UNASKED)
    [request] = upstream.requests
    assert request.body == REQUEST[:-1] + b"," + ASKED + b"}"
    assert request.header("content-length") == str(len(request.body))
    assert request.header("accept-encoding") == "identity"
    assert tokens(proxy) == [(16, 6, "complete")]
    [row] = proxy.rows("aibridge_interceptions")
    assert (row["status"], row["turns"], row["streaming"]) == ("completed", 1, 1)
    [prompt] = proxy.rows("aibridge_user_prompts")
    assert prompt["prompt"] == "Olá é?"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (b'{"include_obfuscation":false}', b'{"include_obfuscation":false,"include_usage":true}'),
        (b'{"include_usage":false}', b'{"include_usage":true}'),
        (b"null", b'{"include_usage":true}'),
    ],
)
def test_options_that_are_there_stay_in_their_place(
    proxy: RunningProxy, upstream: ScriptedUpstream, given: bytes, sent: bytes
) -> None:
    upstream.answer(Answer.event_stream(*AS_ASKED))
    before, after = b'{"stream":true,"stream_options":', b',"messages":[{"role":"user","content":"Hi"}]}'
    assert ask(proxy, before + given + after) == b"".join(UNASKED)
    assert upstream.requests[0].body == before + sent + after


def test_what_is_not_to_be_asked_passes_untouched(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    asked = REQUEST[:-1] + b', "stream_options" : {"include_usage":true}}'
    wrong = REQUEST[:-1] + b',"stream_options":"please"}'
    unpaired = REQUEST.replace(b"Ol", b"\\ud83d")
    for body in (asked, wrong, unpaired):
        upstream.answer(Answer.event_stream(*AS_ASKED))
        assert ask(proxy, body) == b"".join(AS_ASKED)
        assert upstream.requests[-1].body == body
        assert upstream.requests[-1].header("accept-encoding") == "gzip, br"


def test_blocking_requests_are_untouched(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    answer = b'{"id": "chatcmpl-1", "choices": [], "usage":null}'
    for body in (REQUEST.replace(b'"stream":true', b'"stream":false'), REQUEST.replace(b'"stream":true,', b"")):
        upstream.answer(Answer(headers=[("content-type", "application/json")], body=answer, framing="length"))
        assert ask(proxy, body) == answer
        assert upstream.requests[-1].body == body
        assert upstream.requests[-1].header("accept-encoding") == "gzip, br"


def test_nothing_is_asked_where_the_configuration_says_so(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=config(upstream.port, "recording: {ask_chat_usage: false}"))
    body = b"".join(UNASKED)
    upstream.answer(Answer.event_stream(body))
    assert ask(proxy) == body
    assert upstream.requests[0].body == REQUEST
    assert upstream.requests[0].header("accept-encoding") == "gzip, br"
    [row] = wait_for_ended(proxy, 1)
    assert row["status"] == "completed"
    assert proxy.rows("aibridge_token_usages") == []


def test_azure_is_asked_only_in_versions_that_know_the_option(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    path = "/azure/openai/deployments/gpt/chat/completions?api-version="
    with gateway_client(proxy) as client:
        for version, asked in (("2024-02-01", False), ("2024-06-01", False), ("2025-01-01-preview", True)):
            upstream.answer(Answer.event_stream(*(AS_ASKED if asked else UNASKED)))
            assert client.post(path + version, content=REQUEST).content == b"".join(UNASKED)
            assert (upstream.requests[-1].body == REQUEST) is not asked


# --- the answer


def both_ways(proxy: RunningProxy, upstream: ScriptedUpstream, sent: Answer, expected: Sequence[bytes]) -> None:
    for http2 in (False, True):
        upstream.answer(sent)
        assert ask(proxy, http2=http2) == b"".join(expected)


@pytest.mark.parametrize("alpn", ["h2", "http/1.1"])
def test_the_client_sees_the_stream_without_the_chunk_however_it_is_cut(
    start_proxy: StartProxy, make_upstream: MakeUpstream, alpn: str
) -> None:
    upstream = make_upstream(alpn=[alpn])
    proxy = start_proxy(config=config(upstream.port))
    whole = b"".join(AS_ASKED)
    for pieces in ([whole], split(whole, seed=1, most=40), split(whole, seed=2, most=400)):
        both_ways(proxy, upstream, Answer.event_stream(*pieces), UNASKED)
    stream = [("content-type", "text/event-stream")]
    both_ways(proxy, upstream, Answer(headers=stream, body=whole, framing="length"), UNASKED)
    both_ways(proxy, upstream, Answer(headers=stream, body=whole, framing="eof"), UNASKED)
    assert tokens(proxy, 10) == [(16, 6, "complete")] * 10


def test_streams_of_other_writers_lose_the_chunk_too(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    spaced = [c.replace(b'":', b'": ').replace(b',"', b', "') for c in AS_ASKED]
    both_ways(
        proxy,
        upstream,
        Answer.event_stream(*spaced),
        [c.replace(b'":', b'": ').replace(b',"', b', "') for c in UNASKED],
    )
    crlf = [c.replace(b"\n", b"\r\n") for c in AS_ASKED]
    both_ways(proxy, upstream, Answer.event_stream(*crlf), [c.replace(b"\n", b"\r\n") for c in UNASKED])
    text = chunk('{"index":0,"delta":{"content":"say \\"usage\\":null, \\"choices\\":[]"},"finish_reason":null}')
    both_ways(proxy, upstream, Answer.event_stream(text, *AS_ASKED), [text, *UNASKED])
    # Without a blank line at its end, and with usage where a choice is: both are the client's.
    torn = [*UNASKED[:-1], b"data: [DONE]"]
    both_ways(proxy, upstream, Answer.event_stream(*AS_ASKED[:-1], b"data: [DONE]"), torn)
    beside = chunk('{"index":0,"delta":{},"finish_reason":"stop"}', ',"usage":{"prompt_tokens":1}')
    both_ways(proxy, upstream, Answer.event_stream(beside, DONE), [beside, DONE])


def test_two_choices_lose_only_the_usage(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    asked, unasked = chunks(',"usage":null', 0, 1), chunks("", 0, 1)
    both_ways(proxy, upstream, Answer.event_stream(*asked, USAGE, DONE), [*unasked, DONE])
    assert tokens(proxy, 2) == [(16, 6, "complete")] * 2


@pytest.mark.parametrize("alpn", ["h2", "http/1.1"])
def test_a_provider_that_codes_all_the_same_is_decoded_for_the_client(
    start_proxy: StartProxy, make_upstream: MakeUpstream, alpn: str
) -> None:
    upstream = make_upstream(alpn=[alpn])
    proxy = start_proxy(config=config(upstream.port))
    codings: tuple[Coding, ...] = CODINGS[1:]
    for coding in codings:
        headers = [("content-encoding", coding), ("x-request-id", "req_1")]
        pieces = encode_stream(AS_ASKED, coding)
        for body in (pieces, split(b"".join(pieces), seed=3)):
            for http2 in (False, True):
                upstream.answer(Answer.event_stream(*body, headers=headers))
                with Client(proxy, OPENAI, http2=http2) as client:
                    answer = client.post(PATH, REQUEST, ACCEPTING)
                assert answer.body == b"".join(UNASKED)
                assert "content-encoding" not in answer.headers
                assert answer.headers["x-request-id"] == "req_1"
    assert set(tokens(proxy, 16)) == {(16, 6, "complete")}


def test_a_coded_answer_that_is_broken_ends_as_a_broken_stream(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    pieces = encode_stream(AS_ASKED, "gzip")
    for http2 in (False, True):
        upstream.answer(
            Answer.event_stream(*pieces[:3], b"no gzip at all", *pieces[3:], headers=[("content-encoding", "gzip")])
        )
        body = ask(proxy, http2=http2)
        assert body.startswith(b"".join(UNASKED[:3]))
        error, end = body.removeprefix(b"".join(UNASKED[:3])).removesuffix(DONE), body[-len(DONE) :]
        assert json.loads(error.removeprefix(b"data: "))["error"]["type"] == "server_error"
        assert end == DONE
    rows = wait_for_ended(proxy, 2)
    assert [(row["status"], row["error_type"]) for row in rows] == [("failed", "undecodable_answer")] * 2


def test_an_answer_in_a_coding_that_nobody_knows_passes_untouched(
    proxy: RunningProxy, upstream: ScriptedUpstream
) -> None:
    upstream.answer(Answer.event_stream(b"\x00\x01", headers=[("content-encoding", "x-secret")]))
    with Client(proxy, OPENAI) as client:
        answer = client.post(PATH, REQUEST)
    assert (answer.body, answer.headers["content-encoding"]) == (b"\x00\x01", "x-secret")


# --- a refusal


@pytest.mark.parametrize(
    ("http2", "alpn", "coding"),
    [(True, "h2", "identity"), (False, "h2", "gzip"), (False, "http/1.1", "identity"), (False, "http/1.1", "gzip")],
)
def test_a_400_that_names_the_option_is_retried_once_and_remembered(
    start_proxy: StartProxy, make_upstream: MakeUpstream, http2: bool, alpn: str, coding: Coding
) -> None:
    upstream = make_upstream(alpn=[alpn])
    proxy = start_proxy(config=config(upstream.port))
    refusal = Answer(
        400, [("content-type", "application/json"), ("content-encoding", coding)], encode_stream([REFUSAL], coding)
    )
    upstream.answer(refusal, Answer.event_stream(*UNASKED), Answer.event_stream(*UNASKED))
    with Client(proxy, OPENAI, http2=http2) as client:
        for _ in range(2):
            answer = client.post(PATH, REQUEST, ACCEPTING)
            assert (answer.status, answer.body) == (200, b"".join(UNASKED))
    first, second, third = upstream.requests
    assert ASKED in first.body
    assert second.body == third.body == REQUEST
    assert second.header("accept-encoding") == third.header("accept-encoding") == "gzip, br"
    assert second.header("content-length") == str(len(REQUEST))
    assert [request.connection for request in upstream.requests] == [0, 0, 0]
    rows = wait_for_ended(proxy, 2)
    assert [(row["status"], row["turns"], row["http_status"]) for row in rows] == [("completed", 1, 200)] * 2
    assert len(proxy.rows("aibridge_user_prompts")) == 2


@pytest.mark.parametrize("status", [400, 404, 422])
@pytest.mark.parametrize(
    "error", [REFUSAL, b'{"detail":"Extra inputs are not permitted"}'], ids=["named", "other words"]
)
def test_a_refusal_is_remembered_for_its_model_only(
    proxy: RunningProxy, upstream: ScriptedUpstream, status: int, error: bytes
) -> None:
    other = REQUEST.replace(b"gpt-4.1", b"gpt-5.5")
    upstream.answer(Answer(status, [("content-type", "application/json")], error))
    upstream.answer(*[Answer.event_stream(*UNASKED)] * 2, Answer.event_stream(*AS_ASKED))
    for body in (REQUEST, REQUEST, other):
        assert ask(proxy, body) == b"".join(UNASKED)
    assert [ASKED in request.body for request in upstream.requests] == [True, False, False, True]
    assert {row["status"] for row in wait_for_ended(proxy, 3)} == {"completed"}


def test_a_refusal_in_other_words_that_a_second_try_repeats_is_not_remembered(
    proxy: RunningProxy, upstream: ScriptedUpstream
) -> None:
    error = b'{"detail":"Extra inputs are not permitted"}'
    upstream.answer(*[Answer(422, [("content-type", "application/json")], error)] * 2, Answer.event_stream(*AS_ASKED))
    with Client(proxy, OPENAI) as client:
        answer = client.post(PATH, REQUEST)
    assert (answer.status, answer.body) == (422, error)
    assert ask(proxy) == b"".join(UNASKED)
    assert [ASKED in request.body for request in upstream.requests] == [True, False, True]


def test_a_second_400_is_the_answer(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    for http2 in (False, True):
        refusal = Answer(400, [("content-type", "application/json")], REFUSAL)
        upstream.answer(*([refusal, refusal] if not http2 else [refusal]))
        with Client(proxy, OPENAI, http2=http2) as client:
            answer = client.post(PATH, REQUEST)
        assert (answer.status, answer.body) == (400, REFUSAL)
    assert [ASKED in request.body for request in upstream.requests] == [True, False, False]
    rows = wait_for_ended(proxy, 2)
    assert [(row["status"], row["error_type"], row["turns"]) for row in rows] == [
        ("failed", "invalid_request_error", 1)
    ] * 2


@pytest.mark.parametrize("http2", [False, True])
def test_another_400_is_passed_on_as_it_is(proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool) -> None:
    small = b'{"error": {"message": "no such model", "type": "invalid_request_error", "code": null}}'
    large = REFUSAL + b" " * (MEBIBYTE + 1)
    for body in (small, large, b""):
        for coding in ("identity", "gzip"):
            sent = encode_stream([body], "gzip")[0] if coding == "gzip" else body
            if coding == "gzip" and body is large:
                continue  # small on the wire, so that it is looked at
            for framing in FRAMINGS:
                kinds = [("content-type", "application/json"), ("content-encoding", coding)]
                upstream.answer(*[Answer(400, kinds, sent, framing=framing)] * 2)
                with Client(proxy, OPENAI, http2=http2) as client:
                    for _ in range(2):
                        answer = client.post(PATH, REQUEST)
                        assert (answer.status, answer.body) == (400, sent)
                        assert answer.headers["content-encoding"] == coding
    assert all(ASKED in request.body for request in upstream.requests)
    rows = wait_for_ended(proxy, len(upstream.requests))
    assert {(row["status"], row["turns"], row["http_status"]) for row in rows} == {("failed", 1, 400)}
    assert rows[0]["error_message"] == "no such model"
