"""A stop by a signal: answers in flight are finished, rows are written, programs are ended, the exit code is 0."""

from __future__ import annotations

import itertools
import json
import socket
import threading

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.server import ServerConnection

from aibridge_addon.tools.calls import CANCELLED
from tests.conftest import StartMitmdump
from tests.integration import sockets
from tests.integration.answers import BEGUN, PATH, REQUEST, SIMPLE, ask, begin, config, held, is_refused, whole
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.turns import CONNECTED, Asked, Turns, call, configuration, program, recorded, results, text
from tests.support import frames
from tests.support.client import RawHttp1
from tests.support.database import locked
from tests.support.mcp_servers import ToolGate
from tests.support.polling import poll_until
from tests.support.upstream import Answer, Gate, Pause, ScriptedUpstream

LONG = 60.0
KEY, HINT = "sk-central-0000000000000001", "sk-c...0001"
LIMIT = 64 * 1024


@pytest.mark.parametrize("signal", ["terminate", "interrupt"])
def test_answers_in_flight_are_finished_before_the_end(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, signal: str
) -> None:
    proxy = mitmdump(config=config(upstream.port))
    gate = Gate()
    upstream.answer(held(gate))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        begin(client)
        getattr(proxy, signal)()
        poll_until(lambda: is_refused(proxy.port), what="new connections being refused")
        assert proxy.running
        gate.open()
        assert BEGUN + client.read_body() == SIMPLE.body
    assert proxy.wait() == 0
    [row] = proxy.rows("aibridge_interceptions")
    assert (row["status"], row["error_type"]) == ("completed", None)
    assert len(proxy.rows("aibridge_token_usages")) == 1


