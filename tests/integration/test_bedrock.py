"""Bedrock through a real mitmdump, with raw clients: when rows stand, what goes wrong, and what is left alone."""

from __future__ import annotations

import json

import pytest
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client, wait_for_ended
from tests.integration.stage import interceptions
from tests.integration.test_database_failures import LONG
from tests.integration.turns import CONNECTED
from tests.support import aws_frames, fixtures
from tests.support.aws_signing import HINT, signed_headers
from tests.support.client import RawHttp1
from tests.support.client_h2 import StreamResetError
from tests.support.database import locked
from tests.support.fixtures import BEDROCK_MODEL, Case
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Abort, Answer, Close, Gate, Pause, ScriptedUpstream, unused_port

RUNTIME = "bedrock-runtime.us-east-1.amazonaws.com"
MANTLE = "bedrock-mantle.us-east-1.api.aws"
STREAM = [("content-type", aws_frames.CONTENT_TYPE)]
SIMPLE = [fixtures.case("invoke/simple/streaming"), fixtures.case("converse/simple/streaming")]
BY_SIMPLE = pytest.mark.parametrize("case", SIMPLE, ids=str)
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
PATHS = {
    "invoke": f"/model/{BEDROCK_MODEL}/invoke-with-response-stream",
    "converse": f"/model/{BEDROCK_MODEL}/converse-stream",
}


class Setting:
    def __init__(self, upstream: ScriptedUpstream, proxy: RunningProxy) -> None:
        self.upstream = upstream
        self.proxy = proxy


@pytest.fixture
def setting(start_proxy: StartProxy, make_upstream: MakeUpstream, http2: bool) -> Setting:
    upstream = make_upstream(alpn=[HTTP2 if http2 else HTTP1])
    return Setting(upstream, start_proxy(config=config(upstream.url)))


def config(upstream_url: str, more: str = "") -> str:
    hosts = "['bedrock-runtime.*.amazonaws.com', 'bedrock-mantle.*.api.aws']"
    return f"{more}\nproviders:\n  - {{name: bedrock, type: bedrock, hosts: {hosts}, base_url: '{upstream_url}'}}\n"


class Reading:
    """A stream that is read piece by piece, until it ends or breaks."""

    def __init__(self, client: Client, case: Case) -> None:
        raw, path = client.raw, PATHS[case.dialect]
        if isinstance(raw, RawHttp1):
            raw.request("POST", path, body=case.request)
            assert raw.read_head().status == 200
            self._piece = raw.read_body_chunk
        else:
            stream = raw.request("POST", path, [], case.request)
            assert raw.read_head(stream)[0] == 200
            self._piece = lambda: raw.read_data(stream)
        self.body = b""

    def read(self, size: int) -> None:
        while len(self.body) < size:
            piece = self._piece()
            assert piece, "the answer has ended"
            self.body += piece

    def ends_properly(self) -> bool:
        try:
            while piece := self._piece():
                self.body += piece
        except (EOFError, ConnectionError, StreamResetError):
            return False
        return True


def outcome(setting: Setting, count: int = 1) -> tuple[str, str | None]:
    row = wait_for_ended(setting.proxy, count)[-1]
    return row["status"], row["error_type"]


# --- the end of an answer


@VERSIONS
@BY_SIMPLE
def test_the_rows_stand_when_the_client_sees_the_end_though_the_answer_goes_on(
    setting: Setting, case: Case, http2: bool
) -> None:
    gate = Gate()
    setting.upstream.answer(Answer(200, STREAM, [*aws_frames.split(case.body), Pause(gate)]))
    with Client(setting.proxy, RUNTIME, http2=http2) as client:
        reading = Reading(client, case)
        reading.read(len(case.body))
        [row] = interceptions(setting.proxy)
        gate.open()
        assert reading.ends_properly()
    assert reading.body == case.body
    assert (row["status"], row["tokens"]) == ("completed", case.expected["tokens"])


@VERSIONS
@BY_SIMPLE
def test_a_client_that_leaves_right_after_the_end_has_had_a_whole_answer(
    setting: Setting, case: Case, http2: bool
) -> None:
    gate = Gate()
    setting.upstream.answer(Answer(200, STREAM, [case.body, Pause(gate)]))
    with Client(setting.proxy, RUNTIME, http2=http2) as client:
        Reading(client, case).read(len(case.body))
    assert outcome(setting) == ("completed", None)


@VERSIONS
@BY_SIMPLE
def test_the_first_message_arrives_before_the_second_leaves(setting: Setting, case: Case, http2: bool) -> None:
    first, *rest = aws_frames.split(case.body)
    gate = Gate()
    setting.upstream.answer(Answer(200, STREAM, [first, Pause(gate), *rest]))
    with Client(setting.proxy, RUNTIME, http2=http2) as client:
        reading = Reading(client, case)
        reading.read(len(first))
        assert reading.body == first
        gate.open()
        assert reading.ends_properly()
    assert reading.body == case.body


