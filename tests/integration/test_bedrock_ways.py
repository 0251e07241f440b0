"""Bedrock behind Messages, at length: every way in, streams as they come, retries, and credentials that are kept.

The scripted upstream frames its streams with AWS's own code, and checks every signature with botocore's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration import stage
from tests.integration.exchanges import ANTHROPIC, Client, Seen, wait_for_ended
from tests.integration.sdks import Sdks, content_of
from tests.support import aws_frames, fixtures
from tests.support.aws_signing import ACCESS_KEY, HINT, REGION, SECRET_KEY, is_validly_signed
from tests.support.client import gateway_client
from tests.support.fixtures import Case
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Abort, Answer, Gate, Pause, Request, ScriptedUpstream

pytestmark = pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")

PREFIX = "/aws/bedrock"
MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
SMALL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
PATHS = {
    False: f"{PREFIX}/model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0/invoke",
    True: f"{PREFIX}/model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0/invoke-with-response-stream",
}
STATIC = f"access_key: {ACCESS_KEY}, secret_key: {SECRET_KEY}"
STREAM = [("content-type", aws_frames.CONTENT_TYPE)]
NO_FILES = {"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}
NO_FILES |= {"AWS_EC2_METADATA_DISABLED": "true"}
NAMES = ("simple", "thinking", "parallel_tools", "cached_tokens")
CASES = [fixtures.case(f"messages/{name}/{mode}") for name in NAMES for mode in ("streaming", "blocking")]
SENT = {"host", "content-type", "content-length", "authorization", "x-amz-date"}
MODES = pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "blocking"])
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
MEMBERS = {"model": "claude-sonnet-4-5", "max_tokens": 900, "messages": [{"role": "user", "content": "Hello?"}]}


@pytest.fixture(autouse=True)
def no_proxy_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Setting:
    def __init__(self, upstream: ScriptedUpstream, proxy: RunningProxy) -> None:
        self.upstream = upstream
        self.proxy = proxy

    def ask(self, headers: list[tuple[str, str]] | None = None, *, http2: bool = False, **members: Any) -> Seen:
        with Client(self.proxy, ANTHROPIC, http2=http2) as client:
            return client.post("/v1/messages", json.dumps(MEMBERS | members).encode(), headers or [])

    @property
    def sent(self) -> Request:
        return self.upstream.requests[-1]


Start = Callable[..., Setting]


@pytest.fixture
def start(start_proxy: StartProxy, make_upstream: MakeUpstream) -> Start:
    def start(
        credentials: str = STATIC,
        *,
        alpn: str = HTTP1,
        also: str = "",
        env: dict[str, str] | None = None,
    ) -> Setting:
        upstream = make_upstream(alpn=[alpn])
        block = f"region: {REGION}, model: '{MODEL}', small_fast_model: '{SMALL}', base_url: '{upstream.url}{PREFIX}'"
        block += f", {credentials}" if credentials else ""
        provider = f"{{name: anthropic, type: anthropic, bedrock: {{{block}}}{also}}}"
        return Setting(upstream, start_proxy(config=f"providers:\n  - {provider}\n", env=NO_FILES | (env or {})))

    return start


def as_bedrock(case: Case) -> Answer:
    """A Messages fixture's answer, as Bedrock sends it."""
    if case.is_event_stream:
        return Answer(200, STREAM, list(aws_frames.invoke_frames(case.body)))
    return Answer(200, [("content-type", "application/json")], case.body, "length")


@pytest.mark.parametrize("way", ["proxy", "proxy over HTTP/2", "gateway"])
@pytest.mark.parametrize("alpn", [HTTP1, HTTP2])
def test_the_sdk_sees_what_anthropic_would_have_answered(start: Start, way: str, alpn: str) -> None:
    setting = start(alpn=alpn)
    sdks = Sdks(setting.proxy, way)
    for case in CASES:
        setting.upstream.answer(as_bedrock(case))
        answer = content_of("messages", sdks.ask(case))
        assert answer["text"] or answer["calls"]
        assert answer == content_of("messages", _expected(case)), case
        request, row = setting.sent, stage.interceptions(setting.proxy)[-1]
        asked = json.loads(case.request)
        assert (request.method, request.target) == ("POST", PATHS[case.streaming])
        assert is_validly_signed(request)
        assert {name.decode().lower() for name, _ in request.headers} - {":authority"} <= SENT
        assert request.json()["messages"] == asked["messages"]
        assert request.json()["anthropic_version"] == "bedrock-2023-05-31"
        assert not {"model", "stream", "metadata"} & request.json().keys()
        assert row["tokens"] == case.expected["tokens"] and row["tools"] == case.expected.get("tools", [])
        assert (row["provider"], row["provider_name"], row["route"]) == ("anthropic", "anthropic", "/v1/messages")
        assert (row["credential_kind"], row["credential_hint"]) == ("centralized", HINT)
        assert (row["status"], row["streaming"]) == ("completed", case.streaming)
    sdks.close()


