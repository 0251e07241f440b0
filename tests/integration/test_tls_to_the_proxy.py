"""TLS to the proxy itself (`curl -x https://…`, a gateway over https): the greeting is for us, whatever name it has."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import MakeUpstream
from tests.integration.answers import PATH, REQUEST, SIMPLE, config, whole
from tests.integration.exchanges import ANTHROPIC, wait_for_ended
from tests.support.authority import Authority
from tests.support.client import RawHttp1, trust
from tests.support.in_process import InProcessProxy
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

NAMES = pytest.mark.parametrize("name", ["localhost", "bridge.example", ANTHROPIC, None])


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream()


@pytest.fixture
def proxy(tmp_path: Path, upstream: ScriptedUpstream, ca: Authority, mitmproxy_ca: Path) -> Iterator[RunningProxy]:
    with InProcessProxy(
        tmp_path, config=config(upstream.port), upstream_ca=ca.pem, mitmproxy_ca=mitmproxy_ca
    ) as started:
        yield started
    assert not started.has_traceback


def secured(proxy: RunningProxy, name: str | None, alpn: tuple[str, ...] = ()) -> ssl.SSLSocket:
    context = trust(proxy)
    context.check_hostname = name is not None
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context.wrap_socket(RawHttp1.connect("127.0.0.1", proxy.port).socket, server_hostname=name)


@NAMES
@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("h2", "http/1.1")], ids=["no ALPN", "h1", "h2 or h1"])
def test_a_gateway_answers_over_https(
    proxy: RunningProxy, upstream: ScriptedUpstream, name: str | None, alpn: tuple[str, ...]
) -> None:
    upstream.answer(whole())
    with RawHttp1(secured(proxy, name, alpn), name or "localhost") as client:
        client.request("POST", f"/anthropic{PATH}", body=REQUEST)
        assert client.read_head().status == 200
        assert client.read_body() == SIMPLE.body
    [row] = wait_for_ended(proxy, 1)
    assert row["status"] == "completed"


@NAMES
def test_a_tunnel_through_it_is_recorded(proxy: RunningProxy, upstream: ScriptedUpstream, name: str | None) -> None:
    upstream.answer(whole())
    with secured(proxy, name) as outer:
        outer.sendall(f"CONNECT {ANTHROPIC}:443 HTTP/1.1\r\nhost: {ANTHROPIC}:443\r\n\r\n".encode())
        assert outer.recv(4096).startswith(b"HTTP/1.1 200")
        with TlsInTls(outer, proxy) as client:
            body = b"content-length: %d\r\n\r\n%b" % (len(REQUEST), REQUEST)
            client.send(b"POST %b HTTP/1.1\r\nhost: %b\r\n%b" % (PATH.encode(), ANTHROPIC.encode(), body))
            assert client.receive_until(b"message_stop").startswith(b"HTTP/1.1 200")
    [row] = wait_for_ended(proxy, 1)
    assert row["status"] == "completed"


def test_a_library_uses_it_as_its_proxy(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    upstream.answer(whole())
    secure = httpx.Proxy(f"https://localhost:{proxy.port}", ssl_context=trust(proxy))
    with httpx.Client(proxy=secure, verify=trust(proxy), trust_env=False) as client:
        answer = client.post(f"https://{ANTHROPIC}{PATH}", content=REQUEST)
    assert (answer.status_code, answer.content) == (200, SIMPLE.body)


def test_other_hosts_through_it_are_still_tunnelled(
    proxy: RunningProxy, make_upstream: MakeUpstream, tmp_path: Path
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    authority = Authority(folder)
    foreign = make_upstream(authority=authority)
    foreign.answer(Answer.json({"own": True}))
    secure = httpx.Proxy(f"https://localhost:{proxy.port}", ssl_context=trust(proxy))
    own = authority.client_context()
    with httpx.Client(proxy=secure, verify=own, trust_env=False) as client:
        assert client.get(f"https://localhost:{foreign.port}/").json() == {"own": True}


class TlsInTls:
    """TLS inside of TLS, which Python's sockets cannot do."""

    def __init__(self, outer: ssl.SSLSocket, proxy: RunningProxy) -> None:
        self._outer = outer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trust(proxy).wrap_bio(self._in, self._out, server_hostname=ANTHROPIC)

    def __enter__(self) -> TlsInTls:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._exchange()
            else:
                self._flush()
                return self

    def __exit__(self, *_: object) -> None:
        self._outer.close()

    def send(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def receive_until(self, end: bytes) -> bytes:
        data = b""
        while end not in data:
            try:
                data += self._tls.read(65_536)
            except ssl.SSLWantReadError:
                self._exchange()
        return data

    def _flush(self) -> None:
        if data := self._out.read():
            self._outer.sendall(data)

    def _exchange(self) -> None:
        self._flush()
        data = self._outer.recv(65_536)
        if not data:
            raise EOFError("the connection ended")
        self._in.write(data)