# --- what goes wrong


@VERSIONS
@BY_SIMPLE
def test_a_wrong_checksum_passes_as_it_came_and_the_interception_has_failed(
    setting: Setting, case: Case, http2: bool
) -> None:
    first, second, *rest = aws_frames.split(case.body)
    pieces = [first, second[:-1] + bytes([second[-1] ^ 1]), *rest]
    setting.upstream.answer(Answer(200, STREAM, pieces))
    with Client(setting.proxy, RUNTIME, http2=http2) as client:
        seen = client.post(PATHS[case.dialect], case.request)
    assert seen.body == b"".join(pieces)
    buffer = EventStreamBuffer()
    buffer.add_data(seen.body)
    with pytest.raises(ChecksumMismatch):
        list(buffer)
    [row] = interceptions(setting.proxy)
    assert (row["status"], row["error_type"]) == ("failed", "corrupt_event_stream")
    assert row["prompt"] == case.expected["prompt"]
    assert [tokens["completeness"] for tokens in row["tokens"]] == ["partial"]


@VERSIONS
@BY_SIMPLE
@pytest.mark.parametrize("cut", [Abort(), Close()], ids=["reset", "closed"])
def test_a_cut_between_two_messages_is_told_as_an_exception_and_one_within_a_message_is_passed_on(
    setting: Setting, case: Case, cut: Abort | Close, http2: bool
) -> None:
    first, second, *_ = aws_frames.split(case.body)
    for count, begun in enumerate((first, first + second[:9]), 1):
        gate = Gate()
        setting.upstream.answer(Answer(200, STREAM, [begun, Pause(gate), cut]))
        with Client(setting.proxy, RUNTIME, http2=http2) as client:
            reading = Reading(client, case)
            reading.read(len(begun))
            gate.open()
            between = begun == first
            assert reading.ends_properly() is between
        assert reading.body.startswith(begun)
        [*exception] = map(aws_frames.read, aws_frames.split(reading.body[len(begun) :]))
        assert [message.is_exception for message in exception] == [True] * between
        assert outcome(setting, count) == ("failed", "upstream_disconnected")


@VERSIONS
@BY_SIMPLE
def test_a_stream_that_ends_too_early_keeps_its_bytes(setting: Setting, case: Case, http2: bool) -> None:
    *most, last = aws_frames.split(case.body)
    bodies = [b"".join(most[:-1]), b"".join(most[:-1]) + last[:20]]
    for count, body in enumerate(bodies, 1):
        setting.upstream.answer(Answer(200, STREAM, body))
        with Client(setting.proxy, RUNTIME, http2=http2) as client:
            assert client.post(PATHS[case.dialect], case.request).body == body
        assert outcome(setting, count) == ("failed", "incomplete_stream")


def test_an_upstream_that_cannot_be_reached_is_an_error_in_awss_shape(start_proxy: StartProxy) -> None:
    proxy = start_proxy(config=config(f"https://localhost:{unused_port()}"))
    with Client(proxy, RUNTIME) as client:
        for path in (*PATHS.values(), f"/model/{BEDROCK_MODEL}/count-tokens"):
            refused = client.post(path, b"{}")
            assert refused.status == 502
            assert refused.headers["x-amzn-errortype"] == "InternalServerException"
            assert json.loads(refused.body).keys() == {"message"}


