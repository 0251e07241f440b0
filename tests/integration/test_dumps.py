"""`dump_dir`: what went upstream and what came back, in files, whatever became of it."""

from __future__ import annotations

import json
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import MakeUpstream, RunToExit, StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client, wait_for_ended
from tests.integration.turns import DIALECTS, Asked, Turns, call, configuration, text
from tests.support.client import RawHttp1
from tests.support.codings import encode, encode_stream
from tests.support.fixtures import case
from tests.support.mcp_servers import HttpMcp
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Abort, Answer, Gate, Pause, ScriptedUpstream

KEY = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123"
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
JSON = [("content-type", "application/json")]


@dataclass(frozen=True)
class File:
    folder: str
    name: str
    head: bytes
    body: bytes

    @property
    def key(self) -> str:
        """Turn, attempt and kind: `t1-a1.req`."""
        found = re.fullmatch(r"\d{13}-[0-9a-f-]{36}-(t\d+-a\d+\.\w+)\.txt", self.name)
        assert found, self.name
        return found[1]


def dumps(proxy: RunningProxy) -> list[File]:
    """All that is there now, in the order of their names."""
    folder = proxy.folder / "dumps"
    found = []
    for path in sorted(folder.rglob("*.txt"), key=lambda path: path.name):
        head, _, body = path.read_bytes().partition(b"\r\n\r\n")
        found.append(File(str(path.parent.relative_to(folder)), path.name, head, body))
    return found


def wait_for(proxy: RunningProxy, sign: bytes) -> list[File]:
    """Wait until this is in one of the files."""

    def maybe_there() -> list[File] | None:
        found = dumps(proxy)
        return found if any(sign in file.head + file.body for file in found) else None

    return poll_until(maybe_there, 10, what=f"{sign!r} in a dump")


def by_key(files: list[File]) -> dict[str, File]:
    found = {file.key: file for file in files}
    assert len(found) == len(files)
    return found


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(config=configuration(upstream.url, "", "dump_dir: dumps"))


def ask(proxy: RunningProxy, body: bytes, headers: list[tuple[str, str]] | None = None) -> bytes:
    with Client(proxy, ANTHROPIC) as client:
        return client.post("/v1/messages", body, headers or JSON).body


# --- what is in them ----------------------------------------------------------------------------------------------


