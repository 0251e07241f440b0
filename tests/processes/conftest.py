"""What tests with real processes report: each round of a soak while it runs, and its counts at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import astuple

import pytest
from _pytest.terminal import TerminalReporter

from tests.processes.kills import SOAK, Counts, Load

KILLS = "kills"
"""Name of a test's property with its counts. Properties reach the process that reports, also with pytest-xdist."""


@pytest.fixture
def load(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> Load:
    """Clients of processes that are killed."""

    def say(line: str) -> None:
        if SOAK:
            with capfd.disabled():
                print(f"\n{request.node.name}: {line}", end="", file=sys.stderr, flush=True)

    return Load(say)


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[Counts], None]:
    """Add counts to the last line of the soak."""
    return lambda counts: record_property(KILLS, astuple(counts))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    found = [Counts(*value) for each in reports for name, value in each.user_properties if name == KILLS]
    if SOAK and found:
        terminalreporter.section("soak")
        terminalreporter.line(str(sum(found, Counts(0, 0, 0, 0, 0))))
