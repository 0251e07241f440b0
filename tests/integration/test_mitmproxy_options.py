"""mitmproxy's options and other addons do with the bridge what they do without it: the rows of the documented table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from mitmproxy import http, io
from websockets.exceptions import InvalidStatus

from tests.conftest import StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.sockets import CODEX, Provider, config, read, served, text, through
from tests.integration.stage import interceptions
from tests.integration.turns import CONNECTED, JSON_BODY, MODES, Turns, call, configuration
from tests.integration.turns import text as says
from tests.support import fixtures, frames
from tests.support.client import RawHttp1, gateway_client
from tests.support.mcp_servers import HttpMcp
from tests.support.polling import poll_until
from tests.support.running import ADDON, RunningProxy
from tests.support.script import Gate, Pause
from tests.support.upstream import Answer, ScriptedUpstream

BLOCKING = fixtures.case("messages/simple/blocking")
STREAMING = fixtures.case("messages/simple/streaming")
COUNT = "/v1/messages/count_tokens"
HTTP = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
CENTRAL = "sk-ant-central-0123456789abcdefghij"


def provider_config(upstream: ScriptedUpstream, more: str = "", config: str = "") -> str:
    return f"{config}\nproviders: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'{more}}}]\n"


def answer(case: fixtures.Case) -> Answer:
    if case is STREAMING:
        return Answer.event_stream(case.body)
    return Answer(200, [("content-type", "application/json")], case.body, framing="length")


def script(folder: Path, source: str) -> str:
    path = folder / "other.py"
    path.write_text(source)
    return str(path)


# --- bodies of passthroughs -----------------------------------------------------------------------------------------


@HTTP
@pytest.mark.parametrize("declared", [True, False], ids=["length", "no length"])
def test_addons_of_mitmproxy_see_the_bodies_of_passthroughs(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, http2: bool, declared: bool
) -> None:
    local = tmp_path / "local.json"
    local.write_text('{"from": "the file"}')
    proxy = start_proxy(
        config=provider_config(upstream),
        options=[
            "modify_body=/~q & ~u count/secret/hidden-word",
            "block_list=|~u complete|418",
            f"map_local=|/v1/files|{local}",
        ],
    )
    upstream.answer(Answer.json({"input_tokens": 1}))
    body = b'{"text":"a secret"}'
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        assert client.post(COUNT, body).status == 200 if declared else post_undeclared(client, body) == 200
        assert client.post("/v1/complete", body).status == 418
        assert client.post("/v1/files", body).body == b'{"from": "the file"}'
    [request] = upstream.requests
    assert request.body == b'{"text":"a hidden-word"}'


def post_undeclared(client: Client, body: bytes) -> int:
    """Send a body whose length is not declared. Returns the status."""
    raw = client.raw
    if isinstance(raw, RawHttp1):
        raw.request("POST", COUNT, [("transfer-encoding", "chunked")])
        raw.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        status = raw.read_head().status
        raw.read_body()
        return status
    stream = raw.request("POST", COUNT, [], body)
    status, _ = raw.read_head(stream)
    raw.read_body(stream)
    return status


@HTTP
def test_addons_of_mitmproxy_see_the_answers_of_passthroughs(
    start_proxy: StartProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    proxy = start_proxy(config=provider_config(upstream), options=["modify_body=/~s & ~u count/secret/hidden-word"])
    upstream.answer(Answer.json({"text": "a secret"}))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        assert json.loads(client.post(COUNT, b"{}").body) == {"text": "a hidden-word"}


@HTTP
@pytest.mark.parametrize(("framing", "size"), [("length", 1025), ("chunked", 10)])
def test_larger_answers_and_those_without_a_length_are_streamed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, http2: bool, framing: Literal["length", "chunked"], size: int
) -> None:
    proxy = start_proxy(config=provider_config(upstream, config="limits: {passthrough_body: 1KiB}"))
    gate, body = Gate(), b"x" * size
    upstream.answer(Answer(200, [], [body[:5], Pause(gate), body[5:]], framing=framing))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        raw = client.raw
        if isinstance(raw, RawHttp1):
            raw.request("POST", COUNT, [], b"{}")
            raw.read_head()
            gate.open()
            assert raw.read_body() == body
        else:
            stream = raw.request("POST", COUNT, [(b"content-length", b"2")], b"{}")
            raw.read_head(stream)  # while the rest is held back
            gate.open()
            assert raw.read_body(stream) == body


HOOK = """
def request(flow):
    if "count" in flow.request.path:
        content = flow.request.raw_content
        flow.request.headers["x-seen"] = "nothing" if content is None else str(len(content))
