"""The count of unexpected exceptions, which the log shows."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from aibridge_addon.telemetry.log.redaction import RedactedLog
from aibridge_addon.telemetry.prometheus.internal_errors import ErrorCount


@pytest.fixture
def errors() -> Iterator[ErrorCount]:
    count = ErrorCount()
    count.start()
    yield count
    count.stop()


def fail(name: str) -> None:
    try:
        raise ValueError("secret")
    except ValueError:
        logging.getLogger(name).exception("it failed")


@pytest.mark.parametrize("name", ["aibridge_addon.addon", "mitmproxy.addonmanager", "asyncio"])
def test_an_exception_that_is_logged_counts(errors: ErrorCount, name: str) -> None:
    fail(name)
    assert errors.count == 1


def test_an_exception_whose_traceback_is_redacted_counts(errors: ErrorCount) -> None:
    log = RedactedLog(lambda text: text.replace("secret", "[redacted]"))
    log.start()
    try:
        fail("aibridge_addon.addon")
    finally:
        log.stop()
    assert errors.count == 1


def test_errors_without_an_exception_and_those_of_other_libraries_do_not_count(errors: ErrorCount) -> None:
    logging.getLogger("aibridge_addon.addon").error("aibridge cannot start: %s", "the reason")
    fail("another")
    assert errors.count == 0


def test_nothing_counts_after_the_end() -> None:
    count = ErrorCount()
    count.start()
    count.stop()
    count.stop()
    fail("aibridge_addon.addon")
    assert count.count == 0
