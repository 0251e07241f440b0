"""Structured log lines: the members that a record has in JSON.

The names follow the structured log of Coder's AI Gateway, so that a filter by `record_type` works for both.
`docs/log.schema.json` has every member.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aibridge_addon import records

MESSAGE = "interception log"
"""The message of every line that a record makes."""
MAX_TEXT = 64 * 1024
"""Characters of a text in a line. What is longer is cut, because collectors drop longer lines."""
MAX_KEYS = 50_000
"""Keys of earlier answers and calls that are remembered, to find the interception that a request continues."""

Members = Mapping[str, Any]


class StructuredLog:
    """Turns records into members of a log line. Remembers only what the next lines need."""

    def __init__(self) -> None:
        self._threads = _Threads()

    def members(self, record: records.Record) -> Members | None:
        """Return the members of a record's line. None: it has no line."""
        found = self._members(record)
        return None if found is None else {name: _cut(value) for name, value in found.items()}

    def _members(self, record: records.Record) -> Members | None:
        match record:
            case records.InterceptionStarted():
                parent, root = self._threads.begin(record)
                return _started(record, parent, root)
            case records.InterceptionEnded():
                self._threads.remember(record.interception_id, record.thread_keys)
                return _ended(record)
            case records.TokenUsage():
                return _tokens(record)
            case records.UserPrompt():
                return _of("prompt_usage", record, {"prompt": record.prompt})
            case records.ToolUsage():
                self._threads.remember(record.interception_id, record.thread_keys)
                return _tool(record)
            case records.ModelThought():
                content = {"content": record.content, "metadata": {"source": record.source}}
                return _of("model_thought", record, content)
            case records.Answer():
                text = {"content": record.content, "truncated": record.truncated}
                return _of("answer", record, text)
            case records.Passthrough():
                return {
                    "record_type": "passthrough",
                    "provider": record.provider_name,
                    "route": record.route,
                    "method": record.method,
                    "initiator_id": record.initiator_id,
                    "billable": record.billable,
                }
            case records.Refused():
                return {
                    "record_type": "request_refused",
                    "reason": record.reason,
                    "http_status": record.status,
                    "provider": record.provider_name,
                    "route": record.route,
                    "method": record.method,
                    "interception_id": record.interception_id,
                    "client_address": record.client_address,
                    "path": record.path,
                }
            case _:
                return None


def _started(record: records.InterceptionStarted, parent: str | None, root: str | None) -> Members:
    return {
        "record_type": "interception_start",
        "interception_id": record.id,
        "initiator_id": record.initiator_id,
        "api_key_id": record.credential_hint,
        "provider": record.provider_name,
        "provider_type": record.provider,
        "model": record.model,
        "client": record.client,
        "client_session_id": record.client_session_id,
        "user_agent": record.user_agent,
        "route": record.route,
        "streaming": record.streaming,
        "started_at": timestamp(record.started_at),
        "metadata": dict(record.metadata),
        "correlating_tool_call_id": record.correlating_tool_call_id,
        "thread_parent_id": parent,
        "thread_root_id": root,
    }


def _ended(record: records.InterceptionEnded) -> Members:
    return {
        "record_type": "interception_end",
        "interception_id": record.interception_id,
        "ended_at": timestamp(record.ended_at),
        "status": record.status,
        "model": record.model,
        "http_status": record.http_status,
        "error_type": record.error_type,
        "error_message": record.error_message,
        "turns": record.turns,
        "time_to_first_byte_ms": record.time_to_first_byte_ms,
    }


def _tokens(record: records.TokenUsage) -> Members:
    return {
        "record_type": "token_usage",
        "interception_id": record.interception_id,
        "msg_id": record.provider_response_id,
        "provider": record.provider_name,
        "model": record.model,
        "turn": record.turn,
        "kind": record.kind,
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "cache_read_input_tokens": record.cache_read_input_tokens,
        "cache_write_input_tokens": record.cache_write_input_tokens,
        "completeness": record.completeness,
        "stop_reason": record.stop_reason,
        "cost_usd": record.cost_usd,
        "cost_source": record.cost_source,
        "unpriced": record.unpriced,
        "created_at": timestamp(record.created_at),
        "metadata": dict(record.extra),
    }


def _tool(record: records.ToolUsage) -> Members:
    return _of(
        "tool_usage",
        record,
        {
            "tool_call_id": record.provider_tool_call_id,
            "tool": record.tool,
            "input": _cut_input(record.input),
            "result": record.result,
            "server_name": record.server_name,
            "server_url": record.server_url,
            "injected": record.injected,
            "invocation_error": record.invocation_error,
            "duration_ms": record.duration_ms,
            "metadata": dict(record.metadata),
        },
    )


def _of(
    kind: str, record: records.UserPrompt | records.ToolUsage | records.Answer | records.ModelThought, more: Members
) -> Members:
    return {
        "record_type": kind,
        "interception_id": record.interception_id,
        "msg_id": record.provider_response_id,
        "created_at": timestamp(record.created_at),
        "metadata": {},
        **more,
    }


def timestamp(moment: datetime) -> str:
    """Return a time as RFC 3339 has it, in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _cut(value: Any) -> Any:
    """Return a value whose texts, at any depth, are not too long."""
    match value:
        case str() if len(value) > MAX_TEXT:
            return f"{value[:MAX_TEXT]}… ({len(value) - MAX_TEXT} more characters)"
        case dict():
            return {_cut(name): _cut(member) for name, member in value.items()}
        case list() | tuple():
            return [_cut(item) for item in value]
    return value


def _cut_input(value: object) -> object:
    """Return arguments as they are. Too large ones become their text, which is cut."""
    if isinstance(value, str):
        return value
    text = json.dumps(value, default=str)
    return value if len(text) <= MAX_TEXT else text


class _Threads:
    """Finds the interception that a request continues, among the last ones of this process."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, str] = OrderedDict()
        """The interception behind a key of an answer or a call."""
        self._roots: OrderedDict[str, str] = OrderedDict()

    def begin(self, record: records.InterceptionStarted) -> tuple[str | None, str | None]:
        """Return the parent and the root of a request's thread. None: it continues nothing that is known."""
        parent = next((self._owners[key] for key in record.thread_keys if key in self._owners), None)
        root = None if parent is None else self._roots.get(parent, parent)
        if root is not None:
            self._roots[record.id] = root
            _bound(self._roots)
        return parent, root

    def remember(self, id: str, keys: tuple[str, ...]) -> None:
        for key in keys:
            self._owners[key] = id
            self._owners.move_to_end(key)
        _bound(self._owners)


def _bound(kept: OrderedDict[str, str]) -> None:
    while len(kept) > MAX_KEYS:
        kept.popitem(last=False)
