"""Convert prepared records to rows. All databases use the same rows: ids, times and JSON are text."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import msgspec

from aibridge_addon import records

Row = dict[str, Any]
KEPT = frozenset({"credential_hint", "metadata"})
"""Columns that an interception's end leaves unchanged if its value is null."""


PRICE_TERMS = "price_terms"
"""Key in the metadata of a token row: the members of `PriceTerms` that are not empty."""
TERMS = tuple(field.name for field in fields(records.PriceTerms))


@dataclass(frozen=True, slots=True)
class Thread:
    """The place of an interception in its thread, found by the tool call or the answer that it continues."""

    parent_id: str | None = None
    root_id: str | None = None
    session_id: str | None = None
    """The session of the answer that it continues."""


def started(record: records.InterceptionStarted, thread: Thread) -> Row:
    return {
        "id": record.id,
        "initiator_id": record.initiator_id,
        "provider": record.provider,
        "provider_name": record.provider_name,
        "model": record.model,
        "client": record.client,
        "client_session_id": record.client_session_id,
        "session_id": record.client_session_id or thread.session_id or thread.root_id or record.id,
        "user_agent": record.user_agent,
        "route": record.route,
        "streaming": record.streaming,
        "started_at": timestamp(record.started_at),
        "credential_kind": record.credential_kind,
        "credential_hint": record.credential_hint,
        "correlating_tool_call_id": record.correlating_tool_call_id,
        "thread_parent_id": thread.parent_id,
        "thread_root_id": thread.root_id,
        "metadata": _json(record.metadata),
        "upstream_host": record.upstream_host,
        "agent_id": record.agent_id,
        "prompt_id": record.prompt_id,
        "project": record.project,
        "request_class": record.request_class,
        "billing": record.billing,
        "instance_id": record.instance_id,
    }


def ended(record: records.InterceptionEnded) -> Row:
    """Return the columns to update. Columns of `KEPT` are null if they stay unchanged."""
    return {
        "ended_at": timestamp(record.ended_at),
        "status": record.status,
        "http_status": record.http_status,
        "error_type": record.error_type,
        "error_message": record.error_message,
        "turns": record.turns,
        "time_to_first_byte_ms": record.time_to_first_byte_ms,
        "credential_hint": record.credential_hint,
        "metadata": None if record.metadata is None else _json(record.metadata),
    }


def with_end(begun: Row, record: records.InterceptionEnded) -> Row:
    """Return the row of an interception that starts and ends in one batch."""
    end = {column: value for column, value in ended(record).items() if value is not None or column not in KEPT}
    return {**begun, **end, "model": begun["model"] or record.model or ""}


def token_usage(record: records.TokenUsage) -> Row:
    return _child(record, _with_terms(record)) | {
        "model": record.model,
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "cache_read_input_tokens": record.cache_read_input_tokens,
        "cache_write_input_tokens": record.cache_write_input_tokens,
        "completeness": record.completeness,
        "cost_usd": record.cost_usd,
        "turn": record.turn,
        "kind": record.kind,
        "stop_reason": record.stop_reason,
        "cost_source": record.cost_source,
        "price_list": record.price_list,
        "unpriced": record.unpriced,
    }


def _with_terms(record: records.TokenUsage) -> Mapping[str, Any]:
    """Return what the provider said of usage, and what else decided the price."""
    terms = {name: value for name in TERMS if (value := getattr(record.terms, name))}
    said = {name: value for name, value in record.extra.items() if name != PRICE_TERMS}
    return {**said, PRICE_TERMS: terms} if terms else said


def user_prompt(record: records.UserPrompt) -> Row:
    return _child(record) | {"prompt": record.prompt, "sequence": record.sequence}


def tool_usage(record: records.ToolUsage) -> Row:
    return _child(record, record.metadata) | {
        "provider_tool_call_id": record.provider_tool_call_id,
        "tool": record.tool,
        "server_name": record.server_name,
        "server_url": record.server_url,
        "input": None if record.input is None else _json(record.input),
        "injected": record.injected,
        "invocation_error": record.invocation_error,
        "duration_ms": record.duration_ms,
        "sequence": record.sequence,
        "result": record.result,
    }


def tool_result(record: records.ToolResult) -> Row:
    """Return what the row of a call is updated with."""
    added = {"result_is_error": record.is_error, "result_truncated": record.truncated}
    return {
        "interception_id": record.interception_id,
        "call_id": record.provider_tool_call_id,
        "result": record.result,
        "metadata": _json({name: True for name, is_so in added.items() if is_so}),
    }


def answer(record: records.Answer) -> Row:
    return _child(record) | {
        "content": record.content,
        "truncated": record.truncated,
        "sequence": record.sequence,
    }


def model_thought(record: records.ModelThought) -> Row:
    return _child(record, {"source": record.source}) | {
        "content": record.content,
        "sequence": record.sequence,
    }


def plan_limit(record: records.PlanLimit) -> Row:
    return {
        "id": record.id or str(uuid.uuid4()),
        "initiator_id": record.initiator_id,
        "provider_name": record.provider_name,
        "credential_hint": record.credential_hint,
        "window_name": record.window_name,
        "used_ratio": record.used_ratio,
        "limit_value": record.limit_value,
        "remaining": record.remaining,
        "resets_at": None if record.resets_at is None else timestamp(record.resets_at),
        "observed_at": timestamp(record.observed_at),
        "metadata": _json(record.metadata),
    }


def continuation(record: records.Continuation) -> Row:
    """Return the row without redaction: its value goes back to the provider, for the same user."""
    return {
        "key": record.key,
        "value": _json(record.value),
        "expires_at": timestamp(record.expires_at),
        "interception_id": record.interception_id,
        "initiator_id": record.initiator_id,
    }


def _child(
    record: records.TokenUsage | records.UserPrompt | records.ToolUsage | records.Answer | records.ModelThought,
    metadata: Mapping[str, Any] | None = None,
) -> Row:
    """Return the columns that all tables of an interception's details have."""
    return {
        "id": record.id or str(uuid.uuid4()),
        "interception_id": record.interception_id,
        "provider_response_id": record.provider_response_id,
        "metadata": _json(metadata) if metadata else "{}",
        "created_at": timestamp(record.created_at),
    }


DETAILS: Mapping[type, tuple[str, Callable[[Any], Row]]] = MappingProxyType(
    {
        records.TokenUsage: ("aibridge_token_usages", token_usage),
        records.UserPrompt: ("aibridge_user_prompts", user_prompt),
        records.ToolUsage: ("aibridge_tool_usages", tool_usage),
        records.Answer: ("aibridge_answers", answer),
        records.ModelThought: ("aibridge_model_thoughts", model_thought),
    }
)
"""By record, the table of an interception's details, and what makes a row of it."""
INSERTED: Mapping[type, tuple[str, Callable[[Any], Row]]] = MappingProxyType(
    {**DETAILS, records.PlanLimit: ("aibridge_plan_limits", plan_limit)}
)
"""The same for all records that are rows of their own and never change."""
DETAIL_TABLES = tuple(table for table, _ in DETAILS.values())


def timestamp(moment: datetime) -> str:
    """Format a time as ISO 8601 in UTC with microseconds, which sorts as text."""
    moment = moment.astimezone(UTC)
    if not moment.microsecond:  # msgspec leaves them out
        return moment.isoformat(timespec="microseconds")
    return f"{_json(moment)[1:-2]}+00:00"  # takes a third of the time of `isoformat`


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
