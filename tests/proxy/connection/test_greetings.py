"""A client's failed TLS greeting: one line a minute for each client and host, with what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from mitmproxy import ctx, tls
from mitmproxy.proxy.context import Context
from mitmproxy.test import taddons, tflow

from aibridge_addon.proxy.connection.greetings import FailedGreetings, message
from aibridge_addon.proxy.connection.once_a_minute import MAX_REMEMBERED, PAUSE
from tests.support.running import CA_BASENAME

UNKNOWN_CA = "The client does not trust the proxy's certificate for a.test (tlsv1 alert unknown ca)"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def greetings(clock: Clock) -> Iterator[FailedGreetings]:
    with taddons.context():
        yield FailedGreetings(clock, lambda host: host != "foreign.test")


def failed(host: str = "a.test", client: str = "10.0.0.1", error: str = UNKNOWN_CA) -> tls.TlsData:
    connection = tflow.tclient_conn()
    connection.peername = (client, 1234)
    connection.sni = host
    connection.error = error
    return tls.TlsData(connection, Context(connection, ctx.options))


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_line_names_client_host_authority_and_variables(
    greetings: FailedGreetings, caplog: pytest.LogCaptureFixture
) -> None:
    greetings.failed(failed())
    [line] = logged(caplog)
    for named in ("client=10.0.0.1", "host='a.test'", f"{CA_BASENAME}-ca-cert.pem", "NODE_EXTRA_CA_CERTS"):
        assert named in line
    assert line.endswith("see docs/troubleshooting.md (tlsv1 alert unknown ca)")


def test_a_client_and_a_host_have_one_line_a_minute(
    greetings: FailedGreetings, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for host, client in (("a.test", "10.0.0.1"), ("a.test", "10.0.0.1"), ("b.test", "10.0.0.1"), ("a.test", "::1")):
        greetings.failed(failed(host, client))
    assert len(logged(caplog)) == 3
    clock.now += PAUSE - 1
    greetings.failed(failed())
    assert len(logged(caplog)) == 3
    clock.now += 1
    greetings.failed(failed())
    assert len(logged(caplog)) == 4


def test_hosts_that_are_remembered_are_bounded(greetings: FailedGreetings, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(MAX_REMEMBERED + 1):
        greetings.failed(failed(f"{number}.test"))
    greetings.failed(failed("1.test"))
    assert len(logged(caplog)) == MAX_REMEMBERED + 1
    greetings.failed(failed("0.test"))
    assert len(logged(caplog)) == MAX_REMEMBERED + 2


def test_a_probe_that_sends_no_greeting_has_no_line(
    greetings: FailedGreetings, caplog: pytest.LogCaptureFixture
) -> None:
    greetings.failed(failed(error="connection closed early"))
    assert logged(caplog) == []


def test_a_hostile_name_is_quoted_and_cut(greetings: FailedGreetings, caplog: pytest.LogCaptureFixture) -> None:
    greetings.failed(failed("\x1b[2J\n" * 1000))
    [line] = logged(caplog)
    assert line.isprintable() and len(line) < 2000


def test_a_version_that_is_not_shared_is_no_matter_of_trust() -> None:
    error = "Client and mitmproxy cannot agree on a TLS version to use. You may need to adjust tls_version_client_min."
    line = message("10.0.0.1", "a.test", error, Path("ca.pem"))
    assert "tls_version_client_min" in line and "NODE_EXTRA_CA_CERTS" not in line


def test_a_host_that_the_authority_may_not_sign_for_has_its_own_advice(
    greetings: FailedGreetings, caplog: pytest.LogCaptureFixture
) -> None:
    greetings.failed(failed("foreign.test"))
    [line] = logged(caplog)
    assert "may not sign for this host" in line and "aibridge certs make --constrain" in line
