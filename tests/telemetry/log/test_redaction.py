"""Log lines of the bridge have no secrets, and those of other programs stay as they are."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from aibridge_addon.credentials.redaction import Redactor
from aibridge_addon.telemetry.log.redaction import RedactedLog

SECRET = "sk-ant-api03-0123456789abcdefghij"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What a handler of the root logger writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def log() -> Iterator[RedactedLog]:
    log = RedactedLog(Redactor(["patient-[0-9]+"]).text)
    log.start()
    yield log
    log.stop()


def test_a_line_of_the_bridge_is_redacted(log: RedactedLog, written: io.StringIO) -> None:
    logging.getLogger("aibridge_addon.bridge").error("model %r of %s", f"key{SECRET}", "patient-12")
    assert written.getvalue() == "model 'key[redacted]' of [redacted]\n"


def test_a_traceback_is_redacted(log: RedactedLog, written: io.StringIO) -> None:
    try:
        raise ValueError(f"refused: {SECRET}")
    except ValueError:
        logging.getLogger("aibridge_addon.recording.recorder").exception("the database refuses a record")
    assert "ValueError: refused: [redacted]" in written.getvalue()
    assert SECRET not in written.getvalue()


def test_lines_of_other_programs_stay_as_they_are(log: RedactedLog, written: io.StringIO) -> None:
    logging.getLogger("aibridge_addons").error("%s", SECRET)
    assert written.getvalue() == f"{SECRET}\n"


def test_a_line_whose_arguments_do_not_fit_raises_nothing(log: RedactedLog, written: io.StringIO) -> None:
    record = logging.getLogger("aibridge_addon").makeRecord("aibridge_addon", 40, "f", 1, "%d", ("x",), None)
    assert record.args == ("x",)


def test_several_may_end_in_any_order(written: io.StringIO) -> None:
    before = logging.getLogRecordFactory()
    one, two = RedactedLog(lambda text: f"{text}1"), RedactedLog(lambda text: f"{text}2")
    one.start()
    two.start()
    one.stop()
    logging.getLogger("aibridge_addon").error("line")
    two.stop()
    logging.getLogger("aibridge_addon").error("line")
    assert written.getvalue() == "line2\nline\n"
    logging.setLogRecordFactory(before)