def _expected(case: Case) -> dict[str, Any]:
    """What the SDK reads from Anthropic itself."""
    blocking = fixtures.case(str(case).replace("streaming", "blocking"))
    answer: dict[str, Any] = json.loads(blocking.body)
    if not case.is_event_stream:
        return answer
    return _read_by_sdk(case.body)


def _read_by_sdk(stream: bytes) -> dict[str, Any]:
    answer = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    http_client = httpx2.Client(transport=httpx2.MockTransport(lambda _: answer))
    client = anthropic.Anthropic(api_key="k", http_client=http_client, max_retries=0)
    with client.messages.stream(model="m", max_tokens=1, messages=[]) as read:
        return read.get_final_message().to_dict()


@VERSIONS
def test_an_event_reaches_the_client_before_the_next_one_leaves(start: Start, http2: bool) -> None:
    setting = start(alpn=HTTP2 if http2 else HTTP1)
    case = fixtures.case("messages/simple/streaming")
    first, *rest = aws_frames.invoke_frames(case.body)
    gate = Gate()
    setting.upstream.answer(Answer(200, STREAM, [first[:50], first[50:], Pause(gate), *rest]))
    request = {"model": "m", "max_tokens": 9, "messages": [], "stream": True}
    with gateway_client(setting.proxy) as client, client.stream("POST", "/anthropic/v1/messages", json=request) as seen:
        assert seen.headers["content-type"].startswith("text/event-stream")
        lines = seen.iter_lines()
        assert next(lines) == "event: message_start"
        gate.open()
        assert "event: message_stop" in list(lines)


@VERSIONS
@pytest.mark.parametrize("torn", [False, True], ids=["between two messages", "within one"])
def test_a_stream_that_dies_ends_with_an_error_event(start: Start, torn: bool, http2: bool) -> None:
    setting = start(alpn=HTTP2 if http2 else HTTP1)
    first, second, *_ = aws_frames.invoke_frames(fixtures.case("messages/simple/streaming").body)
    gate = Gate()
    setting.upstream.answer(Answer(200, STREAM, [first, second[:20] if torn else b"", Pause(gate), Abort()]))
    request = MEMBERS | {"stream": True}
    with gateway_client(setting.proxy) as client, client.stream("POST", "/anthropic/v1/messages", json=request) as seen:
        lines = seen.iter_lines()
        assert next(lines) == "event: message_start"
        gate.open()
        assert "event: error" in list(lines)
    [row] = wait_for_ended(setting.proxy, 1)
    assert (row["status"], row["error_type"]) == ("failed", "upstream_disconnected")


@MODES
def test_a_retry_is_signed_anew_and_sends_the_same(start: Start, streaming: bool) -> None:
    setting = start(also=", max_retries: 1")
    case = fixtures.case(f"messages/simple/{'streaming' if streaming else 'blocking'}")
    busy = Answer(503, [("content-type", "application/json"), ("retry-after", "0")], b'{"message":"busy"}', "length")
    setting.upstream.answer(busy, as_bedrock(case))
    assert setting.ask(stream=streaming).status == 200
    first, second = setting.upstream.requests
    assert is_validly_signed(first) and is_validly_signed(second)
    assert (first.target, first.body) == (second.target, second.body)
    [row] = wait_for_ended(setting.proxy, 1)
    assert row["status"] == "completed"


def test_a_credential_process_is_asked_once_and_not_for_each_request(start: Start, tmp_path: Path) -> None:
    """botocore keeps what it has found until that is about to expire."""
    asked = tmp_path / "asked"
    keys = {
        "Version": 1,
        "AccessKeyId": ACCESS_KEY,
        "SecretAccessKey": SECRET_KEY,
        "Expiration": "2099-01-01T00:00:00Z",
    }
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    process = tmp_path / "process.sh"
    process.write_text(f"#!/bin/sh\necho asked >> {asked}\ncat {tmp_path / 'keys.json'}\n")
    process.chmod(0o700)
    (tmp_path / "config").write_text(f"[profile some]\ncredential_process = {process}\n")
    setting = start("", env={"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_PROFILE": "some"})
    setting.upstream.answer(*[Answer.json({})] * 3)
    for _ in range(3):
        setting.ask()
        assert is_validly_signed(setting.sent)
    assert asked.read_text() == "asked\n"
