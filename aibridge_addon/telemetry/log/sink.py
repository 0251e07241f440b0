"""The sink that logs interceptions: one line for each at its end, or one JSON object for each record.

    stream's thread                          thread of the sink
    emit(records) ─▶ queue (bounded) ─▶ line or members ─▶ logging ─▶ mitmproxy's handlers

A terminal that was stopped, or a pipe that is full, blocks who writes to it. So a thread of its own does. If it falls
behind, further records are dropped and counted.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from aibridge_addon import records
from aibridge_addon.config.schema import Settings
from aibridge_addon.credentials.redaction import Redactor
from aibridge_addon.records import Ask, Record, Sink
from aibridge_addon.telemetry.log.line import Line
from aibridge_addon.telemetry.log.members import MESSAGE, StructuredLog
from aibridge_addon.telemetry.log.redaction import Redact, Redacted
from aibridge_addon.telemetry.log.text import one_line

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Maximum number of batches of records that wait to be written."""
MAX_OPEN = 50_000
"""Interceptions in progress that are remembered: far more than one process can serve."""
MAX_METHOD = 20
MAX_WORD = 100
"""Characters of a word in the line of a refused request."""
LINE = "aibridge_line"
"""Attribute of a log record: the `Line` of an interception, which is laid out for the terminal's width."""
MEMBERS = "aibridge_members"
"""Attribute of a log record: the members of its JSON object."""


def log_sink(settings: Settings, whole: Ask) -> Sink:
    if settings.log.format == "json":
        return LogSink(_Structured())
    return LogSink(_Lines(Redactor(settings.recording.redact).text))


class LogSink(Sink):
    def __init__(self, form: _Structured | _Lines) -> None:
        self._form = form
        self._batches: queue.SimpleQueue[Sequence[Record] | None] = queue.SimpleQueue()
        self._dropped = 0
        """Number of records dropped. Only `emit` changes it."""
        self._reported = 0
        """Number of dropped records that were logged. Only the sink's thread changes it."""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="aibridge-log", daemon=True)

    def start(self, before: Sink | None = None) -> None:
        self._thread.start()

    def emit(self, records: Sequence[Record]) -> None:
        if self._batches.qsize() >= MAX_WAITING:
            self._dropped += len(records)
        else:
            self._batches.put(records)

    def close(self, timeout: float | None) -> None:
        if not self._closed:
            self._closed = True
            self._batches.put(None)
        if timeout is not None and self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            for record in batch:
                try:
                    self._form.log(record)
                except Exception:
                    logger.exception("aibridge: a %s cannot be logged", type(record).__name__)
            if (dropped := self._dropped) > self._reported:
                count, self._reported = dropped - self._reported, dropped
                logger.warning("aibridge: log lines dropped because the output was blocked: records=%d", count)


class _Structured:
    """One JSON object for each record."""

    def __init__(self) -> None:
        self._members = StructuredLog()

    def log(self, record: Record) -> None:
        members = self._members.members(record)
        if members is not None:
            failed = members.get("status") == "failed" or isinstance(record, records.Refused)
            logger.log(logging.WARNING if failed else logging.INFO, MESSAGE, extra={MEMBERS: members})


NOT_REACHED = frozenset({"upstream_unreachable", "upstream_unresolvable"})
"""Error types whose message, which has the address, is in the line: it is about the network, not of a provider."""


class _Lines:
    """One line for each interception at its end, and for each refused request without one."""

    def __init__(self, redact: Redact) -> None:
        self._redact = redact
        self._open: OrderedDict[str, _Interception] = OrderedDict()

    def log(self, record: Record) -> None:
        match record:
            case records.InterceptionStarted():
                if len(self._open) >= MAX_OPEN:
                    self._open.popitem(last=False)
                self._open[record.id] = _Interception(record)
            case records.TokenUsage():
                if (open_ := self._open.get(record.interception_id)) is not None:
                    open_.add(record)
            case records.ToolUsage():
                if (open_ := self._open.get(record.interception_id)) is not None:
                    open_.calls += record.injected
            case records.InterceptionEnded():
                if (open_ := self._open.pop(record.interception_id, None)) is not None:
                    line = open_.line(record)
                    level = logging.INFO if line.error is None else logging.WARNING
                    logger.log(level, "%s", _Text(line, self._redact), extra={LINE: line})
            case records.Refused():
                if record.interception_id is None:
                    logger.warning(
                        "refused: %s http_status=%d method=%s provider=%s route=%s client=%s path=%s",
                        one_line(record.reason, MAX_WORD),
                        record.status,
                        one_line(record.method, MAX_METHOD),
                        one_line(record.provider_name, MAX_WORD) or "-",
                        one_line(record.route, MAX_WORD) or "-",
                        one_line(record.client_address, MAX_WORD) or "-",
                        one_line(record.path) or "-",
                    )


@dataclass(slots=True)
class _Text(Redacted):
    """The text of a line for handlers that know no terminal, such as mitmweb's event log."""

    line: Line
    redact: Redact

    def __str__(self) -> str:
        return self.redact(self.line.text())


class _Interception:
    """What is known of an interception in progress."""

    def __init__(self, started: records.InterceptionStarted) -> None:
        self.calls = 0
        self._started = started
        self._new = self._cached = self._output = 0
        self._cost: float | None = None
        self._unpriced = False

    def add(self, usage: records.TokenUsage) -> None:
        self._new += usage.input_tokens + usage.cache_write_input_tokens
        self._cached += usage.cache_read_input_tokens
        self._output += usage.output_tokens
        if usage.cost_usd is None:
            self._unpriced = True
        else:
            self._cost = (self._cost or 0.0) + usage.cost_usd

    def line(self, ended: records.InterceptionEnded) -> Line:
        started, waited = self._started, ended.time_to_first_byte_ms
        error = None
        if ended.status == "failed":
            kind, status = ended.error_type or "unknown", ended.http_status
            error = kind if status is None or kind == f"http_{status}" else f"{kind} ({status})"
        return Line(
            ended_at=ended.ended_at,
            actor=started.initiator_id,
            client=started.client,
            provider=started.provider_name,
            model=started.model or ended.model or "",
            new_input=self._new,
            cached=self._cached,
            output=self._output,
            cost=None if self._unpriced else self._cost,
            first_byte=None if waited is None else waited / 1000,
            seconds=max(0.0, (ended.ended_at - started.started_at).total_seconds()),
            calls=self.calls,
            error=error,
            reason=(ended.error_message or "") if ended.error_type in NOT_REACHED else "",
        )
