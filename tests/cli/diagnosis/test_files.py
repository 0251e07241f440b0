"""Checks of what lies on this machine, each in a good and in a bad state."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aibridge_addon.cli import authority
from aibridge_addon.cli.diagnosis import files
from aibridge_addon.config.providers import DEFAULT_PROVIDERS, Provider
from aibridge_addon.config.schema import Settings
from aibridge_addon.recording.database import token_store
from tests.support.databases import PostgresDatabase
from tests.support.postgres import ADMINISTRATOR, PASSWORD, PostgresServer
from tests.support.upstream import unused_port

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def settings(**values: object) -> Settings:
    return Settings.model_validate(values)


def at(file: Path, **values: object) -> Settings:
    return settings(database=f"sqlite:///{file}", **values)


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
    assert files.permitted_hosts(authority.limits(file), DEFAULT_PROVIDERS) == []
    file = make_ca(tmp_path / "ca.pem", NOW - YEAR, NOW + YEAR, hosts=("api.anthropic.com",))
    providers = [each for each in DEFAULT_PROVIDERS if each.name == "openai"]
    [check] = files.permitted_hosts(authority.limits(file), providers)
    assert not check.ok and "api.openai.com" in check.found and "aibridge certs make --constrain" in check.next_step
    own = Provider(name="a", type="anthropic", hosts=("api.anthropic.com",))
    assert [check.ok for check in files.permitted_hosts(authority.limits(file), [own])] == [True]
    assert authority.limits(tmp_path / "missing.pem") is None


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