"""


@HTTP
@pytest.mark.parametrize(
    ("size", "options", "seen"),
    [
        (1024, [], "1024"),
        (1025, [], None),
        (600_000, [], None),
        (500, ["stream_large_bodies=100"], None),
        (500, ["stream_large_bodies=1m"], "500"),
    ],
)
def test_a_larger_body_is_streamed(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    tmp_path: Path,
    http2: bool,
    size: int,
    options: Sequence[str],
    seen: str | None,
) -> None:
    proxy = start_proxy(
        config=provider_config(upstream, config="limits: {passthrough_body: 1KiB}"),
        options=options,
        arguments=["-s", script(tmp_path, HOOK)],
    )
    upstream.answer(Answer.json({"input_tokens": 1}))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        assert client.post(COUNT, b"x" * size).status == 200
    [request] = upstream.requests
    assert request.body == b"x" * size
    assert request.header("x-seen") == seen


def test_an_upgrade_to_h2c_does_not_go_upstream(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=provider_config(upstream))
    upstream.answer(Answer.json({"input_tokens": 1}))
    headers = [("upgrade", "h2c"), ("connection", "Upgrade, HTTP2-Settings"), ("http2-settings", "AAMAAABk")]
    with Client(proxy, ANTHROPIC) as client:
        assert client.post(COUNT, b"{}", headers).status == 200
    [request] = upstream.requests
    assert request.header("upgrade") is None and request.header("http2-settings") is None


# --- the table ------------------------------------------------------------------------------------------------------

HARMLESS = (
    "stream_large_bodies=10",
    "body_size_limit=1m",
    "store_streamed_bodies=true",
    "connection_strategy=eager",
    "validate_inbound_headers=false",
    "websocket=false",
    "rawtcp=false",
    "anticache=true",
    "stickyauth=.*",
    "stickycookie=.*",
)


@pytest.mark.parametrize("option", HARMLESS)
def test_a_bridged_exchange_is_the_same_with_the_option(
    start_proxy: StartProxy, upstream: ScriptedUpstream, option: str
) -> None:
    proxy = start_proxy(config=provider_config(upstream), options=[option])
    for http2 in (False, True):
        for case in (STREAMING, BLOCKING):
            upstream.answer(answer(case))
            with Client(proxy, ANTHROPIC, http2=http2) as client:
                seen = client.post("/v1/messages", case.request, JSON_BODY)
            assert (seen.status, seen.body) == (200, case.body)
    assert [row["status"] for row in wait_for_ended(proxy, 4)] == ["completed"] * 4
    for row in interceptions(proxy):
        assert row["tokens"] == STREAMING.expected["tokens"] or row["tokens"] == BLOCKING.expected["tokens"]
        assert row["prompt"] == STREAMING.expected["prompt"]


def test_a_bridged_exchange_is_the_same_without_http2(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=provider_config(upstream), options=["http2=false"])
    upstream.answer(answer(STREAMING))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages", STREAMING.request, JSON_BODY).body == STREAMING.body
    assert upstream.requests[0].http_version == "1.1"
    [row] = wait_for_ended(proxy, 1)
    assert row["status"] == "completed"


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("modify_body=/a/b", "modify_body does not change streamed answers"),
        ("websocket=false", "refused with 426"),
        ("client_replay=FLOWS", "requests that need a central credential are refused"),
    ],
)
def test_the_start_says_what_an_option_conflicts_with(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, option: str, line: str
) -> None:
    (tmp_path / "flows").touch()
    proxy = start_proxy(
        config=provider_config(upstream, f", api_key: {CENTRAL}"),
        options=[option.replace("FLOWS", str(tmp_path / "flows"))],
    )
    assert line in proxy.log


EAGER = """
from mitmproxy import ctx

def running():
    ctx.options.update(connection_strategy="eager")
