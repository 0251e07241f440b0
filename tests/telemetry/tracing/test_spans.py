"""Spans that are made from records, as an exporter in memory gets them."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import opentelemetry.semconv.attributes as stable_attributes
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, session_attributes, user_attributes
from opentelemetry.trace import StatusCode

from aibridge_addon import records
from aibridge_addon.records import (
    Answer,
    InterceptionEnded,
    InterceptionStarted,
    ModelThought,
    TokenUsage,
    ToolUsage,
    TraceContinued,
    TurnEnded,
    UserPrompt,
)
from aibridge_addon.telemetry.tracing import content, spans
from aibridge_addon.telemetry.tracing.attributes import MAX_ATTRIBUTE, MAX_INT, MAX_NAME
from aibridge_addon.telemetry.tracing.export import span_limits
from aibridge_addon.telemetry.tracing.measurements import Measurements
from aibridge_addon.telemetry.tracing.spans import Spans
from aibridge_addon.telemetry.tracing.writer import Ids, SpanWriter
from aibridge_addon.wire.trace_context import span_id_for

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
HOSTILE = "\x1b[31m\u202e<script>\0\ud800" + "x" * 1_000_000


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


class Stage:
    """Takes records, and shows the spans and measurements that they become."""

    def __init__(self, *, texts: bool = False) -> None:
        ids, self._exporter, self._reader = Ids(), InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider(id_generator=ids, span_limits=span_limits(), shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        meters = MeterProvider([self._reader], shutdown_on_exit=False)
        writer = SpanWriter(tracers.get_tracer("t"), ids)
        self.sink = Spans(writer, Measurements(meters.get_meter("t")), texts=texts, now=lambda: at(9))

    def take(self, *taken: records.Record) -> None:
        for record in taken:
            self.sink.take(record)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> ReadableSpan:
        [found] = [span for span in self.spans if span.name == name]
        return found

    def points(self, name: str) -> list[HistogramDataPoint]:
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
            if isinstance(point, HistogramDataPoint)
        ]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def started(id: str = "i", **members: Any) -> InterceptionStarted:
    return replace(
        InterceptionStarted(
            id=id,
            initiator_id="ada",
            provider="anthropic",
            provider_name="anthropic-eu",
            model="claude-x",
            client="Claude Code",
            client_session_id="s-1",
            user_agent="claude-cli/2",
            route="/v1/messages",
            streaming=True,
            credential_kind="byok",
            credential_hint="sk…12",
            correlating_tool_call_id=None,
            metadata={},
            started_at=at(1),
            upstream_host="api.anthropic.com",
        ),
        **members,
    )


def usage(turn: int = 1, **members: Any) -> TokenUsage:
    return replace(
        TokenUsage(
            interception_id="i",
            provider_response_id=f"msg_{turn}",
            provider="anthropic",
            provider_name="anthropic-eu",
            model="claude-x-1",
            input_tokens=10,
            output_tokens=5,
            cache_read_input_tokens=100,
            cache_write_input_tokens=20,
            completeness="complete",
            extra={},
            created_at=at(3),
            turn=turn,
            cost_usd=0.25,
        ),
        **members,
    )


def turn_ended(turn: int = 1, **members: Any) -> TurnEnded:
    return replace(
        TurnEnded(
            interception_id="i",
            turn=turn,
            ended_at=at(turn + 0.75),
            provider_response_id=f"msg_{turn}",
            model="claude-x-1",
            http_status=200,
            stop_reason="end_turn",
            started_at=at(turn),
            answered_at=at(turn + 0.25),
            first_chunk_at=at(turn + 0.5),
        ),
        **members,
    )


def ended(**members: Any) -> InterceptionEnded:
    return replace(InterceptionEnded("i", "completed", "claude-x-1", 200, None, None, 1, at(8)), **members)


def tool(**members: Any) -> ToolUsage:
    called = ToolUsage("i", "msg_1", "toolu_1", "search", {"q": "x"}, True, at(2), "ours", "http://ours/mcp")
    return replace(called, **{"duration_ms": 200, "result": "found", **members})


def one_turn() -> list[records.Record]:
    return [
        TraceContinued("i", at(0), "/v1/messages"),
        started(),
        UserPrompt("i", "msg_1", "Hello", at(2)),
        usage(),
        ModelThought("i", "msg_1", "Hm", "thinking", at(3)),
        Answer("i", "msg_1", "Hi", False, at(3)),
        turn_ended(),
        ended(),
    ]


def two_turns() -> list[records.Record]:
    return [started(), usage(), turn_ended(), tool(), usage(2), turn_ended(2), ended(turns=2)]


def test_the_multiset_of_spans_is_that_of_the_original_project_and_of_the_conventions(stage: Stage) -> None:
    stage.take(*one_turn())
    assert sorted(span.name for span in stage.spans) == [
        "Intercept",
        "Intercept.CreateInterceptor",
        "Intercept.ProcessRequest",
        "Intercept.ProcessRequest.Upstream",
        "Intercept.RecordInterception",
        "Intercept.RecordInterceptionEnded",
        "Intercept.RecordModelThought",
        "Intercept.RecordPromptUsage",
        "Intercept.RecordTokenUsage",
        "chat claude-x",
    ]


def test_spans_have_the_times_of_the_records(stage: Stage) -> None:
    stage.take(*one_turn())

    def times(name: str) -> tuple[float, float]:
        span = stage.named(name)
        assert span.start_time is not None and span.end_time is not None
        zero = int(NOON.timestamp()) * 10**9
        return (span.start_time - zero) / 1e9, (span.end_time - zero) / 1e9

    assert times("Intercept") == (0, 8)
    assert times("Intercept.CreateInterceptor") == (0, 1)
    assert times("Intercept.ProcessRequest") == (1, 8)
    assert times("chat claude-x") == (1, 1.75)
    assert times("Intercept.ProcessRequest.Upstream") == (1, 1.25)
    assert times("Intercept.RecordTokenUsage") == (3, 9)


def test_a_turn_has_its_tokens_with_cached_ones_and_its_cost(stage: Stage) -> None:
    stage.take(*one_turn())
    seen = dict(stage.named("chat claude-x").attributes or {})
    assert seen["gen_ai.usage.input_tokens"] == 130
    assert seen["gen_ai.usage.cache_read.input_tokens"] == 100
    assert seen["gen_ai.usage.cache_creation.input_tokens"] == 20
    assert seen["gen_ai.usage.output_tokens"] == 5
    assert seen["gen_ai.response.time_to_first_chunk"] == 0.5
    assert seen["gen_ai.response.finish_reasons"] == ("end_turn",)
    assert seen["aibridge.cost_usd"] == 0.25


def test_several_turns_have_an_agent_above_them_and_their_calls(stage: Stage) -> None:
    stage.take(*two_turns())
    agent = stage.named("invoke_agent Claude Code")
    executed = stage.named("execute_tool search")
    assert agent.context is not None and executed.context is not None
    below = [span.name for span in stage.spans if span.parent and span.parent.span_id == agent.context.span_id]
    assert below == ["chat claude-x", "execute_tool search", "chat claude-x"]
    assert executed.context.span_id == span_id_for("i", 1, "call", 0)
    assert dict(agent.attributes or {})["gen_ai.usage.output_tokens"] == 10


def test_a_failed_turn_and_a_failed_call_have_the_status_of_an_error(stage: Stage) -> None:
    failed = turn_ended(2, http_status=529, error_type="overloaded_error", first_chunk_at=None)
    over = ended(status="failed", error_type="overloaded_error", error_message="Overloaded", turns=2)
    stage.take(started(), usage(), turn_ended(), tool(invocation_error="timeout"), failed, over)
    root = stage.named("Intercept")
    assert root.status.status_code is StatusCode.ERROR
    assert root.status.description == "interception failed: overloaded_error: Overloaded"
    assert stage.named("execute_tool search").status.description == "timeout"
    chats = [span for span in stage.spans if span.name == "chat claude-x"]
    assert [span.status.status_code for span in chats] == [StatusCode.UNSET, StatusCode.ERROR]
    assert [dict(span.attributes or {}).get("error.type") for span in chats] == [None, "overloaded_error"]


def test_a_request_without_an_answer_has_a_turn_unless_the_bridge_refused_it(stage: Stage) -> None:
    over = ended(status="failed", http_status=None, error_type="upstream_unreachable", turns=0)
    stage.take(started(), over)
    assert dict(stage.named("chat claude-x").attributes or {})["error.type"] == "upstream_unreachable"
    refusing = Stage()
    refusing.take(started(), replace(over, error_type="budget_exceeded"))
    assert [span.name for span in refusing.spans if span.name.startswith("chat")] == []


def test_no_text_is_on_a_span_unless_it_is_asked_for() -> None:
    silent, open_ = Stage(), Stage(texts=True)
    for stage in (silent, open_):
        stage.take(*one_turn())
    shown = json.dumps([dict(span.attributes or {}) for span in silent.spans])
    assert "Hello" not in shown and "Hm" not in shown
    seen = dict(open_.named("chat claude-x").attributes or {})
    [asked] = json.loads(str(seen["gen_ai.input.messages"]))
    [answered] = json.loads(str(seen["gen_ai.output.messages"]))
    assert asked["parts"][0]["content"] == "Hello"
    assert [(part["type"], part["content"]) for part in answered["parts"]] == [("reasoning", "Hm"), ("text", "Hi")]


def test_hostile_texts_are_cut_and_cost_no_other_span(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(texts=True)
    stage.take(
        TraceContinued("i", at(0), HOSTILE, HOSTILE, HOSTILE),
        started(model=HOSTILE, client=HOSTILE, client_session_id=HOSTILE, upstream_host=HOSTILE, project=HOSTILE),
        UserPrompt("i", HOSTILE, HOSTILE, at(2)),
        usage(input_tokens=2**70, output_tokens=-(2**70)),
        Answer("i", HOSTILE, HOSTILE, False, at(3)),
        turn_ended(provider_response_id=HOSTILE, model=HOSTILE, stop_reason=HOSTILE, error_type=HOSTILE),
        tool(tool=HOSTILE, input={HOSTILE: HOSTILE}, result=HOSTILE, invocation_error=HOSTILE),
        turn_ended(2),
        ended(status="failed", error_type=HOSTILE, error_message=HOSTILE, turns=2),
    )
    encoded = encode_spans(stage.spans)
    assert encoded.SerializeToString()
    assert len(stage.spans) > 10
    for span in stage.spans:
        assert len(span.name) <= MAX_NAME
        for value in (span.attributes or {}).values():
            assert not isinstance(value, str) or len(value) <= MAX_ATTRIBUTE
            assert not isinstance(value, int) or abs(value) <= MAX_INT


def test_a_message_that_is_too_long_stays_valid_json() -> None:
    for character in ("é", "\0"):
        parts = [{"type": "text", "content": character * content.MAX_PART} for _ in range(content.MAX_PARTS)]
        message = content.answer_message(parts, "end_turn")
        assert len(message) <= MAX_ATTRIBUTE and json.loads(message)[0]["parts"]


def test_too_many_interceptions_and_records_are_counted_and_not_kept(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "MAX_OPEN", 2)
    monkeypatch.setattr(spans, "MAX_RECORDS", 3)
    stage.take(started("a"), started("b"), started("i"))
    assert stage.sink.left_out == 1
    stage.take(*[usage() for _ in range(5)], ended())
    assert stage.sink.left_out == 3
    assert len([span for span in stage.spans if span.name.endswith("RecordTokenUsage")]) == 3


# --- metrics ------------------------------------------------------------------------------------------------------


def test_each_turn_is_measured_under_labels_without_ids(stage: Stage) -> None:
    stage.take(*two_turns())
    common = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-x",
        "gen_ai.response.model": "claude-x-1",
        "server.address": "api.anthropic.com",
    }
    [duration] = stage.points("gen_ai.client.operation.duration")
    assert (duration.count, duration.sum, dict(duration.attributes or {})) == (2, 1.5, common)
    [first] = stage.points("gen_ai.client.operation.time_to_first_chunk")
    assert (first.count, first.sum) == (2, 1.0)
    tokens = {
        str((point.attributes or {})["gen_ai.token.type"]): point for point in stage.points("gen_ai.client.token.usage")
    }
    assert {kind: (point.count, point.sum) for kind, point in tokens.items()} == {"input": (2, 260), "output": (2, 10)}
    assert tokens["input"].explicit_bounds[:3] == (1, 4, 16) and tokens["input"].explicit_bounds[-1] == 67_108_864


def test_unknown_numbers_are_not_reported(stage: Stage) -> None:
    nothing = {"input_tokens": 0, "output_tokens": 0, "cache_read_input_tokens": 0, "cache_write_input_tokens": 0}
    stage.take(started(), usage(completeness="partial", **nothing), turn_ended(), ended())
    assert stage.points("gen_ai.client.token.usage") == []


def test_models_that_clients_make_up_end_as_other(stage: Stage) -> None:
    for number in range(300):
        stage.take(started(model=f"made-up-{number}"), turn_ended(model=""), ended())
    models = {
        (point.attributes or {})["gen_ai.request.model"] for point in stage.points("gen_ai.client.operation.duration")
    }
    assert len(models) == 201 and "other" in models


# --- names --------------------------------------------------------------------------------------------------------

SEEDS = {
    *("request_path", "interception_id", "user_id", "provider", "model", "streaming", "aws_bedrock"),
    *("passthrough_url", "passthrough_method", "passthrough_upstream_url"),
    *("mcp_server_name", "mcp_server_url", "mcp_tool_name", "mcp_input", "mcp_proxy_name", "mcp_tool_count"),
}
"""Attributes of the original aibridge's spans."""


