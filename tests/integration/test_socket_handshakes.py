"""Handshakes of recorded WebSockets: their credentials, their version, and what the circuit breaker counts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

from tests.conftest import StartProxy
from tests.integration.exchanges import wait_for_ended
from tests.integration.sockets import CODEX, TIMEOUT, Provider, config, read, served, text
from tests.support import frames
from tests.support.client import RawHttp1
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.script import Gate, Pause, RawAnswer
from tests.support.upstream import Answer, ScriptedUpstream

CENTRAL = "sk-central-0123456789abcdefghij"
OWN = "sk-own-0123456789abcdefghijkl.mn"
PATH = "/openai/v1/responses"


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    with served(found.serve) as found.port:
        yield found


def with_key(port: int, *more: str) -> str:
    base = f"http://localhost:{port}/v1"
    return "\n".join([f"providers: [{{name: openai, type: openai, base_url: '{base}', api_key: {CENTRAL}}}]", *more])


@pytest.mark.parametrize(
    "protocols",
    [
        ["realtime", f"openai-insecure-api-key.{OWN}", "openai-beta.realtime-v1"],
        [f"xai-client-secret.{OWN}"],
        ["token", OWN],
        ["Bearer", OWN],
    ],
    ids=lambda protocols: protocols[0].split(".")[0],
)
@pytest.mark.parametrize("lines", [1, 2])
def test_a_credential_among_the_protocols_is_the_clients_own(
    start_proxy: StartProxy, provider: Provider, protocols: list[str], lines: int
) -> None:
    process = start_proxy(config=with_key(provider.port, "dump_dir: dumps"))
    events = text(*frames.events(CODEX))
    provider.answer(*events)
    values = [", ".join(protocols)] if lines == 1 else [*protocols[:-1], protocols[-1]]
    headers = [("sec-websocket-protocol", value) for value in values]
    url = f"ws://127.0.0.1:{process.port}{PATH}"
    with connect(url, proxy=None, additional_headers=headers, open_timeout=TIMEOUT) as client:
        client.send(frames.create(CODEX).decode())
        read(client, len(events))
    [upgrade] = poll_until(lambda: provider.upgrades)
    assert "authorization" not in upgrade
    assert ", ".join(upgrade.get_all("sec-websocket-protocol")) == ", ".join(protocols)
    [row] = wait_for_ended(process, 1)
    assert (row["credential_kind"], row["credential_hint"]) == ("byok", "sk-o...l.mn")
    written = b"".join(path.read_bytes() for path in (process.folder / "dumps").rglob("*") if path.is_file())
    assert b"sec-websocket-protocol" in written.lower()
    assert OWN.encode() not in written and OWN not in process.log


def test_without_a_credential_the_central_key_is_used(start_proxy: StartProxy, provider: Provider) -> None:
    process = start_proxy(config=with_key(provider.port))
    url = f"ws://127.0.0.1:{process.port}{PATH}"
    headers = [("sec-websocket-protocol", "realtime, openai-beta.realtime-v1")]
    with connect(url, proxy=None, additional_headers=headers, open_timeout=TIMEOUT):
        pass
    [upgrade] = poll_until(lambda: provider.upgrades)
    assert upgrade["authorization"] == f"Bearer {CENTRAL}"


@pytest.mark.parametrize("version", ["8", "12", "14", "13, 8", ""])
def test_a_version_that_would_not_be_read_is_refused(start_proxy: StartProxy, provider: Provider, version: str) -> None:
    process = start_proxy(config=config(provider.port))
    with RawHttp1.connect("127.0.0.1", process.port) as raw:
        raw.send(
            f"GET {PATH} HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            f"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: {version}\r\n\r\n".encode()
        )
        head = raw.read_head()
    assert (head.status, head.header("sec-websocket-version")) == (426, "13")
    assert not provider.upgrades


UPGRADE = (
    f"GET {PATH} HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n\r\n"
)


def handshake(process: RunningProxy) -> int:
    try:
        with connect(f"ws://127.0.0.1:{process.port}{PATH}", proxy=None, open_timeout=TIMEOUT):
            return 101
    except InvalidStatus as e:
        return e.response.status_code
    except (InvalidHandshake, EOFError, OSError):
        return 0


BREAKER = ", circuit_breaker: {failure_threshold: 2, interval: 1000, timeout: 1000, max_requests: 1}"


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ([503, 503], [503, 503, 503]),
        ([529, 504], [529, 504, 503]),
        ([503, 404, 503, 404], [503, 404, 503, 404]),
        ([429, 429, 401, 401], [429, 429, 401, 401]),
    ],
)
def test_failed_handshakes_open_the_circuit_breaker(
    start_proxy: StartProxy, answers: Sequence[int], wanted: Sequence[int]
) -> None:
    with ScriptedUpstream() as plain:
        process = start_proxy(
            config=f"providers: [{{name: openai, type: openai, base_url: '{plain.url}/v1'{BREAKER}}}]"
        )
        plain.answer(*(Answer.json({"error": {"message": "no"}}, status) for status in answers))
        assert [handshake(process) for _ in wanted] == list(wanted)
        assert len(plain.requests) == len(answers)


def test_an_unreachable_upstream_of_handshakes_opens_the_circuit_breaker(start_proxy: StartProxy) -> None:
    with ScriptedUpstream() as gone:
        url = gone.url
    process = start_proxy(config=f"providers: [{{name: openai, type: openai, base_url: '{url}/v1'{BREAKER}}}]")
    assert [handshake(process) for _ in range(3)] == [502, 502, 503]


def test_a_trial_handshake_whose_client_leaves_does_not_keep_the_circuit_breaker_half_open(
    start_proxy: StartProxy,
) -> None:
    gate, deadline = Gate(), time.monotonic() + TIMEOUT
    breaker = ", circuit_breaker: {failure_threshold: 1, interval: 1000, timeout: 1, max_requests: 1}"
    with ScriptedUpstream() as plain:
        process = start_proxy(
            config=f"providers: [{{name: openai, type: openai, base_url: '{plain.url}/v1'{breaker}}}]"
        )
        plain.answer(Answer.json({}, 503), RawAnswer([Pause(gate)]))
        assert handshake(process) == 503
        while len(plain.requests) < 2:  # refused until the breaker admits a trial
            assert time.monotonic() < deadline
            with RawHttp1.connect("127.0.0.1", process.port) as leaving:
                leaving.send(UPGRADE.encode())
                with suppress(TimeoutError):
                    gate.wait_reached(0.1)
        gate.open()
        plain.answer(*[Answer.json({}, 404)] * 1000)
        while handshake(process) != 404:
            assert time.monotonic() < deadline


def test_an_upstream_that_switches_to_another_protocol_is_not_relayed(start_proxy: StartProxy) -> None:
    with ScriptedUpstream() as plain:
        process = start_proxy(config=with_key(plain.port))
        plain.answer(RawAnswer([b"HTTP/1.1 101 Switching Protocols\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n"]))
        with suppress(InvalidHandshake, EOFError, OSError):
            assert handshake(process) != 101
    process.wait_for_log("another protocol")
