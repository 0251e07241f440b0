"""The scripted upstream over HTTP/2, seen by httpx and by a raw client."""

import socket

import httpx
import pytest
from h2.settings import SettingCodes

from tests.conftest import MakeUpstream
from tests.support.authority import Authority
from tests.support.client_h2 import RawHttp2, StreamResetError
from tests.support.upstream import Abort, Answer, Close, Gate, Pause, RawAnswer, ScriptedUpstream


def raw_client(upstream: ScriptedUpstream, ca: Authority) -> RawHttp2:
    context = ca.client_context()
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection(("127.0.0.1", upstream.port), 10)
    return RawHttp2(context.wrap_socket(raw, server_hostname="localhost"), "localhost")


def test_a_request_is_recorded_as_it_came(upstream: ScriptedUpstream, ca: Authority) -> None:
    upstream.answer(Answer.json({"ok": True}, headers=[("X-Mixed", "1")]))
    with raw_client(upstream, ca) as client:
        cookies = [(b"cookie", b"a=1"), (b"x-one", b"\xe9"), (b"cookie", b"b=2")]
        stream = client.request("POST", "/v1/x?y", cookies, b"{}" * 40_000)
        status, headers = client.read_head(stream)
        assert client.read_body(stream) == b'{"ok": true}'
    assert status == 200
    assert headers == [
        (b"content-type", b"application/json"),
        (b"x-mixed", b"1"),
        (b"content-length", b"12"),
    ]
    [request] = upstream.requests
    assert (request.method, request.target, request.authority) == ("POST", "/v1/x?y", "localhost")
    assert (request.http_version, request.alpn, request.sni) == ("2", "h2", "localhost")
    assert request.headers == tuple(cookies)
    assert request.pseudo_headers[0] == (b":method", b"POST")
    assert request.body == b"{}" * 40_000
    assert upstream.bodies_sent == [b'{"ok": true}']


def test_streams_are_answered_side_by_side(upstream: ScriptedUpstream, ca: Authority) -> None:
    gate = Gate()
    upstream.answer(Answer(body=[b"1a", Pause(gate), b"1b"]), Answer(body=b"2"))
    with raw_client(upstream, ca) as client:
        first = client.request("GET", "/1")
        gate.wait_reached()
        second = client.request("GET", "/2")
        client.read_head(second)
        assert client.read_body(second) == b"2"
        client.read_head(first)
        assert client.read_data(first) == b"1a"
        gate.open()
        assert [client.read_data(first), client.read_data(first)] == [b"1b", b""]
    assert upstream.connections == 1


def test_a_large_answer_waits_for_the_window(upstream: ScriptedUpstream, ca: Authority) -> None:
    body = bytes(range(256)) * 4_000
    upstream.answer(Answer(body=body, trailers=[("x-sum", "1")]))
    with httpx.Client(verify=ca.client_context(), http2=True, trust_env=False) as client:
        response = client.get(upstream.url)
    assert (response.http_version, response.content) == ("HTTP/2", body)
    assert upstream.bodies_sent == [body]


def test_a_stream_can_be_reset_in_the_middle(upstream: ScriptedUpstream, ca: Authority) -> None:
    upstream.answer(Answer(body=[b"part", Abort(error_code=11)]), Answer(body=b"whole"))
    with raw_client(upstream, ca) as client:
        stream = client.request("GET", "/")
        client.read_head(stream)
        assert client.read_data(stream) == b"part"
        with pytest.raises(StreamResetError) as caught:
            client.read_data(stream)
        assert caught.value.error_code == 11
        stream = client.request("GET", "/")
        client.read_head(stream)
        assert client.read_body(stream) == b"whole"
    assert upstream.disconnects == []


@pytest.mark.parametrize("early", [True, False])
def test_a_connection_can_be_closed(upstream: ScriptedUpstream, ca: Authority, early: bool) -> None:
    upstream.answer(Answer(before=[Close()]) if early else Answer(body=[b"part", Close()]))
    with raw_client(upstream, ca) as client:
        stream = client.request("GET", "/")
        if not early:
            client.read_head(stream)
            assert client.read_data(stream) == b"part"
        with pytest.raises(EOFError):
            client.read_data(stream)
    assert upstream.disconnects == []


def test_a_client_that_resets_a_stream_is_noticed(upstream: ScriptedUpstream, ca: Authority) -> None:
    gate = Gate()
    upstream.answer(Answer(body=[b"part", Pause(gate)]))
    with raw_client(upstream, ca) as client:
        stream = client.request("GET", "/")
        gate.wait_reached()
        client.reset(stream)
        [disconnect] = upstream.wait_for_disconnects()
        assert (disconnect.kind, disconnect.bytes_sent) == ("reset", 4)


def test_a_client_that_leaves_is_noticed_on_all_its_streams(upstream: ScriptedUpstream, ca: Authority) -> None:
    gates = [Gate(), Gate()]
    upstream.answer(*(Answer(body=[Pause(gate)]) for gate in gates))
    with raw_client(upstream, ca) as client:
        client.request("GET", "/1")
        client.request("GET", "/2")
        for gate in gates:
            gate.wait_reached()
    targets = {disconnect.request.target for disconnect in upstream.wait_for_disconnects(2)}
    assert targets == {"/1", "/2"}


def test_settings_are_those_asked_for(make_upstream: MakeUpstream, ca: Authority) -> None:
    upstream = make_upstream(h2_settings={SettingCodes.MAX_CONCURRENT_STREAMS: 7}, handler=lambda _: Answer(body=b"x"))
    with raw_client(upstream, ca) as client:
        stream = client.request("GET", "/")
        client.read_head(stream)
        assert client.read_body(stream) == b"x"
        assert client.max_streams == 7


def test_raw_answers_are_refused(upstream: ScriptedUpstream, ca: Authority) -> None:
    upstream.answer(RawAnswer([b"x"]))
    with raw_client(upstream, ca) as client:
        status, _ = client.read_head(client.request("GET", "/"))
    assert status == 500
    assert upstream.forget_failures() == ["a raw answer is for HTTP/1.1 only"]
