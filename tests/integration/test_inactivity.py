"""Connections without traffic: an hour long unless the operator says otherwise, and rows do not blame the client."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.answers import BEGUN, PATH, REQUEST, config, held
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.sockets import CODEX, Provider, served, text, through
from tests.integration.sockets import config as of_socket
from tests.support import frames
from tests.support.client import RawHttp1
from tests.support.upstream import HTTP1, Answer, Gate, Pause, ScriptedUpstream

VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
SHORT = ["tcp_timeout=1"]


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    # Over HTTP/2 mitmproxy pings the upstream, and a connection with pings is not silent.
    return make_upstream(alpn=[HTTP1])


def ask(client: Client) -> None:
    if isinstance(client.raw, RawHttp1):
        client.raw.request("POST", PATH, body=REQUEST)
    else:
        client.raw.request("POST", PATH, [], REQUEST)


@VERSIONS
def test_an_answer_that_is_cut_in_its_middle_says_so(
    start_proxy: StartProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    proxy = start_proxy(config=config(upstream.port), options=SHORT)
    upstream.answer(held(Gate()))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        ask(client)
        [row] = wait_for_ended(proxy, 1)
    assert (row["status"], row["error_type"], row["http_status"]) == ("failed", "inactivity", 200)
    assert "tcp_timeout" in row["error_message"]
    [tokens] = proxy.wait_for_rows("aibridge_token_usages", 1)
    assert (tokens["completeness"], BEGUN != b"") == ("partial", True)


@VERSIONS
def test_an_answer_that_has_not_begun_does_too(
    start_proxy: StartProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    proxy = start_proxy(config=config(upstream.port), options=SHORT)
    upstream.answer(Answer(before=[Pause(Gate())]))
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        ask(client)
        [row] = wait_for_ended(proxy, 1)
    assert (row["status"], row["error_type"], row["http_status"]) == ("failed", "inactivity", None)


def test_an_answer_over_a_websocket_does_too(start_proxy: StartProxy) -> None:
    provider = Provider()
    with served(provider.serve) as provider.port:
        proxy = start_proxy(config=of_socket(provider.port), options=SHORT)
        provider.answer(*text(*frames.events(CODEX)[:3]))
        with through(proxy) as client:
            client.send(frames.create(CODEX).decode())
            [row] = wait_for_ended(proxy, 1)
    assert (row["status"], row["error_type"]) == ("failed", "inactivity")


def test_a_client_that_leaves_is_not_inactive(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy, gate = start_proxy(config=config(upstream.port)), Gate()
    upstream.answer(held(gate))
    with Client(proxy, ANTHROPIC) as client:
        ask(client)
        gate.wait_reached()
    [row] = wait_for_ended(proxy, 1)
    assert row["error_type"] == "client_disconnected"


@pytest.mark.parametrize(
    ("options", "of_file", "expected"),
    [
        ([], "", 3600),
        (["tcp_timeout=900"], "", 900),
        (["tcp_timeout=600"], "", 600),  # mitmproxy's own default, but the operator's wish
        ([], "tcp_timeout: 700\n", 700),
        ([], "tcp_timeout: 600\n", 600),
    ],
    ids=["nothing set", "set", "set to mitmproxy's default", "in config.yaml", "mitmproxy's default in config.yaml"],
)
def test_the_operator_decides_and_otherwise_it_is_an_hour(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, options: list[str], of_file: str, expected: int
) -> None:
    confdir = tmp_path / "confdir"
    confdir.mkdir()
    (confdir / "config.yaml").write_text(of_file)
    proxy = start_proxy(config=config(upstream.port), options=options, mitmproxy_ca=confdir)
    assert proxy.options.tcp_timeout == expected
