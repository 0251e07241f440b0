"""A private PostgreSQL server on a free port, made from the system's package, and databases in it."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
import trustme

from tests.support.polling import poll_until

INSTALLED = Path("/usr/lib/postgresql")
"""Where Debian's packages are, a folder for each version."""
MISSING = "PostgreSQL is not installed. On Debian: apt-get install postgresql"
UNPRIVILEGED = ("postgres", "nobody")
"""Users that the server may run as where the tests run as root, which PostgreSQL refuses."""
PORTS = range(20_000, 32_000)
"""Below the ports that the system gives to sockets, so that a stopped server finds its port free again."""
USER, PASSWORD = "bridge", "p@ss/word"
ADMINISTRATOR = "administrator"
OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "40",
    "shared_buffers": "16MB",
    "fsync": "off",
    "ssl": "on",
    "ssl_cert_file": "server.pem",
    "ssl_key_file": "server.key",
}
NO_OPTIONS: Mapping[str, str] = {}


def find_programs() -> Path | None:
    """Return the folder of the newest version's programs."""
    versions = sorted(INSTALLED.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class PostgresServer:
    """A cluster in a folder of its own. It speaks TLS with a certificate of an authority in `ca`."""

    def __init__(
        self, programs: Path, *, primary: PostgresServer | None = None, options: Mapping[str, str] = NO_OPTIONS
    ) -> None:
        """`primary`: this server is its standby. `options`: of the server, in place of ours."""
        self._programs = programs
        self._options = options
        self._user = _unprivileged()
        self._folder = Path(tempfile.mkdtemp(prefix="aibridge-postgres-"))
        self._folder.chmod(0o711)
        self.ca = self._folder / "ca.pem"
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._free: list[str] = []
        self.port = 0
        if primary is None:
            self._make_cluster()
        else:
            self._data.mkdir(mode=0o700)
            self._own(self._data)
            source = primary.url("postgres", ADMINISTRATOR)
            self._run(
                *(
                    "pg_basebackup",
                    "--pgdata",
                    str(self._data),
                    "--dbname",
                    source,
                    "--write-recovery-conf",
                    "--no-sync",
                ),
                *("--checkpoint=fast", "--wal-method=stream"),
            )

    def _make_cluster(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        self._data.mkdir(mode=0o700)
        self._own(self._data)
        self._own(password)
        made = ["--pgdata", str(self._data), "--username", ADMINISTRATOR, "--pwfile", str(password)]
        made += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"]
        self._run("initdb", *made)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        for name, content in (
            ("server.pem", b"".join(blob.bytes() for blob in certificate.cert_chain_pems)),
            ("server.key", certificate.private_key_pem.bytes()),
        ):
            file = self._data / name
            file.write_bytes(content)
            file.chmod(0o600)
            self._own(file)

    def _own(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _run(self, program: str, *arguments: str) -> None:
        ended = subprocess.run(
            [self._programs / program, *arguments], capture_output=True, text=True, cwd="/", **self._identity()
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def _identity(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def start(self) -> None:
        """Start on the port of the last start, at first on a free one, and wait until it answers.

        The server ends with the tests, also when they are killed.
        """
        self.port = self.port or _free_port()
        options = [
            part
            for name, value in {**OPTIONS, **self._options, "port": str(self.port)}.items()
            for part in ("-c", f"{name}={value}")
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "QUIT", self._programs / "postgres", "-D", str(self._data), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                **self._identity(),
            )
        try:
            poll_until(self._answers, 60, what="a connection to PostgreSQL")
        except TimeoutError:
            self.stop()
            raise AssertionError(self.log) from None

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log
        try:
            psycopg.connect(self.url("postgres", ADMINISTRATOR)).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """End all connections and the server, without a crash."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def crash(self) -> None:
        """End the server as a crash does. The next start recovers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)
        self._process = None

    @property
    def log(self) -> str:
        """All that the server has logged so far."""
        return (self._folder / "log").read_text(errors="replace")

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let the server's processes do nothing, as if the network had gone."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        processes = [server, *server.children()]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):  # one that was ending ends when its parent goes on
                    process.resume()

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        if self._process is not None:
            self.crash()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, database: str, user: str = USER, *, host: str = "127.0.0.1", options: str = "") -> str:
        password = PASSWORD.replace("@", "%40").replace("/", "%2F")
        return f"postgresql://{user}:{password}@{host}:{self.port}/{database}{options}"

    def administrate(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Execute a statement as superuser, and return its rows."""
        with psycopg.connect(self.url(database, ADMINISTRATOR), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def take_database(self) -> str:
        """Return the name of an empty database that an ordinary user owns. To make one takes longer than a test."""
        if self._free:
            return self._free.pop()
        if not self._databases:
            self.administrate(f"create role {USER} login password '{PASSWORD}'")
        self._databases += 1
        name = f"test_{self._databases}"
        self.administrate(f"create database {name} owner {USER}")
        return name

    def give_back(self, name: str) -> None:
        """Remove what is in a database and whom it is connected to."""
        self.disconnect(name)
        self.administrate(f"drop owned by {USER}", name)
        self._free.append(name)

    def disconnect(self, name: str) -> None:
        """End all connections to a database."""
        self.administrate(f"select pg_terminate_backend(pid, 30000) from pg_stat_activity where datname = '{name}'")

    @contextmanager
    def standby(self) -> Iterator[PostgresServer]:
        """Run a standby of this server, which has everything that this one has until it is stopped."""
        server = PostgresServer(self._programs, primary=self)
        try:
            server.start()
            yield server
        finally:
            server.remove()


@contextmanager
def running_server(options: Mapping[str, str] = NO_OPTIONS) -> Iterator[PostgresServer]:
    """Run a server. Without the package, skip the test, or fail it in CI."""
    programs = find_programs()
    if programs is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING, pytrace=False)
        pytest.skip(MISSING)
    server = PostgresServer(programs, options=options)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def _unprivileged() -> pwd.struct_passwd | None:
    """Return the user to run the server as. None: the user of the tests."""
    if os.geteuid() != 0:
        return None
    known = {user.pw_name: user for user in pwd.getpwall()}
    return next(known[name] for name in UNPRIVILEGED if name in known)


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port was found")
