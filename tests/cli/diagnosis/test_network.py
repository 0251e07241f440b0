"""Checks of addresses, each in a good and in a bad state."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aibridge_addon.cli.diagnosis import network
from aibridge_addon.cli.diagnosis.check import Check
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.values import Listen
from tests.conftest import MakeUpstream
from tests.support.authority import Authority
from tests.support.tunnel import Tunnel
from tests.support.upstream import Answer, unused_port

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def settings(**values: object) -> Settings:
    return Settings.model_validate(values)


def at(file: Path, **values: object) -> Settings:
    return settings(database=f"sqlite:///{file}", **values)


@contextmanager
def silent_listener() -> Iterator[int]:
    """Accept connections, and close them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_is_free_or_the_bridges(make_upstream: MakeUpstream) -> None:
    assert network.proxy_port(unused_port()).ok
    upstream = make_upstream(authority=None)
    upstream.answer(
        Answer.json({"error": {"type": "not_found_error"}}, status=404), Answer.json({"hello": "from another"})
    )
    assert network.proxy_port(upstream.port).found.startswith("the proxy answers")
    assert network.proxy_port(upstream.port).found.endswith("is used by another program")


def test_a_port_that_does_not_answer_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "TIMEOUT", 0.2)
    with silent_listener() as port:
        assert not network.proxy_port(port).ok
        assert not network.metrics(Listen("127.0.0.1", port), "aibridge_").ok


def test_a_metrics_address_is_free_or_has_metrics(make_upstream: MakeUpstream) -> None:
    assert network.metrics(None, "aibridge_").ok
    assert network.metrics(Listen("127.0.0.1", unused_port()), "aibridge_").ok
    upstream = make_upstream(authority=None)
    upstream.answer(Answer.json("# TYPE aibridge_x counter"), Answer.json("another"))
    assert network.metrics(Listen("127.0.0.1", upstream.port), "aibridge_").ok
    assert not network.metrics(Listen("127.0.0.1", upstream.port), "aibridge_").ok


def test_mcp_servers_are_looked_for(make_upstream: MakeUpstream) -> None:
    upstream = make_upstream(authority=None)
    upstream.answer(Answer.json({}, status=401))
    there = f"http://127.0.0.1:{upstream.port}/mcp"
    found = settings(
        mcp={
            "servers": {
                "here": {"command": sys.executable},
                "missing": {"command": "no-such-program-anywhere"},
                "answers": {"url": there},
                "away": {"url": f"http://127.0.0.1:{unused_port()}/mcp"},
            }
        }
    )
    checks = network.in_parallel(network.mcp_servers(found))
    assert [check.ok for check in checks] == [True, False, True, False]
    assert len(network.mcp_servers(found, offline=True)) == 2


@pytest.mark.parametrize("trusted", [True, False])
def test_a_provider_is_reached_with_verification(
    trusted: bool, ca: Authority, make_upstream: MakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stands for the proxy, too: what a CONNECT answers is scripted."""
    provider = {"name": "here", "type": "openai", "base_url": "https://localhost"}
    with Tunnel(ca.server_context()) as port:
        file = str(ca.pem) if trusted else None
        [check] = network.in_parallel(network.providers(settings(providers=[provider]), port, file))
    assert check.ok and check.is_warning != trusted
    assert ("certificate verified" if trusted else "is not trusted") in check.found


def test_a_provider_without_tls_is_reached_or_a_warning() -> None:
    with silent_listener() as there:
        away = unused_port()
        given = [
            {"name": f"p{port}", "type": "openai", "base_url": f"http://127.0.0.1:{port}"} for port in (there, away)
        ]
        checks = network.in_parallel(network.providers(settings(providers=given), unused_port()))
    assert [check.name for check in checks] == [f"provider 127.0.0.1:{port}" for port in (there, away)]
    assert [check.is_warning for check in checks] == [False, True]
    assert "refused" in checks[1].found


def test_a_provider_that_is_not_reached_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "TIMEOUT", 0.2)
    jobs = network.providers(settings(), unused_port())
    assert len(jobs) > 5 and all(check.is_warning for check in network.in_parallel(jobs))
    with silent_listener() as port:
        assert all("no answer" in check.found for check in network.in_parallel(network.providers(settings(), port)))


def test_warnings_with_one_reason_are_one_line_with_all_hosts() -> None:
    away = [Check(f"provider {host}", True, "not reached: it cannot be reached", "check") for host in ("a", "b", "c")]
    late = Check("provider d", True, "not reached: no answer within 5 s", "check")
    well = [Check("provider e", True, "reached"), Check("provider f", True, "reached")]
    summed = Check("providers", True, "3 hosts, not reached: it cannot be reached: a, b, c", "check")
    assert network.summed_up([well[0], *away, late, well[1]]) == [well[0], summed, late, well[1]]
    assert network.summed_up([]) == []
