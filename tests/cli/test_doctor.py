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
from dataclasses import replace
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
from aibridge_addon.cli.environment import JAVA_OPTIONS, Route, variables
from aibridge_addon.config.providers import DEFAULT_PROVIDERS, Provider
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.values import Listen
from aibridge_addon.credentials.name_constraints import Limits, name_constraints
from aibridge_addon.recording.database import token_store
from tests.conftest import MakeUpstream
from tests.support.authority import Authority
from tests.support.databases import PostgresDatabase
from tests.support.postgres import ADMINISTRATOR, PASSWORD, PostgresServer
from tests.support.stolen_key import ForgingProxy
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


def test_postgresql_is_shown_with_its_version(postgres: PostgresDatabase) -> None:
    check, newest = files.database(settings(database=postgres.url))
    version = str(postgres.query("show server_version")[0]["server_version"])
    assert check.ok and f"PostgreSQL {version}" in check.found and "not there yet" in check.found and newest is None
    token_store(settings(database=postgres.url))
    check, _ = files.database(settings(database=postgres.url))
    assert check.ok and "schema 0" in check.found and "password" not in check.found


@pytest.mark.parametrize("has_tables", [True, False])
def test_postgresql_that_refuses_rows_fails(has_tables: bool, postgres: PostgresDatabase) -> None:
    if has_tables:
        token_store(settings(database=postgres.url))
    name = f"reader_{postgres.name}"
    postgres.server.administrate(f"create role {name} login password '{PASSWORD}'")
    try:
        postgres.execute(f"grant select on all tables in schema public to {name}")
        check, _ = files.database(settings(database=postgres.server.url(postgres.name, name)))
    finally:
        postgres.server.administrate(f"drop owned by {name}", postgres.name)
        postgres.server.administrate(f"drop role {name}")
    assert not check.ok and f"the user {name} may not" in check.found and check.next_step


def test_postgresql_that_is_read_only_fails(postgres: PostgresDatabase) -> None:
    setting = f"alter database {postgres.name} set default_transaction_read_only"
    postgres.server.administrate(f"{setting} = on")
    try:
        check, _ = files.database(settings(database=postgres.url))
    finally:
        postgres.server.administrate(setting.replace(" set ", " reset "))
    assert not check.ok and "read-only" in check.found


def test_a_standby_fails(postgres_server: PostgresServer) -> None:
    with postgres_server.standby() as standby:
        check, _ = files.database(settings(database=standby.url("postgres", ADMINISTRATOR)))
    assert not check.ok and "standby" in check.found


def test_postgresql_that_does_not_answer_fails() -> None:
    check, _ = files.database(settings(database=f"postgresql://me:secret@127.0.0.1:{unused_port()}/bridge"))
    assert not check.ok and check.next_step and "secret" not in check.found


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


def test_a_provider_that_the_authority_may_not_sign_for_fails(tmp_path: Path) -> None:
    file = make_ca(tmp_path / "ca.pem", NOW - YEAR, NOW + YEAR)
    assert files.permitted_hosts(files.limits(file), DEFAULT_PROVIDERS) == []
    file = make_ca(tmp_path / "ca.pem", NOW - YEAR, NOW + YEAR, hosts=("api.anthropic.com",))
    providers = [each for each in DEFAULT_PROVIDERS if each.name == "openai"]
    [check] = files.permitted_hosts(files.limits(file), providers)
    assert not check.ok and "api.openai.com" in check.found and "aibridge certs make --constrain" in check.next_step
    own = Provider(name="a", type="anthropic", hosts=("api.anthropic.com",))
    assert [check.ok for check in files.permitted_hosts(files.limits(file), [own])] == [True]
    assert files.limits(tmp_path / "missing.pem") is None


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


def test_warnings_with_one_reason_are_one_line_with_all_hosts() -> None:
    away = [Check(f"provider {host}", True, "not reached: it cannot be reached", "check") for host in ("a", "b", "c")]
    late = Check("provider d", True, "not reached: no answer within 5 s", "check")
    well = [Check("provider e", True, "reached"), Check("provider f", True, "reached")]
    summed = Check("providers", True, "3 hosts, not reached: it cannot be reached: a, b, c", "check")
    assert network.summed_up([well[0], *away, late, well[1]]) == [well[0], summed, late, well[1]]
    assert network.summed_up([]) == []


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