@VERSIONS
def test_a_blocking_exchange_is_two_files_without_its_secrets(
    proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    simple = case("messages/simple/blocking")
    answer = json.loads(simple.body)
    upstream.answer(
        Answer.json(answer, headers=[("set-cookie", "session=0123456789abcdefghij"), ("request-id", "req_1")])
    )
    body = json.dumps({"model": "claude-x", "max_tokens": 9, "messages": [{"role": "user", "content": f"a\n{KEY}"}]})
    headers = [*JSON, ("x-api-key", KEY), ("anthropic-version", "2023-06-01")]
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        seen = client.post("/v1/messages?beta=true&key=0123456789", body.encode(), headers)
    assert json.loads(seen.body) == answer
    assert upstream.requests[0].body == body.encode() and upstream.requests[0].header("x-api-key") == KEY
    [interception] = wait_for_ended(proxy, 1)
    files = by_key(wait_for(proxy, b"request-id"))
    assert files.keys() == {"t1-a1.req", "t1-a1.resp"}
    request, response = files["t1-a1.req"], files["t1-a1.resp"]
    assert request.folder == response.folder == "anthropic/claude-x"
    assert interception["id"] in request.name and interception["id"] in response.name
    assert request.head.startswith(b"POST /v1/messages?beta=true&key=01...89 HTTP/")
    assert b"\r\nx-api-key: sk-a...0123\r\n" in request.head and b"anthropic-version: 2023-06-01" in request.head
    assert int(request.head.rpartition(b"content-length: ")[2]) == len(request.body)
    assert json.loads(request.body)["messages"][0]["content"] == "a\n[redacted]"
    assert request.body.startswith(b'{\n  "model": "claude-x",\n')
    assert b" 200" in response.head.partition(b"\r\n")[0] and b"set-cookie: sess...ghij" in response.head
    assert json.loads(response.body) == answer
    everything = request.head + request.body + response.head + response.body
    assert KEY.encode() not in everything


def test_the_files_and_folders_are_the_owners_alone(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    upstream.answer(Answer.json(json.loads(case("messages/simple/blocking").body)))
    ask(proxy, case("messages/simple/blocking").request)
    wait_for_ended(proxy, 1)
    wait_for(proxy, b"msg_")
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in (proxy.folder / "dumps").rglob("*")}
    assert modes == {(True, 0o700), (False, 0o600)}


@pytest.mark.parametrize("model", ["../../../escape", "a/b", "..", "/etc/passwd", "\u0000"])
def test_a_models_name_leads_nowhere_else(proxy: RunningProxy, upstream: ScriptedUpstream, model: str) -> None:
    upstream.answer(Answer.json(json.loads(case("messages/simple/blocking").body)))
    before = {path.name for path in proxy.folder.iterdir()} | {"dumps", "aibridge.db-wal", "aibridge.db-shm"}
    ask(proxy, json.dumps({"model": model, "messages": []}).encode())
    wait_for(proxy, b"msg_")
    assert {path.name for path in proxy.folder.iterdir()} <= before
    assert [len(path.relative_to(proxy.folder / "dumps").parts) for path in proxy.folder.rglob("*.txt")] == [3, 3]


@VERSIONS
@pytest.mark.parametrize("coding", ["identity", "gzip", "zstd"])
def test_a_streams_file_grows_while_the_stream_is_open(
    start_proxy: StartProxy, make_upstream: MakeUpstream, http2: bool, coding: str
) -> None:
    simple, gate = case("messages/simple/streaming"), Gate()
    events = [event + b"\n\n" for event in simple.body.split(b"\n\n") if event]
    coded = encode_stream(events, coding)  # type: ignore[arg-type]
    upstream = make_upstream(alpn=[HTTP2 if http2 else HTTP1])
    encoding = [] if coding == "identity" else [("content-encoding", coding)]
    upstream.answer(Answer.event_stream(*coded[:3], Pause(gate), *coded[3:], headers=encoding))
    proxy = start_proxy(config=configuration(upstream.url, "", "dump_dir: dumps"))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        asked = Asked(client, "/v1/messages", simple.request)
        gate.wait_reached()
        [response] = [file for file in wait_for(proxy, events[2]) if file.key == "t1-a1.resp"]
        assert response.body == b"".join(events[:3])
        gate.open()
        assert asked.status() == 200
        asked.rest()
    wait_for_ended(proxy, 1)
    [response] = [file for file in wait_for(proxy, events[-1]) if file.key == "t1-a1.resp"]
    assert response.body == simple.body


def test_a_coded_request_is_shown_decoded_and_sent_as_it_was(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    simple = case("messages/simple/blocking")
    upstream.answer(Answer.json(json.loads(simple.body)))
    coded = encode(simple.request, "zstd")
    ask(proxy, coded, [*JSON, ("content-encoding", "zstd")])
    assert upstream.requests[0].body == coded
    request = by_key(wait_for(proxy, b"msg_"))["t1-a1.req"]
    assert json.loads(request.body) == json.loads(simple.request)
    assert b"x-aibridge-wire-content-encoding: zstd" in request.head


# --- turns and attempts -------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "blocking"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_turn_is_a_dump_of_its_own(
    start_proxy: StartProxy,
    make_upstream: MakeUpstream,
    ours: HttpMcp,
    dialect: str,
    streaming: bool,
    http2: bool,
) -> None:
    upstream = make_upstream(alpn=[HTTP2 if http2 else HTTP1])
    mcp = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, mcp, "dump_dir: dumps"))
    proxy.wait_for_log(r"MCP server ours: connected, \d+ tools")
    turns = Turns(dialect, [call("echo", text="hi")], [text("Done.")])
    upstream.answer(*turns.answers(streaming=streaming))
    with Client(proxy, turns.host, http2=http2) as client:
        turns.check(client.post(turns.path, turns.request(streaming=streaming)).body, streaming=streaming)
    wait_for_ended(proxy, 1)
    files = by_key(wait_for(proxy, b"Done."))
    assert files.keys() == {"t1-a1.req", "t1-a1.resp", "t2-a1.req", "t2-a1.resp"}
    for number, sent in enumerate(upstream.requests, 1):
        assert json.loads(files[f"t{number}-a1.req"].body) == sent.json()
    for number, written in enumerate(turns.written, 1):
        body = files[f"t{number}-a1.resp"].body
        if streaming:
            assert body.strip() == written.stream.strip()
        else:
            assert json.loads(body) == written.body


