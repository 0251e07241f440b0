"""The checks of `aibridge doctor`, each in a good and in a bad state."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import ssl
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aibridge_addon import cli
from aibridge_addon.cli import doctor, roots
from aibridge_addon.cli.diagnosis import files, network, runtimes, traps
from aibridge_addon.cli.diagnosis.check import Check
from aibridge_addon.config.providers import DEFAULT_PROVIDERS
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.values import Listen
from aibridge_addon.recording.database import token_store
from tests.conftest import MakeUpstream
from tests.support.authority import Authority
from tests.support.upstream import Answer, unused_port

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def settings(**values: object) -> Settings:
    return Settings.model_validate(values)


def at(file: Path, **values: object) -> Settings:
    return settings(database=f"sqlite:///{file}", **values)


# --- database and spool ----------------------------------------------------------------------------------------------


def test_a_database_that_is_not_there_is_not_created(tmp_path: Path) -> None:
    check, _ = files.database(at(tmp_path / "new.db"))
    assert check.ok and "is created at the first start" in check.found and os.listdir(tmp_path) == []


def test_a_database_is_shown_with_its_schema(tmp_path: Path) -> None:
    token_store(at(tmp_path / "a.db"))
    check, newest = files.database(at(tmp_path / "a.db"))
    assert check.ok and "schema 0" in check.found and "MiB free" in check.found and newest is None


def test_a_database_of_a_newer_version_fails(tmp_path: Path) -> None:
    token_store(at(tmp_path / "a.db"))
    with sqlite3.connect(tmp_path / "a.db") as db:
        db.execute("insert into _sqlite_migrations select max(id) + 1, migration_set, '999_later', applied_at "
                   "from _sqlite_migrations limit 1")  # fmt: skip
    db.close()
    check, _ = files.database(at(tmp_path / "a.db"))
    assert not check.ok and "999_later" in check.found


def test_what_is_no_database_fails(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("text " * 1000)
    assert not files.database(at(tmp_path / "text.db"))[0].ok
    assert files.database(at(tmp_path))[0].found.endswith("is a folder")
    assert "does not exist" in files.database(at(tmp_path / "no" / "a.db"))[0].found


def test_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(5 << 20))
    check, _ = files.database(at(tmp_path / "a.db"))
    assert not check.ok and check.found.startswith("5 MiB free") and check.next_step


def test_a_spool_needs_a_folder(tmp_path: Path) -> None:
    assert files.spool(at(tmp_path / "a.db")).ok
    (tmp_path / "file").touch()
    bad = at(tmp_path / "a.db", recording={"spool": {"path": str(tmp_path / "file" / "spool")}})
    assert not files.spool(bad).ok


# --- certificate authority and clock ---------------------------------------------------------------------------------


def make_ca(file: Path, begins: datetime, ends: datetime, *, signs: bool = True, hosts: tuple[str, ...] = ()) -> Path:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, begins, ends)
    made = made.add_extension(x509.BasicConstraints(signs, None), critical=True)
    if hosts:
        limits = x509.NameConstraints([x509.DNSName(host) for host in hosts], None)
        made = made.add_extension(limits, critical=True)
    file.with_name("mitmproxy-ca.pem").touch()
    file.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return file


YEAR = timedelta(days=365)


def test_an_authority_is_shown_with_what_it_may_sign(tmp_path: Path) -> None:
    file = make_ca(tmp_path / "ca.pem", NOW - YEAR, NOW + YEAR)
    check, begins = files.authority(file, NOW)
    assert check.ok and "for every host" in check.found and begins == NOW - YEAR
    file = make_ca(tmp_path / "ca.pem", NOW - YEAR, NOW + YEAR, hosts=("api.anthropic.com",))
    assert "for these hosts only: api.anthropic.com" in files.authority(file, NOW)[0].found


@pytest.mark.parametrize("state", ["missing", "expired", "no authority", "no certificate", "no key"])
def test_an_authority_that_cannot_be_used_fails(state: str, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    if state == "no certificate":
        file.write_text("text")
    elif state != "missing":
        ends = NOW - timedelta(1) if state == "expired" else NOW + YEAR
        make_ca(file, NOW - YEAR, ends, signs=state != "no authority")
    if state == "no key":
        (tmp_path / "mitmproxy-ca.pem").unlink()
    check, _ = files.authority(file, NOW)
    assert not check.ok and check.next_step


def test_an_authority_that_expires_soon_is_a_warning(tmp_path: Path) -> None:
    check, _ = files.authority(make_ca(tmp_path / "ca.pem", NOW - YEAR, NOW + timedelta(5)), NOW)
    assert check.is_warning


def test_a_clock_before_what_has_been_fails() -> None:
    assert files.clock(NOW, [None, NOW - YEAR, NOW + timedelta(minutes=1)]).ok
    assert not files.clock(NOW, [None, NOW + YEAR]).ok
    assert files.clock(NOW, []).ok


# --- addresses -------------------------------------------------------------------------------------------------------


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


class Tunnel:
    """A proxy that accepts a CONNECT and is itself the server at its other end."""

    def __init__(self, context: ssl.SSLContext) -> None:
        import threading

        self._context = context
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            try:
                self._context.wrap_socket(connection, server_side=True).close()
            except OSError:
                pass  # the client does not trust the certificate

    def __enter__(self) -> int:
        self._thread.start()
        port: int = self._server.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._server.close()


def test_a_provider_that_is_not_reached_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "TIMEOUT", 0.2)
    jobs = network.providers(settings(), unused_port())
    assert len(jobs) > 5 and all(check.is_warning for check in network.in_parallel(jobs))
    with silent_listener() as port:
        assert all("no answer" in check.found for check in network.in_parallel(network.providers(settings(), port)))


# --- traps -----------------------------------------------------------------------------------------------------------


def trapped(environ: dict[str, str], home: Path) -> list[Check]:
    return traps.traps(environ, home, DEFAULT_PROVIDERS)


def test_an_environment_without_traps_is_well(tmp_path: Path, ca: Authority) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(roots.bundle(ca.pem))
    environ = {"SSL_CERT_FILE": str(bundle), "NODE_EXTRA_CA_CERTS": str(ca.pem), "HTTPS_PROXY": "http://127.0.0.1:8080"}
    assert trapped(environ | {"NO_PROXY": "localhost"}, tmp_path) == [Check("environment", True, "no known trap")]


def test_each_trap_is_named(tmp_path: Path, ca: Authority) -> None:
    der = tmp_path / "ca.pem"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(trustme.CA().cert_pem.bytes().decode()))
    environ = {
        "HTTPS_PROXY": "https://127.0.0.1:8080",
        "NODE_EXTRA_CA_CERTS": str(der),
        "SSL_CERT_FILE": str(ca.pem),
        "CURL_CA_BUNDLE": str(tmp_path / "missing.pem"),
        "NO_PROXY": "localhost,.anthropic.com",
    }
    found = {check.name: check for check in trapped(environ, tmp_path)}
    assert set(found) == set(environ) and not any(check.ok for check in found.values())
    assert "DER" in found["NODE_EXTRA_CA_CERTS"].found and "lacks" in found["SSL_CERT_FILE"].found
    assert ".anthropic.com" in found["NO_PROXY"].found and all(check.next_step for check in found.values())


@pytest.mark.parametrize("content", ['{"env": {"HTTPS_PROXY": "x", "OTHER": "y"}}', "{", "[]", '{"env": 1}', "\xff"])
def test_variables_of_claude_codes_settings_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude" / "settings.json").write_text(content, "latin-1")
    [check] = trapped({}, tmp_path)
    assert check.ok and check.is_warning == ("HTTPS_PROXY" in content)


# --- runtimes and programs -------------------------------------------------------------------------------------------

SCRIPT = """#!/bin/sh
[ -n "$NEEDED" ] || { echo "certificate \\033[31mrefused" >&2; exit 1; }
exec curl -sS --noproxy '*' -o /dev/null "$TARGET/$(echo "$1" | cut -d/ -f4-)"
"""


@pytest.mark.parametrize(
    ("before", "ours", "step"),
    [
        ({"NEEDED": "1"}, {}, ""),
        ({}, {"NEEDED": "1"}, "NEEDED is missing"),
        ({"NO_PROXY": "*"}, {}, "look at NO_PROXY"),
    ],
)
def test_a_runtime_is_measured(
    before: dict[str, str], ours: dict[str, str], step: str, tmp_path: Path, make_ready: Callable[[str], Path]
) -> None:
    program = make_ready(SCRIPT)
    runtime = runtimes.Runtime("fake", "fake", ("{url}",), "NEEDED")
    with runtimes.Target() as target:
        environ = {"PATH": os.environ["PATH"], "TARGET": target.url, **before}
        added = {"HTTPS_PROXY": "http://proxy", "https_proxy": "http://proxy", "NEEDED": "", **ours}
        [check] = runtimes.check_all(target, environ, added, [runtime], lambda _: str(program))
    assert check.ok == (not step) and step in check.next_step and "\x1b" not in check.found


@pytest.fixture
def make_ready(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        file = tmp_path / "program"
        file.write_text(text)
        file.chmod(0o755)
        return file

    return make


def test_runtimes_that_are_not_there_are_left_out() -> None:
    with runtimes.Target() as target:
        assert runtimes.check_all(target, {}, {}, which=lambda _: None) == []


@pytest.mark.parametrize(
    ("requests", "log", "found"),
    [
        (2, "", "2 requests recorded"),
        (0, "client connect\nClient TLS handshake failed.", "refuses the proxy's certificate"),
        (0, "client connect", "for other hosts only"),
        (0, "", "went past the proxy"),
    ],
)
def test_a_program_without_requests_fails_with_a_reason(requests: int, log: str, found: str) -> None:
    check = doctor._verdict("program", 0, requests, log)
    assert check.ok == bool(requests) and found in check.found


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_wrong_configuration_is_the_only_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "aibridge.yaml"
    file.write_text("recording: {prompt: true}\n")
    assert cli.main(["doctor", "--json", "--config", str(file)]) == 1
    found = json.loads(capsys.readouterr().out)
    [check] = found["checks"]
    assert found["ok"] is check["ok"] is False and "recording.prompt" in check["found"] and check["next_step"]


def test_without_an_authority_all_else_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = f"sqlite:///{tmp_path}/a.db"
    assert cli.main(["doctor", "--confdir", str(tmp_path), "--database", database, "--port", str(unused_port())]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("FAIL certificate authority")] and os.listdir(tmp_path) == []
    marks = {line[:4] for line in lines if line[:4].strip()}
    assert "ok  " in marks and all(line[5] != " " or "→" in line for line in lines)