def constants(*modules: Any) -> Iterator[str]:
    for module in modules:
        for name, value in inspect.getmembers(module):
            if name.isupper() and isinstance(value, str) and name == value.upper().replace(".", "_"):
                yield value


def stable() -> set[str]:
    """The names that `opentelemetry-semantic-conventions` has as stable ones."""
    path = stable_attributes.__path__
    modules = [importlib.import_module(f"{stable_attributes.__name__}.{m.name}") for m in pkgutil.iter_modules(path)]
    return set(constants(*modules))


def in_development() -> set[str]:
    """The names in development that the package has. The GenAI ones have moved to a repository of their own.

    Source: https://github.com/open-telemetry/semantic-conventions-genai, of which the package has a copy.
    """
    return set(constants(gen_ai_attributes, session_attributes, user_attributes))


def test_every_attribute_is_one_of_the_conventions_or_of_the_seeds_or_has_our_prefix() -> None:
    stage = Stage(texts=True)
    failing = turn_ended(2, error_type="e")
    facts = {"agent_id": "a", "project": "p", "request_class": "prompt", "billing": "api"}
    times = records.PassthroughTimes(at(0), at(1), "/v1/models", "https://x/v1/models", 200)
    stage.take(
        started(**facts),
        UserPrompt("i", "m", "Hello", at(1)),
        usage(),
        turn_ended(),
        tool(invocation_error="e"),
        failing,
        ended(status="failed", error_type="e", turns=2),
        records.Passthrough("anthropic", "/v1/models", "GET", "ada", times=times),
        records.ToolServerConnected("s", "https://x/mcp", at(0), at(2), listed_from=at(1), tools=3),
    )
    used = {name for span in stage.spans for name in span.attributes or {}}
    used |= {
        name
        for metric in ("operation.duration", "token.usage", "operation.time_to_first_chunk")
        for point in stage.points(f"gen_ai.client.{metric}")
        for name in point.attributes or {}
    }
    known = stable() | in_development() | SEEDS
    assert {"error.type", "server.address", "http.route", "http.response.status_code"} <= stable() & used
    assert len(used & SEEDS) == len(SEEDS)
    assert {name for name in used - known if not name.startswith("aibridge.")} == set()