def test_an_answer_that_never_ends_is_cut_off(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    proxy = mitmdump(config=config(upstream.port, "drain_timeout: 1"))
    upstream.answer(held(Gate()), Answer(before=[Pause(Gate())]))
    with (
        RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as begun,
        RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as waiting,
    ):
        begin(begun)
        waiting.request("POST", PATH, body=REQUEST)
        upstream.wait_for_requests(2)
        proxy.terminate()
        assert proxy.wait() == 0
    rows = proxy.rows("aibridge_interceptions")
    assert [(row["status"], row["error_type"], row["http_status"]) for row in rows] == [
        ("failed", "shutdown", 200),
        ("failed", "shutdown", None),
    ]
    [usage] = proxy.rows("aibridge_token_usages")
    assert usage["completeness"] == "partial"
    prompts = proxy.rows("aibridge_user_prompts")
    assert {prompt["interception_id"] for prompt in prompts} == {row["id"] for row in rows}


def test_a_second_signal_ends_at_once(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    proxy = mitmdump(config=config(upstream.port, "drain_timeout: 600"))
    upstream.answer(held(Gate()))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        begin(client)
        proxy.terminate()
        proxy.wait_for_log("draining")
        assert proxy.running
        proxy.terminate()
        assert proxy.wait() == 0
    [row] = proxy.rows("aibridge_interceptions")
    assert row["status"] != "completed"


def test_a_stop_says_for_whom_it_waits_and_how_to_end_at_once(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream
) -> None:
    proxy = mitmdump(config=config(upstream.port, "actor: {default: ada}"))
    gates = [Gate(), Gate()]
    upstream.answer(*map(held, gates))
    with (
        RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as first,
        RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as second,
    ):
        for client in (first, second):
            begin(client)
        proxy.interrupt()
        model = json.loads(REQUEST)["model"]
        line = proxy.wait_for_log(r"draining: (.*)")[1]
        assert line == (
            f"requests under way: 2 (anthropic/{model} for ada (2)), for at most 30 s;"
            " a second Ctrl-C or SIGTERM ends at once"
        )
        for gate in gates:
            gate.open()
    assert proxy.wait() == 0


def test_nothing_in_flight_ends_at_once(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    proxy = mitmdump(config=config(upstream.port, "drain_timeout: 600"))
    upstream.answer(whole())
    with Client(proxy, ANTHROPIC) as client:
        assert client.post(PATH, REQUEST).body == SIMPLE.body
        proxy.terminate()
        assert proxy.wait() == 0, "an idle connection holds nothing up"
    assert "draining: no requests under way" in proxy.log and "for at most" not in proxy.log
    assert [row["status"] for row in proxy.rows("aibridge_interceptions")] == ["completed"]


def test_what_was_refused_does_not_hold_up_the_end(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    proxy = mitmdump(config=config(upstream.port, f"limits: {{request_body: {LIMIT}}}"))
    for http2 in (False, True):
        with Client(proxy, ANTHROPIC, http2=http2) as client:
            assert client.post("/v1/messages", b"x" * (LIMIT + 1)).status == 413
            assert client.post("/v1/messages", b"no JSON").status == 400
    proxy.terminate()
    assert proxy.wait() == 0
    assert "cut off" not in proxy.log


def test_a_stop_during_a_pause_asks_nobody_again(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    proxy = mitmdump(config=configuration(upstream.url, "", "drain_timeout: 0", ", max_retries: 1"))
    upstream.answer(Answer.json({"error": {}}, 529, headers=[("retry-after", "50")]))
    with Client(proxy, ANTHROPIC) as client:
        Asked(client, PATH, REQUEST)
        poll_until(lambda: upstream.requests, 10, what="the first attempt")
        proxy.wait_for_rows("aibridge_interceptions", 1)
        proxy.terminate()
        proxy.wait()
    assert len(upstream.requests) == 1


def test_a_stop_waits_for_an_answer_and_not_for_an_idle_socket(mitmdump: StartMitmdump) -> None:
    gate = threading.Event()

    def slow(connection: ServerConnection) -> None:
        try:
            for n in itertools.count():
                connection.recv()
                *events, last = sockets.text(*frames.events(sockets.SIMPLE))
                for event in events:
                    connection.send(event)
                if n or len(idle) == 1:
                    gate.wait(sockets.TIMEOUT)
                connection.send(last)
        except ConnectionClosed:
            pass

    idle: list[ClientConnection] = []
    with sockets.served(slow) as port:
        process = mitmdump(config=sockets.config(port, "drain_timeout: 30"))
        with sockets.through(process) as first:
            first.send(frames.create(sockets.SIMPLE).decode())
            sockets.read(first, len(frames.events(sockets.SIMPLE)))
            idle.append(first)
            with sockets.through(process) as client:
                client.send(frames.create(sockets.SIMPLE).decode())
                sockets.read(client, len(frames.events(sockets.SIMPLE)) - 1)
                process.terminate()
                process.wait_for_log("draining: requests under way: 1")
                gate.set()
                assert client.recv() == sockets.text(*frames.events(sockets.SIMPLE))[-1]
                assert process.wait() == 0
    assert [row["status"] for row in process.rows("aibridge_interceptions")] == ["completed"] * 2


# --- what is written before the end


def test_what_waits_for_a_locked_database_is_written_before_the_end(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream
) -> None:
    proxy = mitmdump(config=config(upstream.port, "recording: {durable: false}"))
    upstream.answer(*[Answer.event_stream(SIMPLE.body)] * 3)
    with locked(proxy.database):
        ask(proxy, 3)
        proxy.terminate()
        proxy.wait_for_log("draining")
    assert proxy.wait() == 0
    assert [row["status"] for row in proxy.rows("aibridge_interceptions")] == ["completed"] * 3


def test_records_that_cannot_be_written_do_not_hold_up_the_end_and_are_left_to_the_next_process(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream
) -> None:
    proxy = mitmdump(config=config(upstream.port, "recording: {durable: false}"))
    upstream.answer(Answer.event_stream(SIMPLE.body))
    with locked(proxy.database):
        ask(proxy)
        proxy.terminate()
        assert proxy.wait(LONG) == 0
    assert "records lost" not in proxy.log
    assert proxy.rows("aibridge_interceptions") == []
    following = mitmdump(config=config(upstream.port), folder=proxy.folder)
    assert [row["status"] for row in wait_for_ended(following, 1)] == ["completed"]


def test_what_is_under_way_at_a_stop_is_written_so_far(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.answer(held(gate))
    proxy = mitmdump(config=config(upstream.port, "dump_dir: dumps\ndrain_timeout: 0"))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        begin(client)
        proxy.terminate()
        assert proxy.wait() == 0
    gate.open()
    [response] = (proxy.folder / "dumps").rglob("*-t1-a1.resp.txt")
    _, _, body = response.read_bytes().partition(b"\r\n\r\n")
    assert body.startswith(BEGUN) and b"[aibridge: " in body


def test_a_flow_that_a_stop_cuts_off_is_written_without_the_key(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream
) -> None:
    """mitmproxy's `-w` writes what is under way when it ends, and this request has been sent with the key."""
    gate = Gate()
    upstream.answer(Answer(200, before=[Pause(gate)]))
    config = configuration(upstream.url, "", "drain_timeout: 0", f", api_key: {KEY}")
    proxy = mitmdump(config=config, arguments=["-w", "flows"])
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        client.request("POST", "/anthropic/v1/messages", [], REQUEST)
        gate.wait_reached()
        proxy.terminate()
        proxy.wait()
    gate.open()
    written = (proxy.folder / "flows").read_bytes()
    assert upstream.requests[0].header("x-api-key") == KEY and b"/v1/messages" in written
    assert KEY.encode() not in written and HINT.encode() in written


# --- MCP servers


def test_a_dead_server_keeps_nobody_waiting(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/mcp"
        proxy = mitmdump(config=configuration(upstream.url, f"servers: {{ours: {{type: http, url: '{url}'}}}}"))
        turns = Turns("messages", [text("Hello.")])
        upstream.answer(*turns.answers(streaming=True))
        body = turns.request(streaming=True)
        with Client(proxy, turns.host) as client:
            assert client.post(turns.path, body).body == upstream.bodies_sent[0]
        assert upstream.requests[0].body == body
        proxy.terminate()
        assert proxy.wait() == 0


def test_a_stop_ends_the_programs(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    proxy = mitmdump(config=configuration(upstream.url, program()))
    proxy.wait_for_log(CONNECTED)
    turns = Turns("messages", [call("echo", text="0")], [text("Done.")])
    upstream.answer(*turns.answers(streaming=True))
    with Client(proxy, turns.host) as client:
        turns.check(client.post(turns.path, turns.request(streaming=True)).body, streaming=True)
    assert results(upstream.requests[1]) == ["0"]
    children = proxy.children()
    assert children
    proxy.terminate()
    assert proxy.wait() == 0
    poll_until(lambda: not any(child.is_running() for child in children), what="the end of the programs")


def test_a_stop_that_waits_no_longer_tells_of_the_call_that_it_cut_off(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream
) -> None:
    proxy = mitmdump(config=configuration(upstream.url, program(), more="drain_timeout: 1"))
    proxy.wait_for_log(CONNECTED)
    with ToolGate() as gate, Client(proxy, Turns("messages").host) as client:
        turns = Turns("messages", [text("Wait. "), call("slow", port=gate.port)], [text("Done.")])
        upstream.answer(turns.answers(streaming=True)[0])
        Asked(client, turns.path, turns.request(streaming=True))
        gate.wait_reached()
        proxy.terminate()
        assert proxy.wait() == 0
    rows = recorded(proxy)
    assert rows.outcome == ("failed", 1, "shutdown")
    assert [(row["tool"], row["invocation_error"]) for row in rows.injected] == [("slow", CANCELLED)]
