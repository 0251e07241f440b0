"""The scripted upstream over HTTP/1.1, seen by raw sockets and by httpx."""

import socket
import ssl

import httpx
import pytest

from tests.conftest import MakeUpstream
from tests.support.authority import Authority
from tests.support.client import RawHttp1
from tests.support.upstream import Abort, Answer, Close, Gate, Pause, RawAnswer, Request, ScriptedUpstream, unused_port


@pytest.fixture
def plain(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream(authority=None)


def raw_client(upstream: ScriptedUpstream) -> RawHttp1:
    return RawHttp1.connect("127.0.0.1", upstream.port)


def test_a_request_is_recorded_as_it_came(plain: ScriptedUpstream) -> None:
    plain.answer(Answer.json({"ok": True}))
    headers = [("X-One", "1"), ("x-two", "\u00e9"), ("X-One", "3")]
    with raw_client(plain) as client:
        client.request("POST", "/v1/a%20b?c=d&c", headers, body=b"{}")
        head = client.read_head()
        assert head.status == 200
        assert client.read_body() == b'{"ok": true}'
    assert head.raw == b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n"
    [request] = plain.requests
    assert (request.method, request.target, request.path) == ("POST", "/v1/a%20b?c=d&c", "/v1/a%20b")
    assert (request.sequence, request.connection, request.http_version) == (0, 0, "1.1")
    assert request.headers[1:4] == ((b"X-One", b"1"), (b"x-two", b"\xe9"), (b"X-One", b"3"))
    assert request.authority == request.header("Host") == f"127.0.0.1:{plain.port}"
    assert request.header("absent") is None
    with pytest.raises(ValueError, match="2 times"):
        request.header("x-one")
    assert request.json() == {}
    assert plain.bodies_sent == [b'{"ok": true}']


def test_a_gate_holds_back_what_comes_after_it(plain: ScriptedUpstream) -> None:
    head_gate, gate = Gate(), Gate()
    plain.answer(Answer(body=[b"one", Pause(gate), b"", b"two"], before=[Pause(head_gate)]))
    with raw_client(plain) as client:
        client.request("GET", "/")
        head_gate.wait_reached()
        assert plain.bodies_sent == [b""]
        head_gate.open()
        client.read_head()
        assert client.read_body_chunk() == b"one"
        gate.wait_reached()
        assert plain.bodies_sent == [b"one"]
        gate.open()
        gate.open()
        assert [client.read_body_chunk() for _ in range(2)] == [b"two", b""]


def test_one_connection_takes_many_requests(plain: ScriptedUpstream) -> None:
    def echo(request: Request) -> Answer:
        return Answer(body=request.target.encode(), framing="length")

    plain.handler = echo
    plain.answer(Answer(204), Answer(304), Answer(body=b"queued"))
    with raw_client(plain) as client:
        bodies = []
        for target in ("/1", "/2", "/3", "/4"):
            client.request("GET", target)
            client.read_head()
            bodies.append(client.read_body())
        client.request("HEAD", "/head")
        assert client.read_head().header("content-length") == "5"
        client.request("GET", "/5")
        client.read_head()
        assert client.read_body() == b"/5"
    assert bodies == [b"", b"", b"queued", b"/4"]
    assert {request.connection for request in plain.wait_for_requests(6)} == {0}
    assert plain.connections == 1


def test_pipelined_requests_are_answered_in_order(plain: ScriptedUpstream) -> None:
    plain.answer(Answer(body=b"a"), Answer(body=b"b"))
    with raw_client(plain) as client:
        client.send(b"GET /1 HTTP/1.1\r\nhost: x\r\n\r\nGET /2 HTTP/1.1\r\nhost: x\r\n\r\n")
        for body in (b"a", b"b"):
            client.read_head()
            assert client.read_body() == body


def test_a_body_may_end_with_the_connection(plain: ScriptedUpstream) -> None:
    plain.answer(Answer(body=[b"a", b"b"], framing="eof"), Answer(body=[b"a", Close()], framing="eof"))
    for expected in (b"ab", b"a"):
        with raw_client(plain) as client:
            client.request("GET", "/")
            assert client.read_head().headers == ()
            assert client.read_body() == expected
    assert plain.bodies_sent == [b"ab", b"a"]


def test_trailers_follow_the_last_chunk(plain: ScriptedUpstream) -> None:
    plain.answer(Answer(status=529, body=b"abc", trailers=[("x-sum", "1")]))
    with raw_client(plain) as client:
        client.send(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert client.read_head().raw.startswith(b"HTTP/1.1 529 Unknown\r\n")
        assert client.read_to_end() == b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(body=[b"part", Close()]), EOFError),
        (Answer(body=[b"part", Abort()]), ConnectionResetError),
        (Answer(headers=[("content-length", "9")], body=b"part", framing="length"), TimeoutError),
        (Answer(headers=[("content-length", "9")], body=[b"part", Close()], framing="length"), EOFError),
        (Answer(before=[Close()]), EOFError),
        (Answer(before=[Abort()]), ConnectionResetError),
    ],
)
def test_an_answer_can_break_off(plain: ScriptedUpstream, answer: Answer, error: type[Exception]) -> None:
    plain.answer(answer)
    timeout = 0.1 if error is TimeoutError else 10
    with RawHttp1.connect("127.0.0.1", plain.port, timeout=timeout) as client:
        client.request("GET", "/")
        with pytest.raises(error):
            client.read_head() and client.read_body()


