"""Play a fixture through the sans-io parts, and return what was recorded in the fixture's own terms."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

from aibridge_addon import records
from aibridge_addon.config.providers import Provider
from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects.base import RequestReading
from aibridge_addon.interception import clients
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.origin import Origin
from aibridge_addon.interception.routing import Route
from aibridge_addon.providers import TYPES
from aibridge_addon.records import Record
from aibridge_addon.wire.json_object import JSONObject
from tests.support.fixtures import BEDROCK_MODEL, OF_BEDROCK, Case

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
Clock = Callable[[], datetime]


def noon() -> datetime:
    return NOON


def exchange_for(case: Case, emitted: list[Record], limits: Limits | None = None, *, now: Clock = noon) -> Exchange:
    """A started exchange for the case's request."""
    body = JSONObject(case.request)
    reading = case.wire_format.read(body)
    if case.dialect in OF_BEDROCK:
        reading = replace(reading, model=BEDROCK_MODEL)
    exchange = exchange_of(case, reading, emitted, limits, has_tools=case.wire_format.has_tools(body), now=now)
    if exchange.history is not None and exchange.needs_history:
        exchange.trace(body, exchange.history.read(body, whole=True))
    exchange.start()
    return exchange


def exchange_of(
    case: Case,
    request: RequestReading,
    emitted: list[Record],
    limits: Limits | None = None,
    *,
    has_tools: bool,
    now: Clock = noon,
) -> Exchange:
    """An exchange for a request with the case's headers, not yet started."""
    kind: Literal["anthropic", "openai", "bedrock"] = "anthropic" if case.dialect == "messages" else "openai"
    if case.dialect in OF_BEDROCK:
        kind = "bedrock"
    headers = {name.lower(): value for name, value in case.request_headers}
    sender = clients.sender(headers, request, has_tools=has_tools)
    return Exchange(
        str(uuid.uuid4()),
        Route(Provider(name=kind, type=kind), TYPES[kind], case.wire_format, "/route", None, "/route"),
        request,
        Origin(
            actor=Actor("ada", {}),
            client=sender.client,
            client_session_id=sender.session_id,
            user_agent=None,
            credential_kind="byok",
            credential_hint="",
            prompt=request.prompt if sender.request_class == "prompt" else None,
            agent_id=sender.agent_id,
            prompt_id=sender.prompt_id,
            project=sender.project,
            request_class=sender.request_class,
            details=sender.details,
        ),
        emit=emitted.append,
        limits=limits or Limits(),
        now=now,
    )


def play(case: Case, chunks: Iterable[bytes]) -> list[Record]:
    """Everything that is recorded when the case's answer arrives in these chunks."""
    emitted: list[Record] = []
    exchange = exchange_for(case, emitted)
    exchange.open_answer(case.status, case.content_type, "", case.answer_headers)
    for chunk in chunks:
        exchange.feed(chunk)
    exchange.answer_ended()
    return emitted


def rows_of(case: Case, chunks: Iterable[bytes]) -> dict[str, Any]:
    """Return what was recorded in the form of a fixture's `expect`, without members that `expect` leaves open."""
    told = _told(play(case, chunks))
    expected = case.expected
    for name in ("client", "client_session_id", "correlating_tool_call_id", "http_status", "model"):
        if name not in expected:
            del told[name]
    for name in ("answers", "iterations", "stop_reason", "error_message", "answered_by"):
        if name not in expected:
            del told[name]
    if "error_type" not in expected and told["status"] == "failed":
        del told["error_type"]
    for name in ("error_type", "response_id", "tokens", "tools", "thoughts", "prompt"):
        if name not in expected and not told.get(name):
            told.pop(name, None)
    return told


def _told(emitted: list[Record]) -> dict[str, Any]:
    started, ended = emitted[0], emitted[-1]
    assert isinstance(started, records.InterceptionStarted) and isinstance(ended, records.InterceptionEnded)
    between = emitted[1:-1]
    of_it = [r for r in between if not isinstance(r, records.Passthrough | records.Continuation)]
    assert {getattr(record, "interception_id", None) for record in of_it} <= {started.id}
    prompts = [r for r in between if isinstance(r, records.UserPrompt)]
    assert len(prompts) <= 1
    ids = {r.provider_response_id for r in between if hasattr(r, "provider_response_id")}
    assert len(ids) <= 1, f"rows of one answer name different responses: {ids}"
    return {
        "status": ended.status,
        "error_type": ended.error_type,
        "http_status": ended.http_status,
        "model": started.model or ended.model,
        "client": started.client,
        "client_session_id": started.client_session_id,
        "correlating_tool_call_id": started.correlating_tool_call_id,
        "prompt": prompts[0].prompt if prompts else None,
        "response_id": next(iter(ids), None),
        "error_message": ended.error_message,
        "answered_by": ended.model,
        "stop_reason": next((r.stop_reason for r in between if isinstance(r, records.TokenUsage)), None),
        "tokens": [_tokens(r) for r in between if isinstance(r, records.TokenUsage) and r.kind == "answer"],
        "iterations": [
            {"kind": r.kind, "model": r.model} | _tokens(r)
            for r in between
            if isinstance(r, records.TokenUsage) and r.kind != "answer"
        ],
        "answers": [r.content for r in between if isinstance(r, records.Answer)],
        "tools": [_tool(r) for r in between if isinstance(r, records.ToolUsage)],
        "thoughts": [
            {"content": r.content, "source": r.source} for r in between if isinstance(r, records.ModelThought)
        ],
    }


def _tokens(record: records.TokenUsage) -> dict[str, Any]:
    return {
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "cache_read_input_tokens": record.cache_read_input_tokens,
        "cache_write_input_tokens": record.cache_write_input_tokens,
        "completeness": record.completeness,
        "extra": dict(record.extra),
    }


def _tool(record: records.ToolUsage) -> dict[str, Any]:
    told = {"tool": record.tool, "provider_tool_call_id": record.provider_tool_call_id, "input": record.input}
    return told | ({"server_side": True} if record.metadata.get("server_side") else {})
