"""Checks of what lies on this machine: the database, the spool, the certificate authority and the clock."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from aibridge_addon.cli.authority import WITH_KEY, permitted
from aibridge_addon.cli.diagnosis.check import Check, shown
from aibridge_addon.config.errors import ConfigError
from aibridge_addon.config.providers import Provider
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.subtrees import not_permitted
from aibridge_addon.credentials.name_constraints import NEXT_STEP, Limits, limits_of, some
from aibridge_addon.recording.database import queries, spool_folder
from aibridge_addon.recording.newer import check_steps
from aibridge_addon.recording.queries import has_table
from aibridge_addon.records import DatabaseUnavailable

LEAST_SPACE = 100 << 20
"""Bytes. Less free space is a failure."""
EXPIRES_SOON = timedelta(days=30)
CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far the clocks of two machines that write to one database may differ."""
MIB = 1 << 20

POSTGRES = """
    select current_setting('server_version') as version, current_user as person, pg_is_in_recovery() as is_standby,
           coalesce(has_schema_privilege(current_schema(), 'create'), false) as may_create,
           coalesce(has_table_privilege(to_regclass('aibridge_interceptions'), 'insert')
                    and has_table_privilege(to_regclass('aibridge_interceptions'), 'update'), false) as may_insert,
           exists (
               select 1 from pg_db_role_setting
               where setdatabase in (0, (select oid from pg_database where datname = current_database()))
                 and setrole in (0, (select oid from pg_roles where rolname = current_user))
                 and 'default_transaction_read_only=on' = any(setconfig)
           ) as is_read_only
"""
"""Whether rows can be written, read in a transaction that writes nothing."""

Found = tuple[Check, datetime | None]
"""A check, and a time in the past that the clock must not be before."""


def database(settings: Settings) -> Found:
    name = "database"
    file = settings.database.sqlite_path
    if file is not None:
        if (wrong := _not_writable(file)) is not None:
            return Check(name, False, wrong, "grant this user write access, or set another `database`"), None
        free = shutil.disk_usage(_existing(file)).free
        if free < LEAST_SPACE:
            return Check(name, False, f"{free // MIB} MiB free at {file}", "free some space on this disk"), None
        if not file.exists():
            return Check(name, True, f"{file} is created at the first start; {free // MIB} MiB free"), None
    try:
        with queries(settings) as rows:
            table = "_aibridge_migrations" if rows.postgres else "_sqlite_migrations"
            steps = (
                [row["name"] for row in rows.select(f"select name from {table}")]  # noqa: S608 (names are ours)
                if has_table(rows, table)
                else []
            )
            check_steps(steps, _known_steps(postgres=rows.postgres))
            sql = "select max(started_at) as newest from aibridge_interceptions"
            newest = next(iter(rows.select(sql)), {}).get("newest") if steps else None
            server = next(iter(rows.select(POSTGRES))) if rows.postgres else {}
    except DatabaseUnavailable as e:
        return Check(name, False, shown(e), "see the reason; docs/troubleshooting.md lists what to do"), None
    except ConfigError as e:
        return Check(name, False, shown(e), "change `database` in the configuration"), None
    place = f"{settings.database}, schema {max(steps, default='not there yet')}"
    if file is not None:
        return Check(name, True, f"{place}, {free // MIB} MiB free"), _time(newest)
    place += f", PostgreSQL {shown(server['version'])}"
    if (wrong := _refuses_rows(server, has_tables=bool(steps))) is not None:
        return Check(name, False, f"{place}: {wrong}", "name the primary, or grant this user the rights"), _time(newest)
    return Check(name, True, place), _time(newest)


def _refuses_rows(server: Mapping[str, Any], *, has_tables: bool) -> str | None:
    """Return why PostgreSQL would refuse rows. None: nothing is known."""
    if server["is_standby"]:
        return "it is a standby, which cannot be written to"
    if server["is_read_only"]:
        return "transactions are read-only (default_transaction_read_only)"
    if has_tables and not server["may_insert"]:
        return f"the user {shown(server['person'])} may not write to aibridge_interceptions"
    if not has_tables and not server["may_create"]:
        return f"the user {shown(server['person'])} may not create tables in this schema"
    return None


