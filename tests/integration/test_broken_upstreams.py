"""Upstreams that break off or answer nonsense, and clients that leave: what is passed on, and what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import anthropic
import openai
import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client, wait_for_ended
from tests.support.client import RawHttp1
from tests.support.client_h2 import RawHttp2, StreamResetError
from tests.support.codings import encode_stream
from tests.support.fixtures import Case, case
from tests.support.running import RunningProxy
from tests.support.upstream import Abort, Answer, AnyAnswer, Close, Gate, Pause, RawAnswer, ScriptedUpstream

Alpn = Literal["h2", "http/1.1"]
WAYS: tuple[tuple[bool, Alpn], ...] = ((False, "http/1.1"), (False, "h2"), (True, "http/1.1"), (True, "h2"))
every_way = pytest.mark.parametrize(("http2", "alpn"), WAYS)
STREAM = ("content-type", "text/event-stream")
JSON = ("content-type", "application/json")


@dataclass(frozen=True)
class Dialect:
    case: Case
    host: str
    path: str
    has_usage: bool
    """Whether the beginning of its stream reports some."""

    @property
    def events(self) -> list[bytes]:
        return [event + b"\n\n" for event in self.case.body.split(b"\n\n") if event]


DIALECTS = (
    Dialect(case("messages/cut/streaming"), ANTHROPIC, "/v1/messages", True),
    Dialect(case("chat_completions/cut_with_usage/streaming"), OPENAI, "/v1/chat/completions", True),
    Dialect(case("responses/cut/streaming"), OPENAI, "/v1/responses", False),
)
MESSAGES = DIALECTS[0]
MESSAGE = json.dumps({"id": "msg_1", "model": "m", "content": [], "usage": {"input_tokens": 3, "output_tokens": 4}})


@dataclass(frozen=True)
class Setting:
    upstream: ScriptedUpstream
    proxy: RunningProxy


@pytest.fixture
def setting(start_proxy: StartProxy, make_upstream: MakeUpstream, alpn: Alpn) -> Setting:
    upstream = make_upstream(alpn=[alpn])
    return Setting(upstream, start_proxy(config=config(upstream.port)))


@pytest.fixture
def alpn() -> Alpn:
    return "http/1.1"


def config(port: int) -> str:
    return (
        "recording: {ask_chat_usage: false}\n"
        "providers:\n"
        f"  - {{name: anthropic, type: anthropic, base_url: 'https://localhost:{port}'}}\n"
        f"  - {{name: openai, type: openai, base_url: 'https://localhost:{port}/v1'}}\n"
    )


class Reading:
    """An answer that is read piece by piece, until it ends or breaks."""

    def __init__(self, client: Client, dialect: Dialect) -> None:
        raw, body = client.raw, dialect.case.request
        self._piece: Callable[[], bytes]
        if isinstance(raw, RawHttp1):
            raw.request("POST", dialect.path, body=body)
            self.status = raw.read_head().status
            self._piece = raw.read_body_chunk
        else:
            self.stream = raw.request("POST", dialect.path, [], body)
            self.status, _ = raw.read_head(self.stream)
            self._piece = partial(raw.read_data, self.stream)
        self.body = b""

    def read(self, size: int) -> None:
        while len(self.body) < size:
            piece = self._piece()
            assert piece, f"the answer has ended: {self.body!r}"
            self.body += piece

    def ends_properly(self) -> bool:
        """Read the rest, and return whether the answer ended properly."""
        try:
            while piece := self._piece():
                self.body += piece
        except (EOFError, StreamResetError, ConnectionError):
            return False
        return True


def outcome(row: dict[str, Any]) -> tuple[str, str | None, int | None]:
    return row["status"], row["error_type"], row["http_status"]


# --- an upstream that breaks off


@every_way
def test_a_stream_that_is_cut_between_two_events_ends_in_an_error_event(setting: Setting, http2: bool) -> None:
    count = 0
    for dialect in DIALECTS:
        begun = b"".join(dialect.events)
        for cut in (Abort(), Close()):
            gate = Gate()
            setting.upstream.answer(Answer.event_stream(*dialect.events, Pause(gate), cut))
            with Client(setting.proxy, dialect.host, http2=http2) as client:
                reading = Reading(client, dialect)
                reading.read(len(begun))
                gate.open()
                assert reading.ends_properly()
            assert reading.body.startswith(begun)
            shape_of_error_event(dialect, reading.body.removeprefix(begun))
            count += 1
            row = wait_for_ended(setting.proxy, count)[-1]
            assert outcome(row) == ("failed", "upstream_disconnected", 200)
            assert row["turns"] == 1
    expected = [d.case.expected["tokens"][0] for d in DIALECTS if d.has_usage for _ in range(2)]
    rows = setting.proxy.wait_for_rows("aibridge_token_usages", len(expected))
    for row, tokens in zip(rows, expected, strict=True):
        assert (row["input_tokens"], row["output_tokens"]) == (tokens["input_tokens"], tokens["output_tokens"])
        assert row["completeness"] == "partial"


def shape_of_error_event(dialect: Dialect, end: bytes) -> None:
    assert end.endswith(b"\n\n")
    if dialect.host == ANTHROPIC:
        error = json.loads(end.removeprefix(b"event: error\ndata: "))
        assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    elif dialect.path.endswith("responses"):
        error = json.loads(end.removeprefix(b"event: error\ndata: "))
        assert error.keys() == {"type", "code", "message", "param"}
    else:
        error = json.loads(end.removeprefix(b"data: ").removesuffix(b"data: [DONE]\n\n"))
        assert error["error"]["type"] == "server_error"


def test_the_vendors_own_clients_see_the_error_event(setting: Setting) -> None:
    def cut(dialect: Dialect) -> Gate:
        gate = Gate()
        setting.upstream.answer(Answer.event_stream(*dialect.events, Pause(gate), Abort()))
        return gate

    def last_of(events: Iterable[Any], gate: Gate) -> Any:
        last = None
        for last in events:  # noqa: B007 (it is what is asked for)
            gate.open()
        return last

    messages, chat, responses = DIALECTS
    base = setting.proxy.proxy_url
    with anthropic.Anthropic(api_key="k", base_url=f"{base}/anthropic", max_retries=0) as claude:
        gate = cut(messages)
        message_stream = claude.messages.create(**json.loads(messages.case.request) | {"model": "claude-x"})
        with pytest.raises(anthropic.APIError, match="upstream"):
            last_of(message_stream, gate)
    with openai.OpenAI(api_key="k", base_url=f"{base}/openai/v1", max_retries=0) as client:
        gate = cut(chat)
        chat_stream = client.chat.completions.create(**json.loads(chat.case.request))
        with pytest.raises(openai.APIError, match="upstream"):
            last_of(chat_stream, gate)
        gate = cut(responses)
        response_stream = client.responses.create(**json.loads(responses.case.request))
        assert "upstream" in last_of(response_stream, gate).message


@every_way
def test_a_cut_that_cannot_be_told_is_passed_on_as_a_cut(setting: Setting, http2: bool) -> None:
    """Cut in the middle of an event, in a coded answer, and in one with a Content-Length."""
    events = MESSAGES.events
    coded = encode_stream([*events, b""], "gzip")[:-1]
    length = ("content-length", "100000")
    answers: list[tuple[Sequence[bytes], list[tuple[str, str]]]] = [
        ([*events, b'event: message_delta\ndata: {"type":'], [STREAM]),
        (coded, [STREAM, ("content-encoding", "gzip")]),
        (events, [STREAM, length]),
        ([MESSAGE[:20].encode()], [JSON, length]),
        ([MESSAGE[:20].encode()], [JSON]),
    ]
    count = 0
    for steps, headers in answers:
        for cut in (Abort(), Close()):
            gate = Gate()
            framing: Literal["length", "chunked"] = "length" if length in headers else "chunked"
            setting.upstream.answer(Answer(headers=headers, body=[*steps, Pause(gate), cut], framing=framing))
            with Client(setting.proxy, ANTHROPIC, http2=http2) as client:
                reading = Reading(client, MESSAGES)
                reading.read(sum(map(len, steps)))
                gate.open()
                assert not reading.ends_properly()
            assert reading.body == b"".join(steps)
            count += 1
            assert outcome(wait_for_ended(setting.proxy, count)[-1]) == ("failed", "upstream_disconnected", 200)
    rows = setting.proxy.rows("aibridge_token_usages")
    assert [row["completeness"] for row in rows] == ["partial"] * 6


@every_way
def test_a_stream_that_ends_too_early_keeps_its_bytes(setting: Setting, http2: bool) -> None:
    for dialect in DIALECTS:
        setting.upstream.answer(Answer.event_stream(*dialect.events), Answer.event_stream(dialect.case.body[:-9]))
        for body in (dialect.case.body, dialect.case.body[:-9]):
            with Client(setting.proxy, dialect.host, http2=http2) as client:
                reading = Reading(client, dialect)
                assert reading.ends_properly()
            assert reading.body == body
    rows = wait_for_ended(setting.proxy, 6)
    assert [outcome(row) for row in rows] == [("failed", "incomplete_stream", 200)] * 6


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
def test_an_upstream_that_dies_before_its_answer_is_502(setting: Setting) -> None:
    count = 0
    for http2 in (False, True):
        for before in ([Abort()], [Close()]):
            setting.upstream.answer(Answer(before=before), Answer.json({"id": "msg_1"}))
            with Client(setting.proxy, ANTHROPIC, http2=http2) as client:
                died = client.post("/v1/messages", MESSAGES.case.request)
                assert (died.status, died.content_type) == (502, "application/json")
                assert json.loads(died.body)["type"] == "error"
                assert client.post("/v1/messages", MESSAGES.case.request).status == 200, "the connection is usable"
            count += 2
            failed, completed = wait_for_ended(setting.proxy, count)[-2:]
            assert outcome(failed) == ("failed", "upstream_unreachable", None)
            assert outcome(completed)[0] == "completed"


# --- an upstream that makes no sense


def raw(head: bytes) -> RawAnswer:
    return RawAnswer([b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n"])


NONSENSE: dict[str, tuple[Alpn, AnyAnswer]] = {
    "two lengths": ("http/1.1", raw(b"content-length: 2\r\ntransfer-encoding: chunked")),
    "different lengths": ("http/1.1", raw(b"content-length: 2\r\ncontent-length: 3")),
    "a length that is none": ("http/1.1", raw(b"content-length: abc")),
    "a header that is none": ("http/1.1", raw(b"no colon")),
    "another protocol": ("http/1.1", RawAnswer([b"220 mail.example.com ESMTP\r\n\r\n"])),
    "garbage": ("http/1.1", RawAnswer([bytes(range(256)) * 10 + b"\r\n\r\n"])),
    "half a head": ("http/1.1", RawAnswer([b"HTTP/1.1 200 OK\r\ncontent-"])),
    "an HTTP/2 header with blanks": ("h2", Answer(headers=[("a b", "c")])),
}


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
def test_an_answer_that_makes_no_sense_is_502(setting: Setting, alpn: Alpn) -> None:
    answers = [answer for spoken, answer in NONSENSE.values() if spoken == alpn]
    for http2 in (False, True):
        for answer in answers:
            setting.upstream.answer(answer)
            with Client(setting.proxy, ANTHROPIC, http2=http2) as client:
                refused = client.post("/v1/messages", MESSAGES.case.request)
            assert (refused.status, refused.content_type) == (502, "application/json")
            error = json.loads(refused.body)
            assert error["type"] == "error" and "ESMTP" not in error["error"]["message"]
    rows = wait_for_ended(setting.proxy, 2 * len(answers))
    assert {row["status"] for row in rows} == {"failed"} and all(row["error_type"] for row in rows)


@pytest.mark.parametrize("alpn", ["h2"])
def test_trailers_do_not_break_an_answer(setting: Setting) -> None:
    trailers = [("x-checksum", "1")]
    for http2 in (False, True):
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            setting.upstream.answer(Answer(headers=[JSON], body=MESSAGE.encode(), trailers=trailers))
            with Client(setting.proxy, ANTHROPIC, http2=http2) as client:
                assert client.post(path, MESSAGES.case.request).body == MESSAGE.encode()
    assert [row["status"] for row in wait_for_ended(setting.proxy, 2)] == ["completed"] * 2


# --- a client that leaves


@every_way
@pytest.mark.parametrize("ruthless", [False, True])
def test_a_client_that_leaves_takes_the_upstream_with_it(setting: Setting, http2: bool, ruthless: bool) -> None:
    for count, dialect in enumerate(DIALECTS, 1):
        gate = Gate()
        setting.upstream.answer(Answer.event_stream(*dialect.events, Pause(gate)))
        with Client(setting.proxy, dialect.host, http2=http2) as client:
            reading = Reading(client, dialect)
            reading.read(len(dialect.case.body))
            if not ruthless:
                client.raw.close()
            elif isinstance(client.raw, RawHttp2):
                client.raw.reset(reading.stream)
            else:
                client.raw.abort()
            setting.upstream.wait_for_disconnects(count)
        row = wait_for_ended(setting.proxy, count)[-1]
        assert outcome(row) == ("failed", "client_disconnected", 200)
    rows = setting.proxy.wait_for_rows("aibridge_token_usages", 2)
    assert [row["completeness"] for row in rows] == ["partial"] * 2


@every_way
def test_a_client_that_leaves_before_the_answer_takes_the_upstream_with_it(setting: Setting, http2: bool) -> None:
    setting.upstream.answer(Answer(before=[Pause(Gate())]))
    with Client(setting.proxy, ANTHROPIC, http2=http2) as client:
        if isinstance(client.raw, RawHttp1):
            client.raw.request("POST", "/v1/messages", body=MESSAGES.case.request)
        else:
            client.raw.request("POST", "/v1/messages", [], MESSAGES.case.request)
        setting.upstream.wait_for_requests(1)
    setting.upstream.wait_for_disconnects(1)
    [row] = wait_for_ended(setting.proxy, 1)
    assert outcome(row) == ("failed", "client_disconnected", None)
