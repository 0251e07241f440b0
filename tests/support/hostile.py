"""Texts that would be more than text on a surface that does not take care, and records with such a text everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType

from aibridge_addon import records
from aibridge_addon.records import Record
from tests.support import examples
from tests.support.examples import uid

TEXTS: Mapping[str, str] = MappingProxyType(
    {
        "controls": "\x1b[31m\x1b]0;title\x07\x1b[2J\x9b31m\x1bP q\x1b\\\b\b\r\x7fa\0b\ud800\udc00c\udcff",
        "directions": "\u202egnp.exe\u2066x\u2069\u200f\u061c\u200b\ufeff\u180e\U000e0041",
        "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;<!--</title></textarea></style>"
        "\" onmouseover=alert(1) x='` style=x:y javascript:alert(1)",
        "templates": "{{ 7*7 }}{% raw %}{{ config }}{# x #}{% endraw %}{{ self.__init__ }}"
        "%s %d %(a)s {0} {x} {} $x ${x} %n [red]x[/red][link=http://evil.example]y[/][/]:smile:\\[z]",
        "Markdown": "# h *a* __b__ `c` [l](http://evil.example) ![i](http://evil.example/i) ~~s~~ | x | <b>y</b>"
        " [r]: /z http://evil.example/x www.evil.example @ada me@evil.example",
        "lines": "a\nb\r\nc\u2028d\u2029e\x85f\x0bg\x0ch\n\n\n| i",
        "JSON and samples": '"}\n{"end":true,"a":"\\u001b",x="y"} 1\n# HELP evil x\nevil{a="\\',
        "formula": '=HYPERLINK("http://evil.example";"x")',
        "formula after a space": " \t=1+1",
        "formula after a line": "\r\n+1+cmd|' /C calc'!A0",
        "formula after NUL": "\0@SUM(1)",
        "formula of a wide sign": "\uff1d1+1",
        "formula that is a number": "-1+1",
        "a megabyte": "<" * 1_000_000,
        "many controls": "\x1b" * 10_000,
        "a workflow command": "::error::x",
        "an older workflow command": "##[error]x",
    }
)
PLAIN = "plain"
SHORT = 256


def everywhere(text: str, at: datetime, name: str = "h") -> Sequence[Record]:
    """Return one failed interception and one limit of a plan, with the text in every member that others choose.

    It has two turns, an injected call and one of the client. `name`: of its id. Ids and names of clients are cut where
    they are read from a request, to `SHORT` characters.
    """
    id, short = uid(name), text[:SHORT]
    started = replace(
        examples.STARTED,
        id=id,
        initiator_id=short,
        model=text,
        client=short,
        client_session_id=short,
        user_agent=short,
        credential_hint=short,
        correlating_tool_call_id=short,
        upstream_host=short,
        agent_id=short,
        prompt_id=short,
        project=short,
        request_class="subagent",
        metadata={
            short: short,
            "agent_type": short,
            "parent_agent_id": short,
            "context_bytes": {"system": 10, short: 20},
            "schema_bytes": {short: 4_000},
        },
        started_at=at,
    )
    usage = replace(
        examples.TOKENS,
        interception_id=id,
        provider_response_id=short,
        model=text,
        extra={short: short, "x": {short: [short]}},
        created_at=at + timedelta(seconds=4),
        cache_write_input_tokens=4,
        turn=1,
        kind=short,
        stop_reason=short,
        unpriced=text,
        price_list=short,
        id=uid(f"{name}-t1"),
    )
    priced = replace(usage, turn=2, unpriced=None, cost_usd=0.25, id=uid(f"{name}-t2"))
    call = replace(
        examples.TOOL,
        interception_id=id,
        provider_response_id=short,
        provider_tool_call_id=short,
        tool=text,
        input={text: text, "n": [text, 1]},
        server_name=short,
        server_url=short,
        invocation_error=text,
        metadata={short: short, "server_side": True},
        result=text,
        created_at=at,
        injected=True,
        id=uid(f"{name}-c1"),
    )
    limit = replace(
        examples.PLAN_LIMIT,
        id=uid(f"{name}-l"),
        initiator_id=short,
        provider_name="anthropic",
        credential_hint=short,
        window_name=short,
        observed_at=at,
        resets_at=at + timedelta(hours=5),
        metadata={"status": short, short: short, "representative": True},
    )
    return (
        started,
        replace(examples.PROMPT, interception_id=id, provider_response_id=short, prompt=text, created_at=at),
        replace(examples.THOUGHT, interception_id=id, provider_response_id=short, content=text, created_at=at),
        call,
        replace(call, injected=False, id=uid(f"{name}-c2")),
        replace(examples.ANSWER, interception_id=id, provider_response_id=short, content=text, created_at=at),
        usage,
        priced,
        records.TurnEnded(id, 1, at, at + timedelta(seconds=4), short, text, 200, stop_reason=short, error_type=short),
        replace(
            examples.ENDED,
            interception_id=id,
            model=text,
            error_type=short,
            error_message=text[:2_000],
            metadata={short: short},
            ended_at=at + timedelta(seconds=9),
        ),
        limit,
        records.BudgetUsed("b", short, True, 0.5),
        records.Refused("unknown_route", 404, text, "anthropic", "/v1/x"),
        records.Passthrough("anthropic", "/v1/models", text, short),
    )
