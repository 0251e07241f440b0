"""A proxy whose certificate authority may sign for some hosts only."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.support import fixtures
from tests.support.authority import Authority
from tests.support.client import RawHttp1, trust
from tests.support.constrained import make_constrained_ca
from tests.support.in_process import InProcessProxy
from tests.support.upstream import Answer, ScriptedUpstream

SIMPLE = fixtures.case("messages/simple/blocking")
CONFIG = "providers: [{name: a, type: anthropic, hosts: [localhost]}]\n"


def through(proxy: InProcessProxy, address: str, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Begin TLS with localhost in a tunnel to an address."""
    opened = RawHttp1.connect("127.0.0.1", proxy.port)
    opened.send(f"CONNECT {address}:{port} HTTP/1.1\r\nhost: {address}:{port}\r\n\r\n".encode())
    assert opened.read_head().status == 200
    return context.wrap_socket(opened.socket, server_hostname="localhost")


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1"])
def test_a_permitted_host_is_recorded_whatever_the_tunnels_address(
    address: str, start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    proxy = start_proxy(config=CONFIG, mitmproxy_ca=make_constrained_ca(tmp_path / "ca", ["localhost"]))
    upstream.answer(Answer.json(json.loads(SIMPLE.body)))
    with RawHttp1(through(proxy, address, upstream.port, trust(proxy)), "localhost") as client:
        assert isinstance(client.socket, ssl.SSLSocket)
        found = client.socket.getpeercert()
        assert found is not None and found["subjectAltName"] == (("DNS", "localhost"),)
        client.request("POST", "/v1/messages", [(b"Content-Length", str(len(SIMPLE.request)).encode())])
        client.send(SIMPLE.request)
        assert client.read_head().status == 200
        assert json.loads(client.read_body()) == json.loads(SIMPLE.body)
    assert len(proxy.wait_for_rows("aibridge_interceptions", 1)) == 1


def test_a_providers_host_that_is_not_permitted_is_named_at_the_start_and_refused_by_clients(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    proxy = start_proxy(config=CONFIG, mitmproxy_ca=make_constrained_ca(tmp_path / "ca", ["api.anthropic.com"]))
    proxy.wait_for_log(r"may not sign for hosts of the configuration: localhost\..*aibridge certs make --constrain")
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        through(proxy, "localhost", upstream.port, trust(proxy))
    proxy.wait_for_log(r"host='localhost': the CA \S+ may not sign for this host")
    assert upstream.requests == [] and proxy.rows("aibridge_interceptions") == []


def test_a_host_of_no_provider_shows_its_own_certificate(
    start_proxy: StartProxy, make_upstream: MakeUpstream, ca: Authority, tmp_path: Path
) -> None:
    folder = make_constrained_ca(tmp_path / "ca", ["api.anthropic.com"])
    proxy = start_proxy(config=CONFIG.replace("localhost", "api.anthropic.com"), mitmproxy_ca=folder)
    foreign = make_upstream(authority=ca)
    foreign.answer(Answer.json({"hello": "tunnel"}))
    with RawHttp1(through(proxy, "localhost", foreign.port, ca.client_context()), "localhost") as client:
        client.request("GET", "/", [])
        assert client.read_head().status == 200
