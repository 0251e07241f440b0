"""What stands in the database after real exchanges: every column of the contract, and where its value comes from.

Rows are read as soon as the client has its answer: they are committed by then.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.conftest import StartProxy
from tests.support import fixtures
from tests.support.client import gateway_client
from tests.support.database import Row, Table, query, said_of_usage
from tests.support.fixtures import Case
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream, unused_port

INTERCEPTIONS: Table = "aibridge_interceptions"
TOKENS: Table = "aibridge_token_usages"
PROMPTS: Table = "aibridge_user_prompts"
TOOLS: Table = "aibridge_tool_usages"
ANSWERS: Table = "aibridge_answers"
THOUGHTS: Table = "aibridge_model_thoughts"

CHILD = "id interception_id provider_response_id metadata created_at "
COLUMNS: dict[Table, str] = {
    INTERCEPTIONS: "id initiator_id provider provider_name model client client_session_id session_id user_agent route "
    "streaming started_at ended_at status http_status error_type error_message credential_kind credential_hint "
    "correlating_tool_call_id thread_parent_id thread_root_id turns metadata "
    "upstream_host agent_id prompt_id project request_class billing time_to_first_byte_ms instance_id "
    "content_deleted_at",
    TOKENS: CHILD + "model input_tokens output_tokens cache_read_input_tokens cache_write_input_tokens completeness "
    "cost_usd turn kind stop_reason cost_source price_list unpriced",
    PROMPTS: CHILD + "prompt sequence",
    TOOLS: CHILD + "provider_tool_call_id tool server_name server_url input injected invocation_error duration_ms "
    "sequence result",
    ANSWERS: CHILD + "content truncated sequence",
    THOUGHTS: CHILD + "content sequence",
    "aibridge_plan_limits": "id initiator_id provider_name credential_hint window_name used_ratio limit_value "
    "remaining resets_at observed_at metadata",
}
ROUTES = {
    "messages": "/anthropic/v1/messages",
    "chat_completions": "/openai/v1/chat/completions",
    "responses": "/openai/v1/responses",
}
KEY = "sk-ant-0123456789-abcdefghijkl"
FORWARDED = "X-Forwarded-User"


def config(upstream: ScriptedUpstream, **sections: str) -> str:
    return "".join(f"{name}: {section}\n" for name, section in sections.items()) + (
        "providers:\n"
        f"  - {{name: anthropic, type: anthropic, base_url: '{upstream.url}', price_as: anthropic}}\n"
        f"  - {{name: openai, type: openai, base_url: '{upstream.url}/v1'}}\n"
        f"  - {{name: my-azure, type: azure, base_url: '{upstream.url}'}}\n"
        f"  - {{name: nobody, type: anthropic, base_url: 'https://localhost:{unused_port()}'}}\n"
    )


def play(
    process: RunningProxy,
    upstream: ScriptedUpstream,
    case: Case,
    *,
    path: str | None = None,
    request: bytes | None = None,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Row:
    """Let the case happen, with parts of it replaced, and return its interception."""
    content = case.body if body is None else body
    upstream.answer(Answer(case.status, [("content-type", case.content_type)], content))
    fields = [(name.decode(), value.decode()) for name, value in case.request_headers]
    fields += {"x-api-key": KEY, **(headers or {})}.items()
    before = len(process.rows(INTERCEPTIONS))
    with gateway_client(process) as client:
        target = path or ROUTES[case.dialect]
        answer = client.post(target, content=request or case.request, headers=httpx.Headers(fields))
        assert (answer.status_code, answer.content) == (case.status, content)
    [row] = process.rows(INTERCEPTIONS)[before:]
    return row


def of(process: RunningProxy, table: Table, interception: Row) -> list[Row]:
    return [row for row in process.rows(table) if row["interception_id"] == interception["id"]]


@pytest.fixture
def process(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(config=config(upstream, actor="{default: team, metadata: {org_id: org-456, ci: 'yes'}}"))


# --- columns


def test_the_tables_have_exactly_the_columns_of_the_contract(process: RunningProxy) -> None:
    for table, columns in COLUMNS.items():
        found = [row["name"] for row in query(process.database, f"PRAGMA table_info({table})")]
        assert sorted(found) == sorted(columns.split()), table
    tables = query(process.database, "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'aibridge%'")
    others = (
        *("continuations", "instances", "threads", "hourly_usage", "budget_reservations", "tokens", "token_key"),
        *("tool_pins", "mcp_tokens", "mcp_logins", "mcp_clients"),
    )
    assert {row["name"] for row in tables} == {*COLUMNS, *(f"aibridge_{name}" for name in others)}
    assert query(process.database, "PRAGMA journal_mode") == [{"journal_mode": "wal"}]


def test_an_interception_says_who_asked_what_of_which_model(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    began = datetime.now(UTC)
    case = fixtures.case("messages/simple/streaming")
    row = play(process, upstream, case)
    assert sum(row["metadata"].pop("context_bytes").values()) == len(case.request)
    assert uuid.UUID(row["id"]) and uuid.UUID(row.pop("instance_id"))
    started, ended = moment(row.pop("started_at")), moment(row.pop("ended_at"))
    assert row.pop("time_to_first_byte_ms") >= 0
    assert began <= started <= ended <= datetime.now(UTC)
    assert row == {
        "id": row["id"],
        "initiator_id": "team",
        "provider": "anthropic",
        "provider_name": "anthropic",
        "model": "claude-sonnet-4-5-20250929",
        "client": "Unknown",
        "client_session_id": None,
        "session_id": row["id"],
        "user_agent": "Anthropic/Python 0.125.0",
        "route": "/v1/messages",
        "streaming": 1,
        "status": "completed",
        "http_status": 200,
        "error_type": None,
        "error_message": None,
        "credential_kind": "byok",
        "credential_hint": "sk-a...ijkl",
        "content_deleted_at": None,
        "correlating_tool_call_id": None,
        "thread_parent_id": None,
        "thread_root_id": None,
        "turns": 1,
        "metadata": {"org_id": "org-456", "ci": "yes"},
        "upstream_host": httpx.URL(upstream.url).host,
        "agent_id": None,
        "prompt_id": None,
        "project": None,
        "request_class": "prompt",
        "billing": "api",
    }


def test_the_other_rows_hang_on_their_interception(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    case = fixtures.case("responses/codex_main/blocking")
    interception = play(process, upstream, case)
    assert (interception["streaming"], interception["route"]) == (0, "/v1/responses")
    for table in (TOKENS, PROMPTS, TOOLS, THOUGHTS):
        rows = of(process, table, interception)
        assert len(rows) == (2 if table == THOUGHTS else 1)
        for row in rows:
            assert uuid.UUID(row["id"])
            assert row["provider_response_id"] == case.expected["response_id"]
            assert moment(interception["started_at"]) <= moment(row["created_at"]) <= moment(interception["ended_at"])
    [tokens], [prompt], [tool] = (of(process, table, interception) for table in (TOKENS, PROMPTS, TOOLS))
    [counts] = case.expected["tokens"]
    assert {**{name: tokens[name] for name in counts if name != "extra"}, "extra": said_of_usage(tokens)} == counts
    assert prompt["prompt"] == "What have I changed?"
    assert (tool["tool"], tool["input"]) == ("exec_command", {"cmd": "git status --short", "workdir": "/repo"})
    assert tool["injected"] == 0
    assert {tool[name] for name in ("invocation_error", "server_name", "server_url", "duration_ms")} == {None}


def moment(text: str) -> datetime:
    """A time as it is stored: UTC, with microseconds, so that it sorts as text."""
    parsed = datetime.fromisoformat(text)
    assert parsed.utcoffset() == timedelta(0)
    assert len(text) == len("2026-01-02T12:00:00.000000+00:00")
    return parsed


# --- lineage and sessions


def tool_result(dialect: str, call_id: str) -> bytes:
    """A request that ends in the result of a call."""
    body: dict[str, Any] = {"model": "m", "max_tokens": 9}
    if dialect == "messages":
        result = {"type": "tool_result", "tool_use_id": call_id, "content": "ok"}
        body["messages"] = [{"role": "user", "content": [result]}]
    elif dialect == "chat_completions":
        body["messages"] = [{"role": "tool", "tool_call_id": call_id, "content": "ok"}]
    else:
        body["input"] = [{"type": "function_call_output", "call_id": call_id, "output": "ok"}]
    return json.dumps(body).encode()


@pytest.mark.parametrize("dialect", ROUTES)
def test_a_tool_result_continues_the_thread_that_asked_for_the_call(
    start_proxy: StartProxy, upstream: ScriptedUpstream, dialect: str
) -> None:
    process = start_proxy(config=config(upstream, actor=f"{{header: {FORWARDED}, default: ada}}"))
    parallel, single = (fixtures.case(f"{dialect}/{name}/blocking") for name in ("parallel_tools", "client_tool"))
    simple = fixtures.case(f"{dialect}/simple/blocking")
    *_, last_call = [call["provider_tool_call_id"] for call in parallel.expected["tools"]]
    [next_call] = [call["provider_tool_call_id"] for call in single.expected["tools"]]

    first = play(process, upstream, parallel)
    second = play(process, upstream, single, request=tool_result(dialect, last_call))
    third = play(process, upstream, simple, request=tool_result(dialect, next_call))
    others = play(process, upstream, simple, request=tool_result(dialect, next_call), headers={FORWARDED: "eve"})
    nobodys = play(process, upstream, simple, request=tool_result(dialect, "call_of_nobody"))

    names = ("correlating_tool_call_id", "thread_parent_id", "thread_root_id", "session_id")
    assert [tuple(row[name] for name in names) for row in (first, second, third, others, nobodys)] == [
        (None, None, None, first["id"]),
        (last_call, first["id"], first["id"], first["id"]),
        (next_call, second["id"], first["id"], first["id"]),
        (next_call, None, None, others["id"]),
        ("call_of_nobody", None, None, nobodys["id"]),
    ]
    assert [len(of(process, PROMPTS, row)) for row in (first, second, third)] == [1, 0, 0]


def test_a_client_is_known_by_its_headers_and_its_session_is_ours(
    process: RunningProxy, upstream: ScriptedUpstream
) -> None:
    for name, client in (
        ("messages/claude_code_main", "Claude Code"),
        ("messages/claude_code_session_in_body", "Claude Code"),
        ("messages/claude_code_legacy_session", "Claude Code"),
        ("responses/codex_main", "Codex"),
    ):
        case = fixtures.case(f"{name}/streaming")
        row = play(process, upstream, case)
        session = case.expected["client_session_id"]
        assert session
        assert (row["client"], row["client_session_id"], row["session_id"]) == (client, session, session)
        assert row["user_agent"] == dict(case.request_headers)[b"user-agent"].decode()
        assert [prompt["prompt"] for prompt in of(process, PROMPTS, row)] == [case.expected["prompt"]]


def test_what_a_client_asks_for_itself_is_no_prompt(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    for name in (
        "messages/claude_code_probe",
        "messages/claude_code_title",
        "messages/claude_code_title_unmarked",
        "messages/claude_code_subagent",
        "messages/tool_result_follow_up",
        "responses/codex_prewarm",
        "responses/codex_prewarm_with_input",
        "responses/codex_compaction",
        "responses/custom_tool_result_follow_up",
        "chat_completions/tool_result_follow_up",
    ):
        case = fixtures.case(f"{name}/streaming")
        row = play(process, upstream, case)
        assert of(process, PROMPTS, row) == [], case
        assert len(of(process, TOKENS, row)) == 1, case


# --- what is not to be stored


def test_text_is_left_out_where_the_configuration_says_so(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    recording = "{prompts: false, tool_inputs: false, thoughts: false}"
    process = start_proxy(config=config(upstream, recording=recording))
    row = play(process, upstream, fixtures.case("messages/claude_code_main/streaming"))
    assert [prompt["prompt"] for prompt in of(process, PROMPTS, row)] == [None]
    assert [(tool["tool"], tool["input"]) for tool in of(process, TOOLS, row)] == [("Bash", None)]
    thoughts = of(process, THOUGHTS, row)
    assert [(thought["content"], thought["metadata"]) for thought in thoughts] == [(None, {"source": "thinking"})]
    assert len(of(process, TOKENS, row)) == 1


SECRETS = (
    "sk-ant-api03-" + "A1" * 20,
    "sk-proj-" + "B2" * 20,
    "ghp_" + "c3" * 18,
    "AKIA" + "D4" * 8,
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
)


def test_secrets_and_the_operators_patterns_are_redacted_everywhere(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    patterns = json.dumps([r"ticket-\d+", 'say "[a-z]+"', r"größer\s+als"])
    process = start_proxy(config=config(upstream, recording=f"{{redact: {patterns}}}"))
    simple, refused = (fixtures.case(f"messages/{name}/blocking") for name in ("simple", "error_before_429"))
    redacted = "x\n[redacted]\ny"
    for secret in (*SECRETS, "ticket-4711", 'say "please"', "größer\tals"):
        text = f"x\n{secret}\ny"
        call_input = {"a": [text, 1], "b": {"c": text}, text: None}
        blocks = [
            {"type": "thinking", "thinking": text, "signature": ""},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": call_input},
        ]
        body = json.dumps({**json.loads(simple.body), "content": blocks}).encode()
        asked = json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": text}]}).encode()
        row = play(process, upstream, simple, request=asked, body=body)
        assert [prompt["prompt"] for prompt in of(process, PROMPTS, row)] == [redacted]
        assert [thought["content"] for thought in of(process, THOUGHTS, row)] == [redacted]
        wanted = {"a": [redacted, 1], "b": {"c": redacted}, redacted: None}
        assert [tool["input"] for tool in of(process, TOOLS, row)] == [wanted]
        error = {"type": "error", "error": {"type": "rate_limit_error", "message": text}}
        failed = play(process, upstream, refused, body=json.dumps(error).encode())
        assert failed["error_message"] == redacted


def test_an_input_of_any_depth_is_recorded(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    case = fixtures.case("messages/simple/blocking")
    deep = b"[" * 5000 + b"]" * 5000
    block = b'{"type":"tool_use","id":"toolu_1","name":"f","input":{"a":1,"b":%s}}' % deep
    body = case.body.replace(b'"content":[', b'"content":[' + block + b",", 1)
    row = play(process, upstream, case, body=body)
    [tool] = of(process, TOOLS, row)
    assert tool["input"]["a"] == 1 and tool["input"]["b"]
    assert len(of(process, TOKENS, row)) == 1


# --- costs


def test_tokens_of_a_known_model_have_a_price_and_others_have_none(
    process: RunningProxy, upstream: ScriptedUpstream
) -> None:
    case = fixtures.case("messages/simple/streaming")
    [known] = of(process, TOKENS, play(process, upstream, case))
    # Claude Sonnet 4.5: $3 per million tokens of input, $15 of output.
    assert known["cost_usd"] == pytest.approx((17 * 3 + 19 * 15) / 1e6)
    strange = case.body.replace(b"claude-sonnet-4-5-20250929", b"weights-of-our-own")
    [unknown] = of(process, TOKENS, play(process, upstream, case, body=strange))
    assert (unknown["model"], unknown["output_tokens"], unknown["cost_usd"]) == ("weights-of-our-own", 19, None)


# --- failures, and other providers


FAILURES = (
    "messages/error_before_429/blocking",
    "messages/error_before_529/streaming",
    "messages/error_in_stream/streaming",
    "messages/cut/streaming",
    "chat_completions/error_before_400/streaming",
    "chat_completions/cut_with_usage/streaming",
    "responses/error_before_500/blocking",
    "responses/failed/streaming",
    "responses/failed_without_usage/streaming",
)


def test_a_failure_is_recorded_with_what_it_cost(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    for case in map(fixtures.case, FAILURES):
        row = play(process, upstream, case)
        for name in ("status", "error_type", "http_status"):
            assert row[name] == case.expected.get(name, row[name]), case
        assert row["error_type"] and row["ended_at"] and row["status"] == "failed", case
        counts = [(tokens["output_tokens"], tokens["completeness"]) for tokens in of(process, TOKENS, row)]
        assert counts == [(t["output_tokens"], t["completeness"]) for t in case.expected.get("tokens", ())], case
        assert [prompt["prompt"] for prompt in of(process, PROMPTS, row)] == [case.expected["prompt"]], case


def test_an_upstream_that_cannot_be_reached_is_recorded(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    with gateway_client(process, "/nobody") as client:
        answer = client.post("/v1/messages", content=fixtures.case("messages/simple/blocking").request)
    assert answer.status_code == 502
    [row] = process.wait_for_rows(INTERCEPTIONS, 1)
    assert (row["status"], row["http_status"], row["error_type"]) == ("failed", None, "upstream_unreachable")
    assert (row["provider_name"], row["turns"]) == ("nobody", 0)
    assert of(process, TOKENS, row) == []


def test_an_azure_deployment_is_recorded_under_the_model_that_answered(
    process: RunningProxy, upstream: ScriptedUpstream
) -> None:
    path = "/openai/deployments/our-gpt/chat/completions?api-version=2024-10-21"
    for mode in ("streaming", "blocking"):
        case = fixtures.case(f"chat_completions/azure_deployment/{mode}")
        row = play(process, upstream, case, path=f"/my-azure{path}", headers={"api-key": KEY})
        assert (row["model"], row["provider"], row["provider_name"]) == ("gpt-4.1-2025-04-14", "azure", "my-azure")
        assert row["route"] == "/openai/deployments/{id}/chat/completions"
        assert row["credential_hint"] == "sk-a...ijkl"
        [tokens] = of(process, TOKENS, row)
        assert (tokens["model"], tokens["input_tokens"], tokens["output_tokens"]) == ("gpt-4.1-2025-04-14", 8, 3)
    assert [request.target for request in upstream.requests] == [path, path]
