"""Fixtures for tests that run real processes, and Hypothesis profiles (`HYPOTHESIS_PROFILE=ci`)."""

import itertools
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Unpack

import pytest
from hypothesis import settings

from tests.support.authority import Authority
from tests.support.mitmdump import Exit, Mitmdump, MitmdumpOptions, make_mitmproxy_ca
from tests.support.upstream import ScriptedUpstream, UpstreamOptions

# Time limits are pytest-timeout's: a deadline per example fails on a busy machine.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

_PROCESSES = pytest.StashKey[list[Mitmdump]]()


class MakeUpstream(Protocol):
    def __call__(self, **options: Unpack[UpstreamOptions]) -> ScriptedUpstream: ...


class StartMitmdump(Protocol):
    def __call__(
        self, *, folder: Path | None = None, allow_traceback: bool = False, **options: Unpack[MitmdumpOptions]
    ) -> Mitmdump: ...


class RunToExit(Protocol):
    def __call__(self, **options: Unpack[MitmdumpOptions]) -> Exit: ...


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each mitmdump's log where a test failed."""
    report = yield
    if report.failed and call.when == "call":
        for process in item.stash.get(_PROCESSES, []):
            report.sections.append((f"mitmdump in {process.folder.name}", process.log_tail))
    return report


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of all scripted upstreams."""
    return Authority(tmp_path_factory.mktemp("upstream-ca"))


@pytest.fixture(scope="session")
def mitmproxy_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mitmproxy_ca(tmp_path_factory.mktemp("mitmproxy-ca"))


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
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream()


@pytest.fixture
def mitmdump(
    request: pytest.FixtureRequest, ca: Authority, mitmproxy_ca: Path, tmp_path: Path
) -> Iterator[StartMitmdump]:
    """Start mitmdump processes; one that logged a traceback fails the test, unless it is allowed to."""
    started: list[tuple[Mitmdump, bool]] = []
    numbers = itertools.count(1)
    processes = request.node.stash.setdefault(_PROCESSES, [])
    with ExitStack() as stack:

        def start(
            *, folder: Path | None = None, allow_traceback: bool = False, **options: Unpack[MitmdumpOptions]
        ) -> Mitmdump:
            if folder is None:
                folder = tmp_path / f"mitmdump-{next(numbers)}"
                folder.mkdir()
            defaults: MitmdumpOptions = {"upstream_ca": ca.pem, "mitmproxy_ca": mitmproxy_ca}
            merged: MitmdumpOptions = {**defaults, **options}
            process = Mitmdump(folder, **merged)
            processes.append(process)
            stack.enter_context(process)
            started.append((process, allow_traceback))
            return process

        yield start
    for process, allow_traceback in started:
        if process.has_traceback and not allow_traceback:
            pytest.fail(f"mitmdump logged a traceback:\n{process.log_tail}", pytrace=False)


@pytest.fixture
def run_to_exit(mitmproxy_ca: Path, tmp_path: Path) -> RunToExit:
    """Run mitmdump where it is expected to end by itself, as with a wrong configuration."""
    numbers = itertools.count(1)

    def run(**options: Unpack[MitmdumpOptions]) -> Exit:
        folder = tmp_path / f"exit-{next(numbers)}"
        folder.mkdir()
        defaults: MitmdumpOptions = {"mitmproxy_ca": mitmproxy_ca}
        merged: MitmdumpOptions = {**defaults, **options}
        return Mitmdump(folder, **merged).run_to_exit()

    return run
