"""The log's sink: which records make a line, at which level, and what happens when the output is blocked."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aibridge_addon import records
from aibridge_addon.config.schema import Settings
from aibridge_addon.credentials.redaction import Redactor
from aibridge_addon.records import Readiness, Record, Sink
from aibridge_addon.telemetry.log import members, sink
from aibridge_addon.telemetry.log.formatters import JsonFormatter, TextFormatter
from aibridge_addon.telemetry.log.redaction import RedactedLog
from aibridge_addon.telemetry.log.sink import MAX_WAITING, log_sink

AT = datetime(2026, 3, 4, 12, 30, 15, tzinfo=UTC)
STARTED = records.InterceptionStarted(
    id="i1",
    initiator_id="alice",
    provider="anthropic",
    provider_name="anthropic",
    model="claude-sonnet-4-5",
    client="Claude Code",
    client_session_id="s1",
    user_agent=None,
    route="/v1/messages",
    streaming=True,
    credential_kind="byok",
    credential_hint="sk-…1234",
    correlating_tool_call_id=None,
    metadata={},
    started_at=AT,
)


def usage(**changes: Any) -> records.TokenUsage:
    values: dict[str, Any] = {
        "interception_id": "i1",
        "provider_response_id": "msg_1",
        "provider": "anthropic",
        "provider_name": "anthropic",
        "model": "claude-sonnet-4-5",
        "input_tokens": 3,
        "output_tokens": 5,
        "cache_read_input_tokens": 100,
        "cache_write_input_tokens": 20,
        "completeness": "complete",
        "extra": {},
        "created_at": AT,
        "cost_usd": 0.5,
    }
    return records.TokenUsage(**(values | changes))


def ended(error: str | None = None, status: int | None = 200, keys: tuple[str, ...] = ()) -> records.InterceptionEnded:
    return records.InterceptionEnded(
        interception_id="i1",
        status="completed" if error is None else "failed",
        model=None,
        http_status=status,
        error_type=error,
        error_message=None,
        turns=1,
        ended_at=AT + timedelta(seconds=2),
        time_to_first_byte_ms=500,
        thread_keys=keys,
    )


def call(injected: bool) -> records.ToolUsage:
    return records.ToolUsage("i1", "msg_1", "call_1", "echo", {"a": 1}, injected, AT)


class Lines(logging.Handler):
    """Keeps the log's lines, as a formatter makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.made.append((record.levelname, self.format(record)))


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger(sink.__name__)
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


def log(lines: Lines, *emitted: Record, form: str = "text") -> list[tuple[str, str]]:
    """Have a sink log these records, and return the level and the text of each line."""
    plain = logging.Formatter()
    lines.formatter = JsonFormatter(plain) if form == "json" else TextFormatter(plain, width=lambda: None, colour=False)
    made = made_for(form)
    made.start()
    made.emit(emitted)
    made.close(30)
    assert made.ended
    return lines.made


def made_for(form: str, redact: Sequence[str] = ()) -> Sink:
    settings = {"log": {"format": form}, "recording": {"redact": redact}}
    found = log_sink(Settings.model_validate(settings), Readiness)
    assert found is not None
    return found


def test_the_operators_patterns_apply_to_the_whole_line_where_no_terminal_formats_it(lines: Lines) -> None:
    made = made_for("text", ["alice", "anthropic/.*?5"])
    log = RedactedLog(Redactor().text)
    log.start()
    made.start()
    made.emit((STARTED, ended()))
    made.close(30)
    log.stop()
    [(_, text)] = lines.made
    assert text.count("[redacted]") == 2 and "alice" not in text and "anthropic" not in text


def objects(lines: Lines, *emitted: Record) -> list[dict[str, Any]]:
    return [json.loads(text) for _, text in log(lines, *emitted, form="json")]


# --- text


def test_an_interception_makes_one_line_at_its_end(lines: Lines) -> None:
    [(level, text)] = log(lines, STARTED, usage(), call(True), call(False), usage(turn=2), ended())
    assert level == "INFO"
    for shown in ("alice", "Claude Code", "anthropic/claude-sonnet-4-5", "46 in", "200 cached", "10 out", "$1.0000"):
        assert shown in text
    assert "0.5s first" in text and "2.0s total" in text and "1 call " in text


def test_a_failed_interception_is_a_warning_with_the_type_of_its_error(lines: Lines) -> None:
    [(level, text)] = log(lines, STARTED, ended("overloaded_error", 529))
    assert level == "WARNING" and text.endswith("failed: overloaded_error (529)")


def test_a_status_that_the_error_type_names_is_not_repeated(lines: Lines) -> None:
    [(_, text)] = log(lines, STARTED, ended("http_502", 502))
    assert text.endswith("failed: http_502")


def test_one_turn_without_a_price_leaves_the_cost_unknown(lines: Lines) -> None:
    [(_, text)] = log(lines, STARTED, usage(), usage(cost_usd=None), ended())
    assert "n/a" in text and "$" not in text