def test_raw_bytes_go_out_verbatim(plain: ScriptedUpstream) -> None:
    hostile = b"HTTP/1.1 200 OK\nContent-Length: 1\nContent-Length: 2\n\nabc"
    plain.answer(RawAnswer([b"HTTP/1.1 204 No Content\r\n\r\n"], close=False), RawAnswer([hostile]))
    with raw_client(plain) as client:
        client.request("GET", "/")
        assert client.read_head().status == 204
        client.request("GET", "/")
        assert client.read_to_end() == hostile
    assert plain.bodies_sent[1] == hostile


@pytest.mark.parametrize("send_continue", [True, False])
def test_an_expectation_is_met_before_the_body_is_read(make_upstream: MakeUpstream, send_continue: bool) -> None:
    upstream = make_upstream(authority=None, send_continue=send_continue)
    upstream.answer(Answer(body=b"done"))
    with raw_client(upstream) as client:
        client.send(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        if send_continue:
            assert client.read_head().status == 100
        client.send(b"hi")
        assert client.read_head().status == 200
        assert client.read_body() == b"done"
    assert upstream.requests[0].expected_continue
    assert upstream.requests[0].body == b"hi"


@pytest.mark.parametrize(("leave", "kind"), [("close", "eof"), ("abort", "reset")])
def test_a_client_that_leaves_is_noticed(plain: ScriptedUpstream, leave: str, kind: str) -> None:
    gate = Gate()
    plain.answer(Answer(body=[b"part", Pause(gate), b"rest"]))
    client = raw_client(plain)
    client.request("GET", "/left")
    gate.wait_reached()
    client.read_head()
    assert client.read_body_chunk() == b"part"
    getattr(client, leave)()
    [disconnect] = plain.wait_for_disconnects()
    assert (disconnect.kind, disconnect.bytes_sent) == (kind, 4)
    assert disconnect.request is plain.requests[0]


def test_tls_shows_the_name_that_was_asked_for(make_upstream: MakeUpstream, ca: Authority) -> None:
    upstream = make_upstream(alpn=["http/1.1"])
    upstream.answer(Answer(body=b"hi"))
    with httpx.Client(verify=ca.client_context(), trust_env=False, http2=True) as client:
        response = client.get(upstream.url)
    assert (response.http_version, response.content) == ("HTTP/1.1", b"hi")
    assert (upstream.requests[0].sni, upstream.requests[0].alpn) == ("localhost", "http/1.1")


def test_a_certificate_can_be_for_any_name(make_upstream: MakeUpstream, ca: Authority) -> None:
    upstream = make_upstream(names=["api.anthropic.com"], alpn=[])
    raw = socket.create_connection(("127.0.0.1", upstream.port), 10)
    with ca.client_context().wrap_socket(raw, server_hostname="api.anthropic.com") as connection:
        assert connection.selected_alpn_protocol() is None
    other = socket.create_connection(("127.0.0.1", upstream.port), 10)
    with pytest.raises(ssl.SSLCertVerificationError):
        ca.client_context().wrap_socket(other, server_hostname="localhost")


def test_what_was_not_scripted_fails_the_test() -> None:
    upstream = ScriptedUpstream()
    upstream.start()
    with raw_client(upstream) as client:
        client.request("GET", "/")
        assert client.read_head().status == 500
    with pytest.raises(AssertionError, match="no answer was scripted"):
        upstream.__exit__(None, None, None)
    assert len(upstream.forget_failures()) == 1
    assert upstream.failures == []


def test_a_malformed_request_is_a_failure(plain: ScriptedUpstream) -> None:
    with raw_client(plain) as client:
        client.send(b"nonsense\r\n\r\n")
        assert client.read_head().status == 400
    assert "malformed" in plain.wait_for_failures()[0]
    plain.forget_failures()


def test_an_upload_that_breaks_off_is_no_request(plain: ScriptedUpstream) -> None:
    plain.answer(Answer())
    client = raw_client(plain)
    client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
    client.half_close()
    assert client.read_to_end() == b""
    client.close()
    assert plain.requests == []


def test_it_stops_in_the_middle_of_an_answer() -> None:
    gate = Gate()
    with ScriptedUpstream(handler=lambda _: Answer(body=[b"part", Pause(gate)])) as upstream:
        client = raw_client(upstream)
        client.request("GET", "/")
        gate.wait_reached()
    assert upstream.disconnects == []
    with pytest.raises((EOFError, ConnectionResetError)):
        client.read_head() and client.read_body()
    client.close()
    upstream.stop()


def test_a_port_can_be_served_again(make_upstream: MakeUpstream) -> None:
    port = unused_port()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 10)
    with ScriptedUpstream(port=port) as first:
        assert first.url == f"http://localhost:{port}"
    second = make_upstream(port=port, authority=None, handler=lambda _: Answer(body=b"2"))
    assert httpx.get(second.url, trust_env=False).content == b"2"


def test_waits_are_bounded(plain: ScriptedUpstream) -> None:
    with pytest.raises(TimeoutError, match="no 1 requests"):
        plain.wait_for_requests(1, timeout=0.01)
    with pytest.raises(TimeoutError, match="gate"):
        Gate().wait_reached(timeout=0.01)


def test_a_raw_client_reads_what_came_together_with_a_head(plain: ScriptedUpstream) -> None:
    plain.answer(RawAnswer([b"HTTP/1.1 200 Connection established\r\n\r\n220 who are you?\r\n"]))
    with raw_client(plain) as client:
        client.request("GET", "/")
        assert client.read_head().status == 200
        assert client.read_until(b"\r\n") == b"220 who are you?\r\n"
