"""Turn the records of an interception into spans when it has ended.

    Intercept                                   SERVER, a child of the client's span
      Intercept.CreateInterceptor               the request arrives and is read
      Intercept.RecordInterception …            one for each stored record, until it reaches the sinks
      Intercept.ProcessRequest                  from the first upstream request to the end of the answer
        invoke_agent {client}                   only with several turns
          chat {model}                          CLIENT, one for each turn
            Intercept.ProcessRequest.Upstream   until the head of the turn's answer
          execute_tool {name}                   one for each injected call; tool servers get its id
            Intercept.ProcessRequest.ToolCall

Names that begin with `Intercept` and their attributes are those of the original project. The others follow the GenAI
conventions (https://github.com/open-telemetry/semantic-conventions-genai).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from opentelemetry.trace import SpanKind

from aibridge_addon import records
from aibridge_addon.records import InterceptionEnded, InterceptionStarted, ToolUsage, TurnEnded
from aibridge_addon.telemetry.tracing import content
from aibridge_addon.telemetry.tracing.attributes import Value, provider_name
from aibridge_addon.telemetry.tracing.measurements import Measurements, all_input
from aibridge_addon.telemetry.tracing.writer import SpanWriter
from aibridge_addon.wire.trace_context import TraceContext, parse, span_id_for, trace_id_for

UNANSWERED = frozenset({"upstream_unreachable", "client_disconnected", "inactivity"})
"""Error types of requests that went upstream, and may have ended without an answer."""
MAX_OPEN = 10_000
"""Interceptions under way whose records are kept. The oldest ones get no spans then."""
MAX_RECORDS = 2_000
"""Spans and measurements of one interception. Further records get none."""
MAX_INPUT = 100
"""Characters of `mcp_input`, as in the original project. `gen_ai.tool.call.arguments` has more."""

ROOT = "Intercept"
PROCESS = "Intercept.ProcessRequest"
NAMES = (
    (InterceptionStarted, "RecordInterception"),
    (records.UserPrompt, "RecordPromptUsage"),
    (records.TokenUsage, "RecordTokenUsage"),
    (records.ToolUsage, "RecordToolUsage"),
    (records.ModelThought, "RecordModelThought"),
    (InterceptionEnded, "RecordInterceptionEnded"),
)
"""The spans of the recorder, by type of record."""

Attributes = dict[str, Value | None]


@dataclass(slots=True)
class _Turn:
    usages: list[records.TokenUsage] = field(default_factory=list)
    parts: list[content.Part] = field(default_factory=list)
    """What the model wrote, if texts are wanted."""
    calls: list[ToolUsage] = field(default_factory=list)
    """Its injected calls that were run, in their order."""
    ended: TurnEnded | None = None


@dataclass(slots=True)
class _Open:
    """An interception under way."""

    continued: records.TraceContinued | None = None
    started: InterceptionStarted | None = None
    prompt: str | None = None
    turns: list[_Turn] = field(default_factory=lambda: [_Turn()])
    recorded: list[tuple[str, datetime, datetime]] = field(default_factory=list)
    """Names of records, when they were emitted, and when they arrived here."""
    records: int = 0


class Spans:
    """Used on one thread."""

    def __init__(
        self, writer: SpanWriter, measurements: Measurements, *, texts: bool, now: Callable[[], datetime]
    ) -> None:
        """`texts`: whether spans show what people and models wrote. `now` is a clock in UTC."""
        self._writer = writer
        self._measurements = measurements
        self._texts = texts
        self._now = now
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self.left_out = 0
        """Interceptions and records without spans, because too many were under way."""

    def take(self, record: records.Record) -> None:
        match record:
            case records.TraceContinued():
                self._opened(record.interception_id).continued = record
            case InterceptionStarted():
                found = self._opened(record.id)
                found.started = record
                self._recorded(found, record, record.started_at)
            case InterceptionEnded():
                found = self._open.pop(record.interception_id, _Open())
                if found.started is not None:
                    self._recorded(found, record, record.ended_at)
                    self._write(found, found.started, record)
            case records.Passthrough(times=records.PassthroughTimes()):
                self._passthrough(record)
            case records.ToolServerConnected():
                self._tool_server(record)
            case TurnEnded() | ToolUsage() | records.TokenUsage() | records.UserPrompt():
                self._part(record)
            case records.Answer() | records.ModelThought():
                self._part(record)

    def _opened(self, id: str) -> _Open:
        if len(self._open) >= MAX_OPEN and id not in self._open:
            self._open.popitem(last=False)
            self.left_out += 1
        return self._open.setdefault(id, _Open())

    def _recorded(self, found: _Open, record: object, emitted_at: datetime) -> None:
        name = next((name for kind, name in NAMES if isinstance(record, kind)), None)
        if name is not None:
            found.recorded.append((f"{ROOT}.{name}", emitted_at, self._now()))

    def _part(
        self,
        record: TurnEnded | ToolUsage | records.TokenUsage | records.UserPrompt | records.Answer | records.ModelThought,
    ) -> None:
        found = self._open.get(record.interception_id)
        if found is None:
            return
        found.records += 1
        if found.records > MAX_RECORDS:
            self.left_out += 1
            return
        turn = found.turns[-1]
        match record:
            case TurnEnded():
                turn.ended = record
                found.turns.append(_Turn())
                return
            case records.TokenUsage():
                turn.usages.append(record)
            case records.UserPrompt():
                found.prompt = record.prompt if self._texts else None
            case ToolUsage() if record.injected and record.duration_ms is not None and len(found.turns) > 1:
                turn = found.turns[-2]  # it was run after its turn had ended
                turn.calls.append(record)
        if self._texts and isinstance(record, records.Answer | records.ModelThought | ToolUsage):
            part = content.part_of(record)
            if part is not None and len(turn.parts) < content.MAX_PARTS:
                turn.parts.append(part)
        self._recorded(found, record, record.created_at)

    # --- at the end -------------------------------------------------------------------------------------------

    def _write(self, found: _Open, started: InterceptionStarted, ended: InterceptionEnded) -> None:
        turns = list(_with_ends(found, started, ended))
        for turn, end in turns:
            self._measurements.turn(started, end, _error_of(end))
            for usage in turn.usages:
                self._measurements.tokens(started, usage)
        continued = found.continued
        parent = parse(continued.traceparent, continued.tracestate) if continued is not None else None
        own = _interception(started, continued)
        received = min(continued.received_at, started.started_at) if continued is not None else started.started_at
        failed = None if ended.status == "completed" else f"interception failed: {ended.error_type}: "
        error = None if failed is None else failed + (ended.error_message or "")
        root = self._writer.write(
            ROOT,
            parent,
            (received, ended.ended_at),
            {**own, **_sender(started), **_outcome(ended), "http.route": started.route},
            trace_id=trace_id_for(started.id),
            span_id=span_id_for(started.id, "intercept"),
            kind=SpanKind.SERVER,
            error=error,
        )
        if not root.sampled:
            return
        self._writer.write(f"{ROOT}.CreateInterceptor", root, (received, started.started_at), own)
        for name, emitted_at, arrived_at in found.recorded:
            self._writer.write(name, root, (emitted_at, arrived_at), own)
        whole = (started.started_at, ended.ended_at)
        process = self._writer.write(PROCESS, root, whole, {**own, **_outcome(ended)}, error=error)
        if len(turns) > 1:
            process = self._writer.write(
                f"invoke_agent {started.client}", process, whole, _agent(started, turns), error=error
            )
        for number, (turn, end) in enumerate(turns):
            prompt = found.prompt if number == 0 else None
            self._turn(process, started, turn, end, prompt, own)
            for place, call in enumerate(turn.calls):
                self._call(process, started, end, place, call, own)

    def _turn(
        self,
        parent: TraceContext,
        started: InterceptionStarted,
        turn: _Turn,
        end: TurnEnded,
        prompt: str | None,
        own: Attributes,
    ) -> None:
        model, error = started.model or end.model, _error_of(end)
        chat = self._writer.write(
            f"chat {model}".rstrip(),
            parent,
            (end.started_at, end.ended_at),
            {**_chat(started, turn, end), **self._messages(turn, end, prompt), "error.type": error},
            kind=SpanKind.CLIENT,
            error=error,
        )
        # As in the original project: opening a stream has no error status.
        status = error if end.answered_at is None or not started.streaming else None
        until = end.answered_at or end.ended_at
        self._writer.write(f"{PROCESS}.Upstream", chat, (end.started_at, until), own, error=status)

    def _messages(self, turn: _Turn, end: TurnEnded, prompt: str | None) -> Attributes:
        return {
            "gen_ai.input.messages": content.prompt_message(prompt) if prompt else None,
            "gen_ai.output.messages": content.answer_message(turn.parts, end.stop_reason) if turn.parts else None,
        }

    def _call(
        self,
        parent: TraceContext,
        started: InterceptionStarted,
        turn: TurnEnded,
        place: int,
        call: ToolUsage,
        own: Attributes,
    ) -> None:
        times = (turn.ended_at, turn.ended_at + timedelta(milliseconds=call.duration_ms or 0))
        written = content.arguments(call.input) if self._texts and call.input is not None else None
        executed = self._writer.write(
            f"execute_tool {call.tool}",
            parent,
            times,
            {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": call.tool,
                "gen_ai.tool.call.id": call.provider_tool_call_id,
                "gen_ai.tool.type": "function",
                "gen_ai.conversation.id": started.client_session_id,
                "gen_ai.tool.call.arguments": written,
                "gen_ai.tool.call.result": call.result if self._texts else None,
                "error.type": "tool_error" if call.invocation_error else None,
            },
            span_id=span_id_for(started.id, turn.turn, "call", place),
            error=call.invocation_error,
        )
        server: Attributes = {
            "mcp_server_name": call.server_name,
            "mcp_server_url": call.server_url,
            "mcp_tool_name": call.tool,
            "mcp_input": written[:MAX_INPUT] if written is not None else None,
        }
        self._writer.write(f"{PROCESS}.ToolCall", executed, times, {**own, **server}, error=call.invocation_error)

    def _passthrough(self, record: records.Passthrough) -> None:
        times = record.times
        assert times is not None
        status = times.http_status
        self._writer.write(
            "Passthrough",
            parse(times.traceparent, times.tracestate),
            (times.started_at, times.ended_at),
            {
                "passthrough_url": times.path,
                "passthrough_method": record.method,
                "passthrough_upstream_url": times.upstream_url,
                "provider": record.provider_name,
                "user_id": record.initiator_id,
                "http.route": record.route,
                "http.response.status_code": status,
            },
            kind=SpanKind.SERVER,
            error="no answer" if status is None else None,
        )

    def _tool_server(self, record: records.ToolServerConnected) -> None:
        server: Attributes = {
            "mcp_proxy_name": record.server_name,
            "mcp_server_name": record.server_name,
            "mcp_server_url": record.server_url,
        }
        name = "StdioServerProxy.Init" if record.server_url is None else "StreamableHTTPServerProxy.Init"
        times = (record.started_at, record.ended_at)
        connected = self._writer.write(name, None, times, server, kind=SpanKind.CLIENT, error=record.error)
        if record.listed_from is not None:
            listed = (record.listed_from, record.ended_at)
            count = {**server, "mcp_tool_count": record.tools if record.error is None else None}
            self._writer.write(f"{name}.fetchTools", connected, listed, count, error=record.error)


# --- attributes -------------------------------------------------------------------------------------------------


def _with_ends(
    found: _Open, started: InterceptionStarted, ended: InterceptionEnded
) -> Iterator[tuple[_Turn, TurnEnded]]:
    """Return the turns that were asked for. A request without an answer is one, too, unless the bridge refused it."""
    for turn in found.turns:
        if turn.ended is not None:
            yield turn, turn.ended
    last = found.turns[-2].ended if len(found.turns) > 1 else None
    unanswered = ended.error_type in UNANSWERED and ended.http_status is None
    if last is None and unanswered:
        times = (started.started_at, ended.ended_at)
        yield found.turns[-1], TurnEnded(started.id, 1, *times, "", "", None, error_type=ended.error_type)


def _error_of(turn: TurnEnded) -> str | None:
    """Return the value of `error.type`: the provider's word, or the status."""
    if turn.error_type is not None:
        return turn.error_type
    return str(turn.http_status) if turn.http_status is not None and turn.http_status >= 400 else None