@VERSIONS
def test_a_retry_is_an_attempt_of_its_own(start_proxy: StartProxy, make_upstream: MakeUpstream, http2: bool) -> None:
    upstream = make_upstream(alpn=[HTTP2 if http2 else HTTP1])
    proxy = start_proxy(config=configuration(upstream.url, "", "dump_dir: dumps", inject=", max_retries: 2"))
    simple = case("messages/simple/blocking")
    busy = [Answer.json({"busy": n}, 529, headers=[("retry-after-ms", "1")]) for n in (1, 2)]
    upstream.answer(*busy, Answer.json(json.loads(simple.body)))
    assert json.loads(ask(proxy, simple.request)) == json.loads(simple.body)
    files = by_key(wait_for(proxy, b"msg_"))
    assert files.keys() == {f"t1-a{attempt}.{kind}" for attempt in (1, 2, 3) for kind in ("req", "resp")}
    answers = [json.loads(files[f"t1-a{attempt}.resp"].body) for attempt in (1, 2, 3)]
    assert answers == [{"busy": 1}, {"busy": 2}, json.loads(simple.body)]


def test_a_second_attempt_at_a_turn_has_its_number(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    """The provider refuses to be asked for usage, so the client's own request goes again."""
    simple = case("chat_completions/simple/streaming")
    refusal = {"error": {"message": "Unrecognized request argument supplied: stream_options", "code": None}}
    upstream.answer(Answer.json(refusal, 400), Answer.event_stream(simple.body))
    request = {name: value for name, value in json.loads(simple.request).items() if name != "stream_options"}
    with Client(proxy, OPENAI) as client:
        assert client.post("/v1/chat/completions", json.dumps(request).encode(), JSON).status == 200
    files = by_key(wait_for(proxy, b"[DONE]"))
    assert files.keys() == {"t1-a1.req", "t1-a1.resp", "t1-a2.req", "t1-a2.resp"}
    assert "stream_options" in json.loads(files["t1-a1.req"].body)
    assert json.loads(files["t1-a1.resp"].body) == refusal
    assert json.loads(files["t1-a2.req"].body) == request
    assert files["t1-a2.resp"].body == simple.body


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_an_error_is_an_answer_like_any_other(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    upstream.answer(Answer.json(error, 529, headers=[("retry-after", "3")]))
    ask(proxy, case("messages/simple/blocking").request)
    response = by_key(wait_for(proxy, b"Overloaded"))["t1-a1.resp"]
    assert b" 529" in response.head.partition(b"\r\n")[0] and b"retry-after: 3" in response.head
    assert json.loads(response.body) == error


def test_an_upstream_that_cannot_be_reached_leaves_no_dump_of_what_was_never_sent(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    upstream.stop()
    proxy = start_proxy(config=configuration(upstream.url, "", "dump_dir: dumps"))
    ask(proxy, case("messages/simple/blocking").request)
    wait_for_ended(proxy, 1)
    assert dumps(proxy) == []


@VERSIONS
def test_an_upstream_that_breaks_off_before_its_answer_leaves_the_reason(
    start_proxy: StartProxy, make_upstream: MakeUpstream, http2: bool
) -> None:
    upstream = make_upstream(alpn=[HTTP2 if http2 else HTTP1])
    upstream.answer(Answer(before=[Abort()]))
    proxy = start_proxy(config=configuration(upstream.url, "", "dump_dir: dumps"))
    ask(proxy, case("messages/simple/blocking").request)
    files = by_key(wait_for(proxy, b"broke off"))
    assert files.keys() == {"t1-a1.req", "t1-a1.req_error"}
    assert files["t1-a1.req_error"].head.startswith(b"the upstream broke off: ")


@VERSIONS
def test_an_upstream_that_breaks_off_within_its_answer_is_told_at_the_files_end(
    start_proxy: StartProxy, make_upstream: MakeUpstream, http2: bool
) -> None:
    upstream = make_upstream(alpn=[HTTP2 if http2 else HTTP1])
    upstream.answer(Answer.event_stream(b"event: ping\ndata: {}\n\n", Abort()))
    proxy = start_proxy(config=configuration(upstream.url, "", "dump_dir: dumps"))
    with Client(proxy, ANTHROPIC) as client:
        client.post("/v1/messages", case("messages/simple/streaming").request, JSON)
    response = by_key(wait_for(proxy, b"broke off"))["t1-a1.resp"]
    assert response.body.startswith(b"event: ping\ndata: {}\n\n\n[aibridge: the upstream broke off: ")


@VERSIONS
def test_a_client_that_leaves_is_told_at_the_files_end(
    proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    simple, gate = case("messages/simple/streaming"), Gate()
    first = simple.body.split(b"\n\n")[0] + b"\n\n"
    upstream.answer(Answer.event_stream(first, Pause(gate)))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        asked = Asked(client, "/v1/messages", simple.request)
        assert asked.status() == 200
        asked.until(b"message_start")
        asked.leave()
        wait_for_ended(proxy, 1)
        response = by_key(wait_for(proxy, b"[aibridge: "))["t1-a1.resp"]
    gate.open()
    assert response.body.startswith(first + b"\n[aibridge: the client or the bridge broke off: ")


def test_a_dump_that_cannot_be_written_stops_the_dumps_and_not_the_traffic(
    proxy: RunningProxy, upstream: ScriptedUpstream
) -> None:
    (proxy.folder / "dumps" / "anthropic").write_text("in the way")
    simple = case("messages/simple/blocking")
    upstream.answer(*[Answer.json(json.loads(simple.body))] * 3)
    for _ in range(3):
        assert json.loads(ask(proxy, simple.request)) == json.loads(simple.body)
    assert {row["status"] for row in wait_for_ended(proxy, 3)} == {"completed"}
    proxy.wait_for_log("no more dumps")
    assert proxy.log.count("no more dumps") == 1
    assert dumps(proxy) == []


def test_a_folder_that_cannot_be_made_stops_the_start(run_to_exit: RunToExit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = run_to_exit(config=f"dump_dir: {tmp_path / 'file' / 'dumps'}\nmetrics: {{listen: null}}\n")
    assert ended.code == 1 and "dump_dir" in ended.output and "Traceback" not in ended.output


# --- what is not bridged ------------------------------------------------------------------------------------------


def test_a_passthrough_is_dumped_under_its_path(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    upstream.answer(Answer.json({"data": []}), Answer.json({"input_tokens": 7}))
    with Client(proxy, ANTHROPIC) as client:
        client.ask("GET", "/v1/models?limit=2", [("x-api-key", KEY)])
        client.post("/v1/messages/count_tokens", json.dumps({"text": KEY}).encode(), [*JSON, ("x-api-key", KEY)])
    files = wait_for(proxy, b"input_tokens")
    assert {file.folder for file in files} == {"anthropic/passthrough"}
    names = [re.sub(r"^\d{13}-|-[0-9a-f]{8}-[0-9a-f-]{27}", "", file.name) for file in files]
    assert sorted(names) == [
        f"v1-{path}.{kind}.txt" for path in ("messages-count_tokens", "models") for kind in ("req", "resp")
    ]
    shown = b"".join(file.head + file.body for file in files)
    assert b"GET /v1/models?limit=2 HTTP/" in shown and b'"text": "[redacted]"' in shown
    assert KEY.encode() not in shown


def test_other_hosts_and_what_is_refused_by_us_leave_nothing(proxy: RunningProxy, make_upstream: MakeUpstream) -> None:
    assert b"not JSON" in ask(proxy, b"{")
    plain = make_upstream(authority=None)
    plain.answer(Answer(body=b"hello"))
    with RawHttp1.connect("127.0.0.1", proxy.port) as raw:
        raw.request("GET", f"{plain.url}/x")
        assert raw.read_head().status == 200
        assert raw.read_body() == b"hello"
    assert dumps(proxy) == []
