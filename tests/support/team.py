"""The record of a small team: a month of requests of which all numbers are known, and one session with a subagent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from aibridge_addon.records import Record
from tests.support.examples import ANSWER, ENDED, PLAN_LIMIT, PROMPT, STARTED, THOUGHT, TOKENS, TOOL, uid

MODELS = ("claude-opus-4-5", "claude-sonnet-4-5", "gpt-5.2-codex")
ACTORS = ("ada", "grace", "team-ci")
CLIENTS = ("Claude Code", "Claude Code", "Codex")
DAYS = 30
PER_DAY = 4
HOSTILE = "<script>document.title='broken'</script> \x1b[31mred\u202e <img src=x onerror=alert(1)> =1+1"
SESSION = "b2b0a1c4-session-of-ada"


def month(now: datetime) -> Iterator[Record]:
    """Yield the requests of thirty days up to `now`: four a day, each with a cost of 0.25, the last of a day failed."""
    for day in range(DAYS):
        for number in range(PER_DAY):
            which = (day + number) % 3
            at = now - timedelta(days=DAYS - 1 - day, hours=number % 2, minutes=5 + number)
            id = uid(f"m{day:02}-{number}")
            yield replace(
                STARTED,
                id=id,
                initiator_id=ACTORS[which],
                model=MODELS[which],
                client=CLIENTS[which],
                client_session_id=f"session-{day}-{which}",
                provider_name="openai" if which == 2 else "anthropic",
                billing="subscription" if which == 1 else "api",
                agent_id=None,
                started_at=at,
            )
            yield replace(
                TOKENS,
                interception_id=id,
                model=MODELS[which],
                input_tokens=1_000,
                output_tokens=500,
                cache_read_input_tokens=20_000,
                cache_write_input_tokens=2_000,
                completeness="complete",
                created_at=at + timedelta(seconds=4),
                turn=1,
                kind="answer",
                cost_usd=0.25 if number else None,
                unpriced=None if number else "vendor: unknown",
            )
            yield replace(PROMPT, interception_id=id, prompt=f"Day {day}: mend the parser", created_at=at)
            failed = number == PER_DAY - 1
            yield replace(
                ENDED,
                interception_id=id,
                status="failed" if failed else "completed",
                http_status=529 if failed else 200,
                error_type="overloaded_error" if failed else None,
                error_message="the provider is overloaded" if failed else None,
                ended_at=at + timedelta(seconds=4 + day % 5),
                model=MODELS[which],
            )


def session(now: datetime, text: str = "Why does the build fail? Find out, and mend it.") -> Iterator[Record]:
    """Yield one session: a prompt, a call of a client's tool and of an injected one, a subagent, and an answer."""
    start = now - timedelta(minutes=20)
    context = {
        "context_bytes": {
            "system": 14_000,
            "client_tools": 41_000,
            "our_tools": 6_500,
            "history": 22_000,
            "user_text": 900,
            "tool_results": 18_000,
            "images": 0,
            "other": 400,
        },
        "schema_bytes": {"tracker": 6_500},
    }
    first, second, third = uid("conv-1"), uid("conv-2"), uid("conv-3")
    common = replace(
        STARTED,
        initiator_id="ada",
        client="Claude Code",
        client_session_id=SESSION,
        provider_name="anthropic",
        model="claude-opus-4-5",
        project="/src/parser",
        agent_id=None,
        metadata=context,
    )
    yield replace(common, id=first, started_at=start)
    yield replace(PROMPT, interception_id=first, prompt=text, created_at=start)
    yield replace(
        THOUGHT, interception_id=first, content=f"The log should say which step failed. {text}", created_at=start
    )
    yield replace(
        TOOL,
        interception_id=first,
        tool="search_issues",
        server_name="tracker",
        injected=True,
        invocation_error=None,
        duration_ms=340,
        input={"query": text, "limit": 5},
        result=f"2 issues: #41 parser fails on empty input; {text}",
        metadata={},
        created_at=start + timedelta(seconds=3),
        sequence=2,
    )
    yield replace(
        TOOL,
        interception_id=first,
        tool="Task",
        server_name=None,
        server_url=None,
        injected=False,
        invocation_error=None,
        duration_ms=None,
        input={"prompt": "Read the test's output"},
        result=None,
        metadata={},
        created_at=start + timedelta(seconds=5),
        sequence=3,
    )
    yield from _ended(first, start, (2_100, 310, 61_000, 3_000), 0.0931)
    yield replace(
        common,
        id=second,
        model="claude-haiku-4-5",
        agent_id="sub-1",
        request_class="subagent",
        metadata=context | {"agent_type": "Explore"},
        started_at=start + timedelta(seconds=12),
    )
    yield replace(ANSWER, interception_id=second, content="The step `test` fails in `test_empty`.", truncated=False)
    yield from _ended(second, start + timedelta(seconds=12), (800, 120, 9_000, 0), 0.0021)
    yield replace(common, id=third, request_class="tool_result", started_at=start + timedelta(seconds=30))
    yield replace(
        ANSWER,
        interception_id=third,
        content=f"The parser reads past the end of an empty input. I have mended it, with a test.\n\n{text}",
        truncated=False,
    )
    yield from _ended(third, start + timedelta(seconds=30), (400, 220, 66_000, 1_000), 0.0512)
    yield replace(PLAN_LIMIT, provider_name="anthropic", observed_at=start, resets_at=now + timedelta(hours=3))
    yield replace(
        PLAN_LIMIT,
        id=uid("limit-2"),
        provider_name="anthropic",
        window_name="7d",
        used_ratio=0.91,
        limit_value=None,
        observed_at=start,
        resets_at=now + timedelta(days=3),
    )


def _ended(id: str, at: datetime, tokens: tuple[int, int, int, int], cost: float) -> Iterator[Record]:
    new, output, read, written = tokens
    yield replace(
        TOKENS,
        interception_id=id,
        model="claude-opus-4-5",
        input_tokens=new,
        output_tokens=output,
        cache_read_input_tokens=read,
        cache_write_input_tokens=written,
        completeness="complete",
        created_at=at + timedelta(seconds=9),
        turn=1,
        kind="answer",
        cost_usd=cost,
        unpriced=None,
    )
    yield replace(
        ENDED,
        interception_id=id,
        status="completed",
        http_status=200,
        error_type=None,
        error_message=None,
        model=None,
        ended_at=at + timedelta(seconds=9.4),
    )