def _known_steps(*, postgres: bool) -> list[str]:
    if postgres:
        from aibridge_addon.recording.postgres.migrations import STEPS

        return [name for name, _ in STEPS]
    from aibridge_addon.recording.sqlite.migrations import steps

    return [step.name for step in steps._migrations]


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    found = datetime.fromisoformat(text)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _not_writable(file: Path) -> str | None:
    if file.is_dir():
        return f"{file} is a folder"
    if file.exists() and not os.access(file, os.R_OK | os.W_OK):
        return f"{file} cannot be read and written"
    folder = file.absolute().parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"the folder {folder} cannot be written to"


def spool(settings: Settings) -> Check:
    name = "spool"
    try:
        folder = spool_folder(settings)
    except ConfigError as e:
        return Check(name, False, shown(e), "set `recording.spool.path` in the configuration")
    nearest = _existing(folder)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Check(name, False, f"{nearest} cannot be written to", "grant access, or set `recording.spool.path`")
    return Check(name, True, str(folder) if folder.exists() else f"{folder} is created when it is needed")


def authority(certificate: Path, now: datetime) -> Found:
    """Check the certificate authority in mitmproxy's folder."""
    name = "certificate authority"
    again = "delete the files of the authority and start the proxy, which makes a new one"
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except FileNotFoundError:
        step = "`aibridge certs make` makes it; so do the proxy and `aibridge run` at their first start"
        return Check(name, False, f"{certificate} does not exist", step), None
    except OSError as e:
        return Check(name, False, f"{certificate}: {e.strerror}", "grant this user read access"), None
    except ValueError:
        return Check(name, False, f"{certificate} is not a certificate in PEM form", again), None
    begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
    if not os.access(certificate.with_name(WITH_KEY), os.R_OK):
        step = f"copy {WITH_KEY} back, or name the proxy's folder with --confdir"
        return Check(name, False, f"{certificate.with_name(WITH_KEY)} cannot be read: the key is missing", step), begins
    if not _may_sign(found):
        return Check(name, False, f"{certificate} must not sign certificates", again), begins
    if ends < now:
        return Check(name, False, f"expired on {ends:%Y-%m-%d}", again), begins
    try:
        limits = limits_of([found])
    except ValueError as e:
        return Check(name, False, f"{certificate}: {shown(e)}", again), begins
    signs = "for every host" if limits is None else f"for these hosts only: {some(permitted(limits))}"
    step = f"it expires soon: {again}" if ends - now < EXPIRES_SOON else ""
    return Check(name, True, f"{certificate}, valid until {ends:%Y-%m-%d}, may sign {signs}", step), begins


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def permitted_hosts(found: Limits | None, providers: Iterable[Provider]) -> list[Check]:
    """Check whether an authority with constraints may sign for the hosts of all providers."""
    if found is None:
        return []
    name = "permitted hosts"
    if missing := not_permitted(providers, found.permits_host):
        return [Check(name, False, f"the authority may not sign for {some(missing)}", NEXT_STEP)]
    return [Check(name, True, "the authority may sign for the hosts of all providers")]


def clock(now: datetime, past: Iterable[datetime | None]) -> Check:
    """`past`: times that have been, such as the beginning of the authority's validity."""
    newest = max((each for each in past if each is not None), default=None)
    if newest is not None and newest - now > CLOCK_TOLERANCE:
        found = f"{now:%Y-%m-%d %H:%M} UTC is before {newest:%Y-%m-%d %H:%M} UTC, when something was written"
        return Check("clock", False, found, "set the system's clock: certificates and rows depend on it")
    return Check("clock", True, f"{now:%Y-%m-%d %H:%M} UTC")