def test_a_refusal_has_a_line_unless_it_ended_an_interception(lines: Lines) -> None:
    refused = records.Refused("unknown_route", 404, "GET", client_address="10.0.0.1", path="/x\n\x1b[2J")
    [(level, text)] = log(lines, refused, records.Refused("budget_exceeded", 403, interception_id="i1"))
    assert level == "WARNING"
    assert (
        text == "refused: unknown_route http_status=404 method=GET provider=- route=- client=10.0.0.1 path=/x \\x1b[2J"
    )


def test_a_passthrough_has_no_line_of_text(lines: Lines) -> None:
    assert log(lines, records.Passthrough("anthropic", "/v1/models", "GET", "alice")) == []


def test_handlers_that_know_no_terminal_get_the_whole_line(lines: Lines) -> None:
    log(lines)
    made = made_for("text")
    lines.formatter = None
    made.start()
    made.emit([STARTED, ended()])
    made.close(30)
    [(_, text)] = lines.made
    assert "anthropic/claude-sonnet-4-5" in text and text.endswith("ok")


# --- JSON


def test_every_kind_of_record_is_an_object_with_its_type(lines: Lines) -> None:
    made = objects(
        lines,
        STARTED,
        records.UserPrompt("i1", "msg_1", "Hi", AT),
        usage(),
        call(True),
        records.ModelThought("i1", "msg_1", "hm", "thinking", AT),
        records.Answer("i1", "msg_1", "Hello", False, AT),
        ended(),
        records.Passthrough("anthropic", "/v1/models", "GET", "alice"),
        records.Refused("unknown_route", 404),
        records.Overhead("anthropic", 0.1),
    )
    assert [each["record_type"] for each in made] == [
        "interception_start",
        "prompt_usage",
        "token_usage",
        "tool_usage",
        "model_thought",
        "answer",
        "interception_end",
        "passthrough",
        "request_refused",
    ]
    assert {each["message"] for each in made} == {"interception log"}
    assert made[2]["msg_id"] == "msg_1" and made[3]["tool_call_id"] == "call_1"


def test_a_request_names_what_it_continues(lines: Lines) -> None:
    second = {"id": "i2", "thread_keys": ("unknown", "answer-1")}
    third = {"id": "i3", "thread_keys": ("answer-2",)}
    made = objects(
        lines,
        STARTED,
        ended(keys=("answer-1",)),
        changed(STARTED, **second),
        changed(ended(keys=("answer-2",)), interception_id="i2"),
        changed(STARTED, **third),
    )
    starts = [each for each in made if each["record_type"] == "interception_start"]
    assert [(each["thread_parent_id"], each["thread_root_id"]) for each in starts] == [
        (None, None),
        ("i1", "i1"),
        ("i2", "i1"),
    ]


def changed[T: (records.InterceptionStarted, records.InterceptionEnded)](record: T, **changes: Any) -> T:
    return type(record)(**({name: getattr(record, name) for name in record.__slots__} | changes))


@pytest.mark.parametrize("text", ["\x1b[2J", "a\r\nb", "\x00", "\u2028\u202e", "\ud800", "<b>&", "x" * (1 << 20)])
def test_hostile_text_stays_in_one_line_of_ascii(lines: Lines, text: str) -> None:
    [(_, line)] = log(lines, records.UserPrompt("i1", "msg_1", text, AT), form="json")
    assert line.isascii() and line.isprintable() and len(line) < 2 * members.MAX_TEXT
    assert json.loads(line)["prompt"].startswith(text[:100])


def test_arguments_that_are_too_long_become_a_text(lines: Lines) -> None:
    long = records.ToolUsage("i1", "msg_1", "c", "echo", {"a": "x" * members.MAX_TEXT}, False, AT)
    [made] = objects(lines, long)
    assert made["input"].startswith('{"a": "xxx') and made["input"].endswith(" more characters)")


def test_numbers_that_json_does_not_have_are_texts(lines: Lines) -> None:
    [made] = objects(lines, usage(extra={"a": float("inf"), "b": [float("nan")]}))
    assert made["metadata"] == {"a": "inf", "b": ["nan"]}


# --- an output that is blocked


def test_records_are_dropped_and_counted_while_the_output_is_blocked(lines: Lines) -> None:
    free, blocked = threading.Event(), threading.Event()

    class Blocked(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            blocked.set()
            free.wait(60)

    handler, logger = Blocked(), logging.getLogger(sink.__name__)
    logger.addHandler(handler)
    try:
        made = made_for("json")
        made.start()
        passed = records.Passthrough("anthropic", "/v1/models", "GET", "alice")
        made.emit([passed])
        assert blocked.wait(30)
        for _ in range(MAX_WAITING + 3):
            made.emit([passed])  # returns at once
        free.set()
        made.close(30)
    finally:
        free.set()
        logger.removeHandler(handler)
    assert any("log lines dropped because the output was blocked: records=3" in text for _, text in lines.made)


def test_the_end_does_not_wait_for_a_blocked_output(lines: Lines) -> None:
    made = made_for("text")
    made.close(None)
    made.close(0)
    assert made.ended