"""


def test_eager_connections_may_be_set_later(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """The bridge sets `lazy` at its start. A CONNECT to a provider whose own host cannot be reached is refused then."""
    config = f"providers: [{{name: anthropic, type: anthropic, hosts: [localhost], base_url: '{upstream.url}'}}]"
    proxy = start_proxy(config=config, arguments=["-s", script(tmp_path, EAGER)])
    upstream.answer(answer(STREAMING))
    with RawHttp1.through_proxy(proxy, "localhost", upstream.port) as client:
        client.request("POST", "/v1/messages", JSON_BODY, STREAMING.request)
        assert client.read_head().status == 200
        assert client.read_body() == STREAMING.body
    wait_for_ended(proxy, 1)
    assert "connection_strategy=eager" in proxy.log


@MODES
@pytest.mark.parametrize("option", ["stream_large_bodies=10", "store_streamed_bodies=true"])
def test_injected_tools_stay_hidden_with_the_option(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, option: str, streaming: bool
) -> None:
    servers = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, servers), options=[option])
    proxy.wait_for_log(CONNECTED)
    turns = Turns("messages", [says("Let me see. "), call("echo", text="hi")], [says("All done.")])
    upstream.answer(*turns.answers(streaming=streaming))
    with Client(proxy, turns.host) as client:
        seen = client.post(turns.path, turns.request(streaming=streaming), JSON_BODY)
    assert b"All done." in seen.body and b"bmcp_" not in seen.body
    assert len(upstream.requests) == 2


@HTTP
def test_a_body_above_the_limit_of_mitmproxy_is_refused_in_the_providers_shape(
    start_proxy: StartProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    proxy = start_proxy(config=provider_config(upstream), options=["body_size_limit=1k"])
    large = {"type": "message", "content": [{"type": "text", "text": "x" * 2000}]}
    for path in ("/v1/messages", COUNT):
        with Client(proxy, ANTHROPIC, http2=http2) as client:
            refused = client.post(path, json.dumps({"model": "m", "messages": [], "x": "x" * 2000}).encode(), JSON_BODY)
        assert refused.status == 413
        assert json.loads(refused.body)["error"]["type"] == "request_too_large"
    assert not upstream.requests
    for path in ("/v1/messages", COUNT):
        upstream.answer(
            Answer(200, [("content-type", "application/json")], json.dumps(large).encode(), framing="length")
        )
        with Client(proxy, ANTHROPIC, http2=http2) as client:
            refused = client.post(path, BLOCKING.request, JSON_BODY)
        assert refused.status == 502 and json.loads(refused.body)["error"]["type"] == "api_error"
    [row] = wait_for_ended(proxy, 1)
    assert (row["status"], row["error_type"]) == ("failed", "answer_too_large")


def saved(proxy: RunningProxy, path: Path) -> list[http.HTTPFlow]:
    """What `-w` has written, once the proxy has ended."""
    proxy.close()  # type: ignore[attr-defined]
    with path.open("rb") as file:
        return [flow for flow in io.FlowReader(file).stream() if isinstance(flow, http.HTTPFlow)]


@MODES
def test_streamed_bodies_are_stored(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, streaming: bool
) -> None:
    file, case = tmp_path / "flows", STREAMING if streaming else BLOCKING
    proxy = start_proxy(
        config=provider_config(upstream), options=["store_streamed_bodies=true"], arguments=["-w", str(file)]
    )
    for http2 in (False, True):
        upstream.answer(answer(case))
        with Client(proxy, ANTHROPIC, http2=http2) as client:
            assert client.post("/v1/messages", case.request, JSON_BODY).body == case.body
    wait_for_ended(proxy, 2)
    for flow in saved(proxy, file):
        assert flow.request.raw_content == case.request
        assert flow.response is not None and flow.response.raw_content == case.body


@pytest.fixture
def sockets() -> Iterator[Provider]:
    found = Provider()
    with served(found.serve) as found.port:
        yield found


@pytest.mark.parametrize("options", [["websocket=false"], ["websocket=false", "rawtcp=false"]])
def test_without_websockets_the_clients_use_http(
    start_proxy: StartProxy, sockets: Provider, options: Sequence[str]
) -> None:
    proxy = start_proxy(config=config(sockets.port), options=options)
    with pytest.raises(InvalidStatus) as refused, through(proxy):
        pass
    assert refused.value.response.status_code == 426
    assert not sockets.upgrades


def test_a_recorded_websocket_is_saved(start_proxy: StartProxy, sockets: Provider, tmp_path: Path) -> None:
    file = tmp_path / "flows"
    proxy = start_proxy(config=config(sockets.port), arguments=["-w", str(file)])
    events = text(*frames.events(CODEX))
    sockets.answer(*events)
    with through(proxy) as client:
        client.send(frames.create(CODEX).decode())
        read(client, len(events))
    wait_for_ended(proxy, 1)
    poll_until(lambda: file.stat().st_size or None, 10, what="the saved flow")
    [flow] = saved(proxy, file)
    assert flow.websocket is not None


def test_a_binary_message_is_read_as_a_text_is(start_proxy: StartProxy, sockets: Provider) -> None:
    proxy = start_proxy(config=config(sockets.port))
    events = text(*frames.events(CODEX))
    sockets.answer(*events)
    with through(proxy) as client:
        client.send(frames.create(CODEX))
        read(client, len(events))
    [row] = wait_for_ended(proxy, 1)
    assert row["status"] == "completed"


# --- another addon's `stream` ---------------------------------------------------------------------------------------

LOUD = """
def loud(data):
    return [data[:3].upper(), data[3:].upper()] if data[3:] else data.upper() or b"<end>"

def responseheaders(flow):
    if flow.request.headers.get("x-loud") == "answer":
        flow.response.headers.pop("content-length", None)
        flow.response.stream = loud

