"""Records of every kind, with secrets in their texts, and the rows that a database makes of them as they are."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from aibridge_addon import records
from aibridge_addon.recording.instances import Instance
from tests.support.database import Row, Table, read_table
from tests.support.reading import NOON


def uid(name: str) -> str:
    """Return an interception's id in which the name can be seen."""
    return str(UUID(bytes=name.encode().ljust(16, b"\0")))


ID = uid("i1")
NOON_TEXT = "2026-01-02T12:00:00.000000+00:00"
INSTANCE = Instance(uid("instance-1"), "host-1", 4711, "1.0", NOON)
STARTED = records.InterceptionStarted(
    id=ID,
    initiator_id="ada",
    provider="anthropic",
    provider_name="anthropic-eu",
    model="claude-1",
    client="Claude Code",
    client_session_id="s1",
    user_agent="claude-cli/2",
    route="/v1/messages",
    streaming=True,
    credential_kind="byok",
    credential_hint="sk-a...efgh",
    correlating_tool_call_id=None,
    metadata={"org_id": "org-456"},
    started_at=NOON,
    upstream_host="api.example",
    agent_id="agent-1",
    prompt_id="prompt-1",
    project="/src/app",
    request_class="prompt",
    billing="api",
)
ENDED = records.InterceptionEnded(
    interception_id=ID,
    status="failed",
    model="claude-1-20260101",
    http_status=529,
    error_type="overloaded_error",
    error_message="too much with key sk-ant-0123456789abcdef",
    turns=1,
    ended_at=NOON + timedelta(seconds=1.5),
    time_to_first_byte_ms=250,
)
TOKENS = records.TokenUsage(
    interception_id=ID,
    provider_response_id="msg_1",
    provider="anthropic",
    provider_name="anthropic-eu",
    model="no-such-model",
    input_tokens=1,
    output_tokens=2,
    cache_read_input_tokens=3,
    cache_write_input_tokens=2**62,
    completeness="partial",
    extra={"server_tool_use.web_search_requests": 1, "service_tier": "standard"},
    created_at=NOON,
    turn=2,
    kind="compaction",
    stop_reason="end_turn",
    cost_source="price_list",
    price_list="1.2",
    unpriced="no price",
)
PROMPT = records.UserPrompt(ID, "msg_1", "Grüße 😀 \0 my key is sk-ant-0123456789abcdef", NOON)
TOOL = records.ToolUsage(
    interception_id=ID,
    provider_response_id="msg_1",
    provider_tool_call_id="toolu_1",
    tool="Read",
    input={"path": "/é", "n": 10**30, "key": "sk-ant-0123456789abcdef"},
    injected=False,
    created_at=NOON,
    server_name="files",
    server_url="https://mcp.example/files",
    invocation_error="boom",
    duration_ms=12,
    metadata={"server_side": True},
    sequence=2,
    result="the key is sk-ant-0123456789abcdef",
)
ANSWER = records.Answer(ID, "msg_1", "Done: sk-ant-0123456789abcdef", truncated=True, created_at=NOON, sequence=3)
THOUGHT = records.ModelThought(ID, "msg_1", "let me see", "thinking", NOON, sequence=1)
PLAN_LIMIT = records.PlanLimit(
    initiator_id="ada",
    provider_name="anthropic",
    credential_hint="sk-a...0001",
    window_name="5h",
    used_ratio=0.42,
    limit_value=4_000_000.5,
    remaining=None,
    resets_at=NOON + timedelta(hours=5),
    observed_at=NOON,
    metadata={"status": "allowed", "representative": True},
    id=uid("limit"),
)
PASSTHROUGH = records.Passthrough("anthropic-eu", "/v1/models", "GET", "ada")

