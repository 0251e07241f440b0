"""Log lines have no secrets: those of the bridge, of mitmproxy and of libraries, until the last thread has ended."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from mitmproxy.log import MitmFormatter

from aibridge_addon.credentials.redaction import Redactor
from aibridge_addon.telemetry.log.redaction import Redacted, RedactedLog

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


def test_a_line_of_redacted_texts_is_made_where_it_is_shown_and_not_before(
    log: RedactedLog, written: io.StringIO
) -> None:
    made = []

    class Line(Redacted):
        def __str__(self) -> str:
            made.append(self)
            return "a line"

    logger = logging.getLogger("aibridge_addon.telemetry.log.sink")
    line = logger.makeRecord(logger.name, logging.INFO, "", 0, "%s", (Line(),), None)
    assert not made
    logger.handle(line)
    assert written.getvalue() == "a line\n"


def test_a_traceback_is_redacted(log: RedactedLog, written: io.StringIO) -> None:
    try:
        raise ValueError(f"refused: {SECRET}")
    except ValueError:
        logging.getLogger("aibridge_addon.recording.recorder").exception("the database refuses a record")
    assert "ValueError: refused: [redacted]" in written.getvalue()
    assert SECRET not in written.getvalue()


def test_a_traceback_is_redacted_for_formatters_that_make_their_own(log: RedactedLog, written: io.StringIO) -> None:
    written_handler = logging.getLogger().handlers[-1]
    written_handler.setFormatter(MitmFormatter(colorize=False))
    try:
        raise ValueError(f"refused: {SECRET}")
    except ValueError:
        logging.getLogger("aibridge_addon.recording.recorder").exception("the database refuses a record")
    assert "the database refuses a record\nTraceback" in written.getvalue()
    assert "ValueError: refused: [redacted]" in written.getvalue()
    assert SECRET not in written.getvalue()


def test_a_traceback_without_a_secret_stays_as_it_is(log: RedactedLog) -> None:
    try:
        raise ValueError("refused")
    except ValueError as e:
        made = logging.getLogRecordFactory()("a", logging.ERROR, "f", 1, "m", (), (ValueError, e, e.__traceback__))
    assert made.exc_info is not None and made.exc_info[1] is not None and str(made.exc_info[1]) == "refused"


# No name of a library for MCP: once an MCP server was started, their loggers are silent (`tools.servers`), and their
# lines reach no handler. In a worker of pytest that is so if another test started one before.
@pytest.mark.parametrize("name", ["mitmproxy.proxy.server", "httpx", "another_program", "aibridge_addons"])
def test_lines_of_other_programs_are_redacted(log: RedactedLog, written: io.StringIO, name: str) -> None:
    logging.getLogger(name).error('HTTP Request: POST https://x/mcp?key=%s "%d"', SECRET, 200)
    assert written.getvalue() == 'HTTP Request: POST https://x/mcp?key=[redacted] "200"\n'


def test_arguments_of_a_line_without_secrets_are_left_to_its_handlers(log: RedactedLog) -> None:
    made = logging.getLogRecordFactory()("other", logging.INFO, "f", 1, "%s and %d", ("a", 1), None)
    assert (made.msg, made.args) == ("%s and %d", ("a", 1))


def test_a_line_whose_arguments_do_not_fit_raises_nothing(log: RedactedLog, written: io.StringIO) -> None:
    record = logging.getLogger("aibridge_addon").makeRecord("aibridge_addon", 40, "f", 1, "%d", ("x",), None)
    assert record.args == ("x",)


@pytest.mark.parametrize("first", [0, 1])
def test_several_may_end_in_any_order(written: io.StringIO, first: int) -> None:
    before = logging.getLogRecordFactory()
    logs = [RedactedLog(lambda text: f"{text}1"), RedactedLog(lambda text: f"{text}2")]
    for log in logs:
        log.start()
    logs[first].stop()
    logging.getLogger("aibridge_addon").error("line")
    logs[1 - first].stop()
    logging.getLogger("aibridge_addon").error("line")
    assert written.getvalue() == f"line{2 - first}\nline\n"
    assert logging.getLogRecordFactory() is before


def test_lines_are_redacted_until_what_writes_them_has_ended(written: io.StringIO) -> None:
    before = logging.getLogRecordFactory()
    threads = ["a writer"]
    retired, current = RedactedLog(Redactor(["patient-[0-9]+"]).text), RedactedLog(Redactor().text)
    retired.start()
    retired.stop(lambda: not threads)
    current.start()
    logging.getLogger("aibridge_addon").error("patient-1")
    current.stop()
    logging.getLogger("aibridge_addon").error("patient-2")
    threads.clear()
    RedactedLog(Redactor().text).start()
    logging.getLogger("aibridge_addon").error("patient-3")
    assert written.getvalue() == "[redacted]\n[redacted]\npatient-3\n"
    logging.setLogRecordFactory(before)


def test_many_reloads_leave_one_factory() -> None:
    before = logging.getLogRecordFactory()
    log = RedactedLog(str)
    log.start()
    factories = set()
    for _ in range(2000):
        following = RedactedLog(str)
        following.start()
        log.stop()
        log = following
        factories.add(id(logging.getLogRecordFactory()))
    logging.getLogger("aibridge_addon").error("line")
    log.stop()
    assert len(factories) == 1
    assert logging.getLogRecordFactory() is before