def test_the_end_is_kept_back_where_its_rows_cannot_be_written(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(config=config(upstream.url, "recording: {on_failure: closed}"))
    for count, case in enumerate(SIMPLE, 1):
        *begun, last = aws_frames.split(case.body)
        gate = Gate()
        upstream.answer(Answer(200, STREAM, [*begun, Pause(gate), last]))
        with Client(proxy, RUNTIME) as client:
            reading = Reading(client, case)
            reading.read(sum(map(len, begun)))
            with locked(proxy.database):
                gate.open()
                assert reading.ends_properly()
        [*seen, end] = aws_frames.split(reading.body)
        assert seen == begun and aws_frames.read(end).is_exception
        assert [row["status"] for row in wait_for_ended(proxy, count, LONG)] == ["completed"] * count


# --- who asks


PROBE = json.dumps(
    {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 1, "messages": [{"role": "user", "content": "."}]}
)


def test_claude_codes_probes_are_recorded_and_are_no_prompts(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(config=config(upstream.url))
    blocking = fixtures.case("invoke/simple/blocking")
    headers = [("user-agent", "claude-cli/2.1.329 (external, cli)"), ("x-claude-code-session-id", "session-1")]
    models = ("us.anthropic.claude-haiku-4-5-20251001-v1%3A0", BEDROCK_MODEL, "global.anthropic.claude-opus-4-6-v1")
    upstream.answer(*[Answer.json(json.loads(blocking.body))] * 3)
    with Client(proxy, RUNTIME) as client:
        for model in models:
            assert client.post(f"/model/{model}/invoke", PROBE.encode(), headers).status == 200
    rows = interceptions(proxy)
    assert [row["model"] for row in rows] == [model.replace("%3A", ":") for model in models]
    assert {(row["client"], row["client_session_id"], row["prompt"]) for row in rows} == {
        ("Claude Code", "session-1", None)
    }
    assert all(row["tokens"] for row in rows)


def test_opencode_brings_its_tools_to_converse_in_another_member(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """A call of OpenCode's without tools is its own; which member they are in depends on the route."""
    proxy = start_proxy(config=config(upstream.url))
    with_tools, without = fixtures.case("converse/client_tool/streaming"), SIMPLE[1]
    with Client(proxy, RUNTIME) as client:
        for case in (with_tools, without):
            upstream.answer(Answer(200, STREAM, case.body))
            client.post(PATHS["converse"], case.request, [("user-agent", "opencode/1.18.33")])
    assert [row["prompt"] for row in interceptions(proxy)] == [with_tools.expected["prompt"], None]


# --- what is left alone


MESSAGES = fixtures.case("messages/simple/streaming")
RESPONSES = fixtures.case("responses/simple/streaming")
NOT_INJECTED = {
    "invoke, signed": (RUNTIME, PATHS["invoke"], SIMPLE[0], True),
    "converse, signed": (RUNTIME, PATHS["converse"], SIMPLE[1], True),
    "Mantle's Messages, signed": (MANTLE, "/anthropic/v1/messages", MESSAGES, True),
    "Mantle's Responses, signed": (MANTLE, "/openai/v1/responses", RESPONSES, True),
}
INJECTED = {
    "invoke, bearer": (RUNTIME, PATHS["invoke"], SIMPLE[0], False),
    "converse, bearer": (RUNTIME, PATHS["converse"], SIMPLE[1], False),
    "Mantle's Messages, bearer": (MANTLE, "/anthropic/v1/messages", MESSAGES, False),
    "Mantle's Responses, bearer": (MANTLE, "/openai/v1/responses", RESPONSES, False),
}


def test_tools_are_injected_only_where_no_signature_would_break(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp
) -> None:
    mcp = f"mcp: {{servers: {{ours: {{type: http, url: '{ours.url}'}}}}}}"
    proxy = start_proxy(config=config(upstream.url, mcp))
    proxy.wait_for_log(CONNECTED)
    for name, (host, path, case, signed) in (NOT_INJECTED | INJECTED).items():
        headers = [("authorization", "Bearer bedrock-api-key-0123456789"), ("content-type", "application/json")]
        if signed:
            headers = signed_headers(f"https://{host}{path}", case.request)
        headers += [("accept-encoding", "gzip")]
        upstream.answer(Answer(case.status, [("content-type", case.content_type)], case.body))
        with Client(proxy, host) as client:
            seen = client.post(path, case.request, headers)
        request, row = upstream.requests[-1], interceptions(proxy)[-1]
        assert row["tokens"] == case.expected["tokens"], name
        assert row["credential_hint"] == (HINT if signed else "bedr...6789")
        assert (b"bmcp_ours_" in request.body) is (name in INJECTED), name
        noted = proxy.rows("aibridge_interceptions")[-1]["metadata"].get("not_injected")
        assert noted == ("aws_signature" if name in NOT_INJECTED else None), name
        assert seen.body == case.body, name
        if name in NOT_INJECTED:
            assert request.body == case.request and seen.body == case.body, name
            sent = [(key.encode(), value.encode()) for key, value in headers]
            assert [pair for pair in request.headers if pair[0] not in (b"host", b"content-length")] == sent, name


@pytest.mark.parametrize("dialect", ["messages", "responses"])
def test_mantle_is_recorded_like_the_originals_and_the_same_on_both_sides(
    start_proxy: StartProxy, upstream: ScriptedUpstream, dialect: str
) -> None:
    proxy = start_proxy(config=config(upstream.url))
    path = "/anthropic/v1/messages" if dialect == "messages" else "/openai/v1/responses"
    with Client(proxy, MANTLE) as client:
        for name in ("simple", "thinking", "parallel_tools", "cached_tokens", "error_before_429"):
            for mode in ("streaming", "blocking"):
                case = fixtures.case(f"{dialect}/{name}/{mode}")
                upstream.answer(Answer(case.status, [("content-type", case.content_type)], case.body, "length"))
                seen = client.post(path, case.request, signed_headers(f"https://{MANTLE}{path}", case.request))
                assert (seen.status, seen.body) == (case.status, case.body)
                assert upstream.requests[-1].body == case.request
                expected = {"tokens": [], "tools": [], "thoughts": [], **case.expected}
                expected.pop("response_id", None)
                row = interceptions(proxy)[-1]
                assert {member: row[member] for member in expected} == expected
                assert (row["provider"], row["route"]) == ("bedrock", path)