STARTED_ROW: Row = {
    "id": ID,
    "initiator_id": "ada",
    "provider": "anthropic",
    "provider_name": "anthropic-eu",
    "model": "claude-1",
    "client": "Claude Code",
    "client_session_id": "s1",
    "session_id": "s1",
    "user_agent": "claude-cli/2",
    "route": "/v1/messages",
    "streaming": True,
    "started_at": NOON_TEXT,
    "ended_at": None,
    "status": None,
    "http_status": None,
    "error_type": None,
    "error_message": None,
    "credential_kind": "byok",
    "credential_hint": "sk-a...efgh",
    "correlating_tool_call_id": None,
    "thread_parent_id": None,
    "thread_root_id": None,
    "turns": None,
    "metadata": {"org_id": "org-456"},
    "upstream_host": "api.example",
    "agent_id": "agent-1",
    "prompt_id": "prompt-1",
    "project": "/src/app",
    "request_class": "prompt",
    "billing": "api",
    "time_to_first_byte_ms": None,
    "instance_id": None,
    "content_deleted_at": None,
}
ENDED_ROW = STARTED_ROW | {
    "ended_at": "2026-01-02T12:00:01.500000+00:00",
    "status": "failed",
    "http_status": 529,
    "error_type": "overloaded_error",
    "error_message": ENDED.error_message,
    "turns": 1,
    "time_to_first_byte_ms": 250,
}
COMMON = {"interception_id": ID, "provider_response_id": "msg_1", "created_at": NOON_TEXT}
CHILD_ROWS: dict[Table, tuple[records.Record, Row]] = {
    "aibridge_token_usages": (
        TOKENS,
        {
            "model": "no-such-model",
            "input_tokens": 1,
            "output_tokens": 2,
            "cache_read_input_tokens": 3,
            "cache_write_input_tokens": 2**62,
            "completeness": "partial",
            "cost_usd": None,
            "metadata": {"server_tool_use.web_search_requests": 1, "service_tier": "standard"},
            "turn": 2,
            "kind": "compaction",
            "stop_reason": "end_turn",
            "cost_source": "price_list",
            "price_list": "1.2",
            "unpriced": "no price",
        },
    ),
    "aibridge_user_prompts": (PROMPT, {"prompt": PROMPT.prompt, "metadata": {}, "sequence": 0}),
    "aibridge_tool_usages": (
        TOOL,
        {
            "provider_tool_call_id": "toolu_1",
            "tool": "Read",
            "server_name": "files",
            "server_url": "https://mcp.example/files",
            "input": TOOL.input,
            "injected": False,
            "invocation_error": "boom",
            "duration_ms": 12,
            "metadata": {"server_side": True},
            "sequence": 2,
            "result": TOOL.result,
        },
    ),
    "aibridge_answers": (ANSWER, {"content": ANSWER.content, "truncated": True, "metadata": {}, "sequence": 3}),
    "aibridge_model_thoughts": (
        THOUGHT,
        {"content": "let me see", "metadata": {"source": "thinking"}, "sequence": 1},
    ),
}


def interceptions(path: Path) -> dict[str, Row]:
    return {row["id"]: row for row in read_table(path, "aibridge_interceptions")}


def started(name: str, *, after: str | None = None, who: str = "ada", session: str | None = None) -> records.Record:
    keys = (f"{who} {after}",) if after is not None else ()
    begun = replace(STARTED, id=uid(name), initiator_id=who, client_session_id=session)
    return replace(begun, correlating_tool_call_id=after, thread_keys=keys)


def continuing(name: str, response_id: str, who: str = "ada") -> records.Record:
    """The start of a request that continues an answer, of a client without sessions."""
    return replace(
        STARTED, id=uid(name), initiator_id=who, client_session_id=None, thread_keys=(f"{who} {response_id}",)
    )


def answered(name: str, response_id: str, who: str = "ada") -> records.Record:
    return replace(ENDED, interception_id=uid(name), thread_keys=(f"{who} {response_id}",))


def brought(name: str, call_id: str, result: str | None = "ok", *, is_error: bool = False) -> records.Record:
    return records.ToolResult(uid(name), call_id, result, is_error=is_error, truncated=False, created_at=NOON)


def called(name: str, call_id: str, seconds: int = 0, who: str = "ada") -> records.Record:
    at = NOON + timedelta(seconds=seconds)
    keys = (f"{who} {call_id}",)
    return replace(TOOL, interception_id=uid(name), provider_tool_call_id=call_id, created_at=at, thread_keys=keys)