def _interception(started: InterceptionStarted, continued: records.TraceContinued | None) -> Attributes:
    """Return the attributes that all spans of the original project have."""
    is_messages = started.route.endswith("/messages")
    host = started.upstream_host or ""
    return {
        "request_path": continued.path if continued is not None else started.route,
        "interception_id": started.id,
        "user_id": started.initiator_id,
        "provider": started.provider_name,
        "model": started.model,
        "streaming": started.streaming,
        "aws_bedrock": ".amazonaws.com" in host or ".api.aws" in host if is_messages else None,
    }


def _sender(started: InterceptionStarted) -> Attributes:
    return {
        "user.id": started.initiator_id,
        "session.id": started.client_session_id,
        "gen_ai.conversation.id": started.client_session_id,
        "user_agent.original": started.user_agent,
        "aibridge.client": started.client,
        "aibridge.agent_id": started.agent_id,
        "aibridge.project": started.project,
        "aibridge.request_class": started.request_class,
        "aibridge.billing": started.billing,
        "aibridge.credential_kind": started.credential_kind,
    }


def _outcome(ended: InterceptionEnded) -> Attributes:
    return {
        "http.response.status_code": ended.http_status,
        "error.type": ended.error_type,
        "aibridge.turns": ended.turns,
    }


def _agent(started: InterceptionStarted, turns: list[tuple[_Turn, TurnEnded]]) -> Attributes:
    usages = [usage for turn, _ in turns for usage in turn.usages]
    return {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": provider_name(started.provider),
        "gen_ai.agent.name": started.client,
        "gen_ai.request.model": started.model or None,
        "gen_ai.conversation.id": started.client_session_id,
        "user.id": started.initiator_id,
        **_usage(usages),
    }