@pytest.mark.parametrize("before", ["", "-Xmx1g"])
def test_an_option_of_java_is_named_within_its_variable(
    before: str, tmp_path: Path, make_ready: Callable[[str], Path]
) -> None:
    script = SCRIPT.replace('[ -n "$NEEDED" ]', 'echo "$JAVA_TOOL_OPTIONS" | grep -q "https.proxyHost.*trustStore"')
    [java] = [each for each in runtimes.RUNTIMES if each.name == "java"]
    with runtimes.Target() as target:
        environ = {"PATH": os.environ["PATH"], "TARGET": target.url, JAVA_OPTIONS: before}
        ours = variables(Route("http://127.0.0.1:8080", tmp_path / "bundle.pem"), environ)
        fake = replace(java, arguments=("{url}",))
        [check] = runtimes.check_all(target, environ, ours, [fake], lambda _: str(make_ready(script)))
    assert check.name == "java" and "-Djavax.net.ssl.trustStore in JAVA_TOOL_OPTIONS is missing" in check.next_step


@pytest.mark.parametrize("runtime", runtimes.RUNTIMES, ids=[each.name for each in runtimes.RUNTIMES])
def test_a_real_runtime_lacks_its_variable_alone(runtime: runtimes.Runtime, mitmproxy_ca: Path, tmp_path: Path) -> None:
    if shutil.which(runtime.program) is None:
        pytest.skip(f"{runtime.program} is not installed")
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    with ForgingProxy(mitmproxy_ca / "mitmproxy-ca.pem", [runtimes.HOST], tmp_path) as proxy:
        route = Route(proxy.url, tmp_path / "bundle.pem")
        roots.write_trusted(route.bundle, route.trust_store, roots.bundle(mitmproxy_ca / "mitmproxy-ca-cert.pem"))
        ours = variables(route, environ)
        [missing] = runtimes.check_all(proxy, environ, ours, [runtime])
        [there] = runtimes.check_all(proxy, environ | ours, ours, [runtime])
    assert not missing.ok and f"{runtime.variable} is missing" in missing.next_step
    assert there.ok, there


def test_the_host_of_the_measurement_is_one_for_which_the_authority_may_sign() -> None:
    assert runtimes.host(None) == runtimes.HOST
    found = Limits((name_constraints(["192.0.2.1", "api.anthropic.com"]),))
    assert runtimes.host(found) == "aibridge-doctor.api.anthropic.com" and found.permits_host(runtimes.host(found))


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


@pytest.mark.parametrize(("option", "own"), [("confdir=/x", "--confdir"), ("aibridge_config=x", "--config")])
def test_an_option_that_the_command_has_itself_is_named(
    option: str, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["doctor", "--set", option])
    assert f"use {own}" in capsys.readouterr().err


def test_options_of_mitmproxy_hold_for_the_hosts_of_providers(
    ca: Authority, mitmproxy_ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind another proxy, which only `mode` names, and with an authority that only an option names."""
    config = tmp_path / "aibridge.yaml"
    config.write_text(
        "providers: [{name: here, type: openai, base_url: 'https://localhost'}]\nmetrics: {listen: null}\n"
    )
    with Tunnel(ca.server_context()) as port:
        options = [f"mode=upstream:http://127.0.0.1:{port}", f"ssl_verify_upstream_trusted_ca={ca.pem}"]
        sets = [word for option in options for word in ("--set", option)]
        database = f"sqlite:///{tmp_path}/a.db"
        places = ["--confdir", str(mitmproxy_ca), "--config", str(config), "--database", database]
        cli.main(["doctor", "--json", "--port", str(unused_port()), *places, *sets])
    checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert "certificate verified" in checks["provider localhost"]["found"]


def test_without_an_authority_all_else_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = f"sqlite:///{tmp_path}/a.db"
    assert cli.main(["doctor", "--confdir", str(tmp_path), "--database", database, "--port", str(unused_port())]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("FAIL certificate authority")] and os.listdir(tmp_path) == []
    marks = {line[:4] for line in lines if line[:4].strip()}
    assert "ok  " in marks and all(line[5] != " " or "→" in line for line in lines)
