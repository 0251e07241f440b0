"""Fixtures for tests that run a proxy, and Hypothesis profiles (`HYPOTHESIS_PROFILE=ci`)."""

import itertools
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Protocol, Unpack, cast

import pytest
from hypothesis import settings

from aibridge_addon.proxy.stream.short_way import SWITCH
from tests.support.authority import Authority
from tests.support.databases import Database, PostgresDatabase, SqliteDatabase
from tests.support.in_process import InProcessProxy
from tests.support.mitmdump import Mitmdump, make_mitmproxy_ca
from tests.support.postgres import PostgresServer, running_server
from tests.support.running import Exit, ProxyOptions, RunningProxy
from tests.support.upstream import ScriptedUpstream, UpstreamOptions

# Time limits are pytest-timeout's: a deadline per example fails on a busy machine.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

_PROXIES = pytest.StashKey[list[RunningProxy]]()


class MakeUpstream(Protocol):
    def __call__(self, **options: Unpack[UpstreamOptions]) -> ScriptedUpstream: ...


class StartProxy(Protocol):
    def __call__(
        self, *, folder: Path | None = None, allow_traceback: bool = False, **options: Unpack[ProxyOptions]
    ) -> InProcessProxy: ...


class StartMitmdump(Protocol):
    def __call__(
        self, *, folder: Path | None = None, allow_traceback: bool = False, **options: Unpack[ProxyOptions]
    ) -> Mitmdump: ...


class RunToExit(Protocol):
    def __call__(self, **options: Unpack[ProxyOptions]) -> Exit: ...


def pytest_configure(config: pytest.Config) -> None:
    # A proxy's threads are those of the test's process.
    config.addinivalue_line("filterwarnings", "error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each proxy's log where a test failed."""
    report = yield
    if report.failed and call.when == "call":
        for proxy in item.stash.get(_PROXIES, []):
            report.sections.append((f"the proxy in {proxy.folder.name}", proxy.log_tail))
    return report


@pytest.fixture(params=["short way", "ordinary way"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let streamed answers take each way in turn. Request it before the proxy or the layer is created."""
    monkeypatch.setenv(SWITCH, "1" if request.param == "ordinary way" else "0")


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of all scripted upstreams."""
    return Authority(tmp_path_factory.mktemp("upstream-ca"))


@pytest.fixture(scope="session")
def mitmproxy_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mitmproxy_ca(tmp_path_factory.mktemp("mitmproxy-ca"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole session. A test that stops it starts it again."""
    with running_server() as server:
        yield server


@pytest.fixture
def postgres(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PostgresDatabase]:
    """An empty PostgreSQL database. Its spool is in the test's folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    name = postgres_server.take_database()
    yield PostgresDatabase(postgres_server, name)
    postgres_server.give_back(name)


@pytest.fixture
def other_postgres(postgres_server: PostgresServer, postgres: PostgresDatabase) -> Iterator[PostgresDatabase]:
    """A second empty database, to move rows between the two."""
    name = postgres_server.take_database()
    yield PostgresDatabase(postgres_server, name)
    postgres_server.give_back(name)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """Each database in turn, empty."""
    if request.param == "sqlite":
        return SqliteDatabase(tmp_path / "aibridge.db")
    return cast(PostgresDatabase, request.getfixturevalue("postgres"))


@pytest.fixture
def make_upstream(ca: Authority) -> Iterator[MakeUpstream]:
    """Start scripted upstreams: with TLS, HTTP/2 and HTTP/1.1, unless options say otherwise."""
    with ExitStack() as stack:

        def make(**options: Unpack[UpstreamOptions]) -> ScriptedUpstream:
            if "authority" not in options:
                options["authority"] = ca
            return stack.enter_context(ScriptedUpstream(**options))

        yield make


@pytest.fixture
def no_proxy_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDKs' own HTTP clients look at the environment first."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream()


class Proxies[Kind: InProcessProxy | Mitmdump]:
    """Start proxies; one that logged a traceback fails the test, unless it is allowed to."""

    def __init__(self, kind: type[Kind], folder: Path, proxies: list[RunningProxy], defaults: ProxyOptions) -> None:
        self._kind = kind
        self._folder = folder
        self._proxies = proxies
        self._defaults = defaults
        self._stack = ExitStack()
        self._strict: list[Kind] = []

    def __call__(
        self, *, folder: Path | None = None, allow_traceback: bool = False, **options: Unpack[ProxyOptions]
    ) -> Kind:
        if folder is None:
            folder = self._folder / f"proxy-{len(self._proxies) + 1}"
            folder.mkdir()
        merged: ProxyOptions = {**self._defaults, **options}
        proxy = self._kind(folder, **merged)
        self._proxies.append(proxy)
        self._stack.enter_context(proxy)
        if not allow_traceback:
            self._strict.append(proxy)
        return proxy

    def close(self) -> None:
        self._stack.close()
        for proxy in self._strict:
            if proxy.has_traceback:
                pytest.fail(f"the proxy logged a traceback:\n{proxy.log_tail}", pytrace=False)


@pytest.fixture
def start_proxy(
    request: pytest.FixtureRequest, ca: Authority, mitmproxy_ca: Path, tmp_path: Path
) -> Iterator[StartProxy]:
    """Start a proxy in this process, one at a time."""
    started = request.node.stash.setdefault(_PROXIES, [])
    proxies = Proxies(InProcessProxy, tmp_path, started, {"upstream_ca": ca.pem, "mitmproxy_ca": mitmproxy_ca})
    with closing(proxies):
        yield proxies


@pytest.fixture
def mitmdump(
    request: pytest.FixtureRequest, ca: Authority, mitmproxy_ca: Path, tmp_path: Path
) -> Iterator[StartMitmdump]:
    """Start mitmdump processes, for what a proxy in this process cannot show."""
    started = request.node.stash.setdefault(_PROXIES, [])
    proxies = Proxies(Mitmdump, tmp_path, started, {"upstream_ca": ca.pem, "mitmproxy_ca": mitmproxy_ca})
    with closing(proxies):
        yield proxies


@pytest.fixture
def run_to_exit(mitmproxy_ca: Path, tmp_path: Path) -> RunToExit:
    """Run a proxy in this process where it is expected to end by itself, as with a wrong configuration."""
    return _runs(InProcessProxy, tmp_path, mitmproxy_ca)


@pytest.fixture
def run_mitmdump_to_exit(mitmproxy_ca: Path, tmp_path: Path) -> RunToExit:
    """Run mitmdump where it is expected to end by itself."""
    return _runs(Mitmdump, tmp_path, mitmproxy_ca)


def _runs(kind: type[InProcessProxy] | type[Mitmdump], tmp_path: Path, mitmproxy_ca: Path) -> RunToExit:
    numbers = itertools.count(1)

    def run(**options: Unpack[ProxyOptions]) -> Exit:
        folder = tmp_path / f"exit-{next(numbers)}"
        folder.mkdir()
        merged: ProxyOptions = {"mitmproxy_ca": mitmproxy_ca, **options}
        return kind(folder, **merged).run_to_exit()

    return run