def requestheaders(flow):
    if flow.request.headers.get("x-loud") == "request":
        flow.request.stream = lambda data: data.replace(b"prompt-a", b"prompt-b")
"""


@pytest.mark.parametrize("first", [True, False], ids=["before the bridge", "after the bridge"])
def test_what_another_addon_streams_is_what_the_client_gets(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, first: bool
) -> None:
    other = script(tmp_path, LOUD)
    ours: dict[str, Any] = (
        {"script": Path(other), "arguments": ["-s", str(ADDON)]} if first else {"arguments": ["-s", other]}
    )
    proxy = start_proxy(config=provider_config(upstream), **ours)
    for http2 in (False, True):
        for case in (STREAMING, BLOCKING):
            for path in ("/v1/messages", COUNT):
                upstream.answer(answer(case))
                with Client(proxy, ANTHROPIC, http2=http2) as client:
                    seen = client.post(path, case.request, [*JSON_BODY, ("x-loud", "answer")])
                assert seen.body == case.body.upper() + b"<end>"
    for row in wait_for_ended(proxy, 4):
        assert row["status"] == "completed"
    for row in interceptions(proxy):
        assert row["tokens"] in (STREAMING.expected["tokens"], BLOCKING.expected["tokens"])


@pytest.mark.parametrize("first", [True, False], ids=["before the bridge", "after the bridge"])
def test_what_another_addon_does_with_the_pieces_of_a_request_goes_upstream(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, first: bool
) -> None:
    other = script(tmp_path, LOUD)
    ours: dict[str, Any] = (
        {"script": Path(other), "arguments": ["-s", str(ADDON)]} if first else {"arguments": ["-s", other]}
    )
    proxy = start_proxy(config=provider_config(upstream), **ours)
    body = BLOCKING.request.replace(STREAMING.expected["prompt"].encode(), b"prompt-a")
    for path in ("/v1/messages", COUNT):
        upstream.answer(answer(BLOCKING))
        with Client(proxy, ANTHROPIC) as client:
            assert client.post(path, body, [*JSON_BODY, ("x-loud", "request")]).status == 200
        assert upstream.requests[-1].body == body.replace(b"prompt-a", b"prompt-b")
    wait_for_ended(proxy, 1)
    assert interceptions(proxy)[0]["prompt"] == "prompt-b"


# --- client replay --------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("way", ["proxy", "gateway"])
def test_a_replayed_request_is_an_interception(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, way: str, streaming: bool
) -> None:
    file, case = tmp_path / "flows", STREAMING if streaming else BLOCKING
    first = start_proxy(config=provider_config(upstream), arguments=["-w", str(file)])
    counted = Answer.json({"input_tokens": 1})
    upstream.answer(answer(case), counted, answer(case), counted)
    for path in ("/v1/messages", COUNT):
        headers = [*JSON_BODY, ("x-api-key", "sk-ant-own-0123456789abcdef")]
        if way == "proxy":
            with Client(first, ANTHROPIC) as client:
                client.post(path, case.request, headers)
        else:
            with gateway_client(first) as gateway:
                gateway.post("/anthropic" + path, content=case.request, headers=dict(headers))
    wait_for_ended(first, 1)
    first.close()
    before = list(upstream.requests)
    second = start_proxy(config=provider_config(upstream), options=[f"client_replay={file}"])
    poll_until(lambda: len(upstream.requests) == 2 * len(before) or None, 20, what="the replay")
    [row] = wait_for_ended(second, 1)
    assert row["status"] == "completed"
    [row] = interceptions(second)
    assert (row["tokens"], row["prompt"]) == (case.expected["tokens"], case.expected["prompt"])
    again = upstream.requests[len(before) :]
    assert [request.body for request in again] == [request.body for request in before]
    assert {request.header("x-api-key") for request in again} == {"sk-ant-own-0123456789abcdef"}


def test_a_request_with_a_central_key_is_not_replayed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    file = tmp_path / "flows"
    config = provider_config(upstream, f", api_key: {CENTRAL}")
    first = start_proxy(config=config, arguments=["-w", str(file)])
    upstream.answer(answer(STREAMING))
    with gateway_client(first) as gateway:
        gateway.post("/anthropic/v1/messages", content=STREAMING.request)
    wait_for_ended(first, 1)
    first.close()
    assert CENTRAL.encode() not in file.read_bytes()
    again = tmp_path / "again"
    second = start_proxy(config=config, options=[f"client_replay={file}"], arguments=["-w", str(again)])
    poll_until(lambda: (again.exists() and again.stat().st_size) or None, 20, what="the replayed flow")
    [flow] = saved(second, again)
    assert flow.response is not None and flow.response.status_code == 403
    assert len(upstream.requests) == 1 and upstream.requests[0].header("x-api-key") == CENTRAL