def _chat(started: InterceptionStarted, turn: _Turn, end: TurnEnded) -> Attributes:
    first = end.first_chunk_at
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider_name(started.provider),
        "gen_ai.request.model": started.model or None,
        "gen_ai.request.stream": started.streaming,
        "gen_ai.response.model": end.model or None,
        "gen_ai.response.id": end.provider_response_id or None,
        "gen_ai.response.finish_reasons": [end.stop_reason] if end.stop_reason else None,
        "gen_ai.response.time_to_first_chunk": (first - end.started_at).total_seconds() if first is not None else None,
        "gen_ai.conversation.id": started.client_session_id,
        "server.address": started.upstream_host,
        "http.response.status_code": end.http_status,
        "user.id": started.initiator_id,
        "aibridge.turn": end.turn,
        **_usage([usage for usage in turn.usages if usage.kind == "answer"]),
    }


def _usage(usages: list[records.TokenUsage]) -> Mapping[str, Any]:
    """Return the tokens of some rows together, and their cost if each of them has one."""
    if not usages:
        return {}
    costs = [usage.cost_usd for usage in usages if usage.cost_usd is not None]
    return {
        "gen_ai.usage.input_tokens": sum(map(all_input, usages)),
        "gen_ai.usage.output_tokens": sum(usage.output_tokens for usage in usages),
        "gen_ai.usage.cache_read.input_tokens": sum(usage.cache_read_input_tokens for usage in usages),
        "gen_ai.usage.cache_creation.input_tokens": sum(usage.cache_write_input_tokens for usage in usages),
        "aibridge.cost_usd": sum(costs) if len(costs) == len(usages) else None,
    }
