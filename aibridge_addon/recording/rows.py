"""From records to rows: what is stored of each, and in which form. One place for every database."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from aibridge_addon import records
from aibridge_addon.config.schema import Recording
from aibridge_addon.credentials.redaction import Redactor
from aibridge_addon.recording.pricing import cost_usd

Row = dict[str, Any]
KEPT = frozenset({"credential_hint", "metadata"})
"""Columns of an interception's end that a null leaves as they were at its start."""
Priced = Callable[[str, str, float | None], None]


def _nobody(_provider_name: str, _model: str, _cost: float | None) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Thread:
    """Where an interception stands in its conversation: who asked for the tool call whose result it brings."""

    parent_id: str | None = None
    root_id: str | None = None


class RowBuilder:
    """Builds rows under the configuration's `recording` section."""

    def __init__(self, recording: Recording, priced: Priced = _nobody) -> None:
        """`priced` is told of every token row what it cost, None where no price is known; on the writer's thread."""
        self._recording = recording
        self._priced = priced
        self._redact = Redactor(recording.redact)

    def started(self, record: records.InterceptionStarted, thread: Thread) -> Row:
        return {
            "id": record.id,
            "initiator_id": record.initiator_id,
            "provider": record.provider,
            "provider_name": record.provider_name,
            "model": record.model,
            "client": record.client,
            "client_session_id": record.client_session_id,
            "session_id": record.client_session_id or thread.root_id or record.id,
            "user_agent": record.user_agent,
            "route": record.route,
            "streaming": int(record.streaming),
            "started_at": timestamp(record.started_at),
            "credential_kind": record.credential_kind,
            "credential_hint": record.credential_hint,
            "correlating_tool_call_id": record.correlating_tool_call_id,
            "thread_parent_id": thread.parent_id,
            "thread_root_id": thread.root_id,
            "metadata": _json(record.metadata),
        }

    def ended(self, record: records.InterceptionEnded) -> Row:
        """The columns of `KEPT` are null where they are to stay as they were."""
        return {
            "ended_at": timestamp(record.ended_at),
            "status": record.status,
            "http_status": record.http_status,
            "error_type": record.error_type,
            "error_message": self._redact.maybe_text(record.error_message),
            "turns": record.turns,
            "credential_hint": record.credential_hint,
            "metadata": None if record.metadata is None else _json(record.metadata),
        }

    def token_usage(self, record: records.TokenUsage) -> Row:
        cost = cost_usd(record)
        self._priced(record.provider_name, record.model, cost)
        return _child(record, record.extra) | {
            "model": record.model,
            "input_tokens": record.input_tokens,
            "output_tokens": record.output_tokens,
            "cache_read_input_tokens": record.cache_read_input_tokens,
            "cache_write_input_tokens": record.cache_write_input_tokens,
            "completeness": record.completeness,
            "cost_usd": cost,
        }

    def user_prompt(self, record: records.UserPrompt) -> Row:
        text = self._redact.text(record.prompt) if self._recording.prompts else None
        return _child(record) | {"prompt": text}

    def tool_usage(self, record: records.ToolUsage) -> Row:
        recorded = self._recording.tool_inputs
        return _child(record, record.metadata) | {
            "provider_tool_call_id": record.provider_tool_call_id,
            "tool": record.tool,
            "server_name": record.server_name,
            "server_url": record.server_url,
            "input": _json(self._redact.value(record.input)) if recorded else None,
            "injected": int(record.injected),
            "invocation_error": self._redact.maybe_text(record.invocation_error),
            "duration_ms": record.duration_ms,
        }

    def model_thought(self, record: records.ModelThought) -> Row:
        text = self._redact.text(record.content) if self._recording.thoughts else None
        return _child(record, {"source": record.source}) | {"content": text}

    def continuation(self, record: records.Continuation) -> Row:
        """As it is, nothing redacted: it goes back to the provider, for the same user."""
        return {"key": record.key, "value": _json(record.value), "expires_at": timestamp(record.expires_at)}


def _child(
    record: records.TokenUsage | records.UserPrompt | records.ToolUsage | records.ModelThought,
    metadata: Mapping[str, Any] | None = None,
) -> Row:
    """The columns that every table but the first has."""
    return {
        "id": str(uuid.uuid4()),
        "interception_id": record.interception_id,
        "provider_response_id": record.provider_response_id,
        "metadata": _json(metadata) if metadata else "{}",
        "created_at": timestamp(record.created_at),
    }


def timestamp(moment: datetime) -> str:
    """UTC, ISO 8601 with microseconds: sorts as text."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
