"""From the bytes of a request and its answer to the cost in the row, and from the row alone to the same cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from aibridge_addon.config.providers import DEFAULT_PROVIDERS, Provider
from aibridge_addon.config.schema import Limits, Recording
from aibridge_addon.dialects.base import UNREAD, Usage
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.exchange import Exchange, Origin
from aibridge_addon.interception.routing import Router
from aibridge_addon.interception.sale import Sale
from aibridge_addon.recording import rows
from aibridge_addon.recording.preparation import Preparation
from aibridge_addon.recording.pricing import price_of_row
from aibridge_addon.records import Record, TokenUsage
from aibridge_addon.wire.json_object import JSONObject

MOMENT = datetime(2026, 11, 27, 12, tzinfo=UTC)
MESSAGES, CHAT, RESPONSES = "/v1/messages", "/v1/chat/completions", "/v1/responses"
SONNET = "claude-sonnet-4-5"
BEDROCK = "bedrock-runtime.{}.amazonaws.com"
CLAUDE = "anthropic.claude-sonnet-4-5-20250929-v1:0"
MILLION = {"input_tokens": 100_000, "output_tokens": 10_000}
"""A tenth and a hundredth of a million, below every threshold of a long context."""
CHAT_USAGE = {"prompt_tokens": 100_000, "completion_tokens": 10_000}


class Case(NamedTuple):
    name: str
    host: str
    path: str
    request: Mapping[str, Any]
    answer: Mapping[str, Any]
    cost: float | None
    settings: Mapping[str, Any] = {}
    """Of the provider; without any, the default providers are used."""
    unpriced: str | None = None


def message(usage: Mapping[str, Any] = MILLION, model: str = SONNET, **more: Any) -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "model": model, "usage": usage, "content": [], **more}


def chat(model: str, usage: Mapping[str, Any] = CHAT_USAGE, **more: Any) -> dict[str, Any]:
    return {"id": "c", "model": model, "usage": usage, "choices": [], **more}


def response(model: str, usage: Mapping[str, Any] = MILLION, **more: Any) -> dict[str, Any]:
    return {"id": "r", "model": model, "usage": usage, "status": "completed", "output": [], **more}


SEARCH = {"type": "web_search_call", "id": "ws", "action": {"type": "search"}}
OPEN = {"type": "web_search_call", "id": "ws", "action": {"type": "open_page"}}
CONVERSED = {"usage": {"inputTokens": 100_000, "outputTokens": 10_000}, "output": {}}

# Sonnet 4.5: 3 and 15. gpt-4.1: 2 and 8. gpt-5.5: 5 and 30. All for a million tokens.
CASES = [
    Case("Anthropic", "api.anthropic.com", MESSAGES, {"model": SONNET}, message(), 0.45),
    Case(
        "Claude Platform on AWS",
        "aws-external-anthropic.us-west-2.api.aws",
        MESSAGES,
        {"model": SONNET},
        message(),
        0.45,
    ),
    Case("OpenAI", "api.openai.com", CHAT, {"model": "gpt-4.1"}, chat("gpt-4.1-2025-04-14"), 0.28),
    Case(
        "OpenAI's data residency", "eu.api.openai.com", CHAT, {"model": "gpt-5.5"}, chat("gpt-5.5"), 0.88
    ),  # 1.1 * (0.5 + 0.3)
    Case(
        "a host that is not known",
        "llm.corp",
        CHAT,
        {"model": "gpt-4.1"},
        chat("gpt-4.1"),
        None,
        {"type": "openai"},
        "vendor: unknown",
    ),
    Case(
        "a gateway for Messages",
        "llm.corp",
        MESSAGES,
        {"model": SONNET},
        message(),
        None,
        {"type": "anthropic"},
        "vendor: unknown",
    ),
    Case(
        "a gateway that bills what OpenAI bills",
        "llm.corp",
        CHAT,
        {"model": "gpt-4.1"},
        chat("gpt-4.1"),
        0.28,
        {"type": "openai", "price_as": "openai"},
    ),
    Case(
        "a provider that is never priced",
        "api.openai.com",
        CHAT,
        {"model": "gpt-4.1"},
        chat("gpt-4.1"),
        None,
        {"type": "openai", "price_as": "none"},
        "vendor: none",
    ),
    Case(
        "a requested tier, when the answer is silent",
        "api.openai.com",
        RESPONSES,
        {"model": "gpt-5.5", "service_tier": "flex"},
        response("gpt-5.5"),
        0.4,  # half
    ),
    Case(
        "the tier that was served",
        "api.openai.com",
        RESPONSES,
        {"model": "gpt-5.5", "service_tier": "flex"},
        response("gpt-5.5", service_tier="default"),
        0.8,
    ),
    Case(
        "searches that were made",
        "api.openai.com",
        RESPONSES,
        {"model": "gpt-5.5", "tools": [{"type": "web_search"}, {"type": "function", "name": "f"}]},
        response("gpt-5.5", output=[SEARCH, OPEN, SEARCH]),
        0.82,  # 0.8 + 2 * 0.01
    ),
    Case(
        "searches that were offered and not made",
        "api.openai.com",
        RESPONSES,
        {"model": "gpt-5.5", "tools": [{"type": "web_search"}]},
        response("gpt-5.5"),
        0.8,
    ),
    Case(
        "a hosted tool without a known fee",
        "api.openai.com",
        RESPONSES,
        {"model": "gpt-5.5", "tools": [{"type": "code_interpreter"}]},
        response("gpt-5.5", output=[{"type": "code_interpreter_call", "id": "ci"}]),
        None,
        {},
        "tool: code_interpreter",
    ),
    Case(
        "searches whose number no answer has",
        "api.openai.com",
        CHAT,
        {"model": "gpt-4.1", "web_search_options": {"search_context_size": "low"}},
        chat("gpt-4.1"),
        None,
        {},
        "tool: web_search",
    ),
    Case(
        "Anthropic's searches",
        "api.anthropic.com",
        MESSAGES,
        {"model": SONNET, "tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        message({**MILLION, "server_tool_use": {"web_search_requests": 2}}),
        0.47,
    ),
    Case(
        "Azure without a scope",
        "ours.openai.azure.com",
        "/openai/v1/chat/completions",
        {"model": "ours"},
        chat("gpt-4.1"),
        None,
        {},
        "azure_scope: unknown",
    ),
    Case(
        "Azure, global",
        "ours.openai.azure.com",
        "/openai/v1/chat/completions",
        {"model": "ours"},
        chat("gpt-4.1"),
        0.28,
        {"type": "azure", "azure_scope": "global"},
    ),
    Case(
        "Azure, in a data zone",
        "ours.openai.azure.com",
        "/openai/v1/chat/completions",
        {"model": "ours"},
        chat("gpt-4.1"),
        0.308,
        {"type": "azure", "azure_scope": "data_zone", "region": "eastus"},
    ),
    Case(
        "Azure Government",
        "ours.openai.azure.us",
        "/openai/v1/chat/completions",
        {"model": "ours"},
        chat("gpt-4.1"),
        None,
        {"type": "azure", "azure_scope": "global"},
        "region: usgov",
    ),
    Case(
        "a deployment's name in the path",
        "ours.openai.azure.com",
        "/openai/deployments/ours/chat/completions",
        {},
        chat(""),
        0.28,
        {"type": "azure", "azure_scope": "global", "models": {"ours": "gpt-4.1"}},
    ),
    Case(
        "a global profile of Bedrock",
        BEDROCK.format("eu-central-1"),
        f"/model/global.{CLAUDE}/converse",
        {},
        CONVERSED,
        0.45,
    ),
    Case(
        "a profile of Bedrock for a geography",
        BEDROCK.format("eu-central-1"),
        f"/model/eu.{CLAUDE}/converse",
        {},
        CONVERSED,
        0.495,
    ),
    Case(
        "a fast answer of Bedrock",
        BEDROCK.format("us-east-2"),
        f"/model/us.{CLAUDE}/converse",
        {"performanceConfig": {"latency": "optimized"}},
        CONVERSED,
        None,
        {},
        "latency: optimized",
    ),
    Case(
        "an application's profile that the configuration explains",
        BEDROCK.format("us-east-1"),
        "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Aapplication-inference-profile%2Fx/converse",
        {},
        CONVERSED,
        0.45,
        {
            "type": "bedrock",
            "models": {"arn:aws:bedrock:us-east-1:1:application-inference-profile/x": f"global.{CLAUDE}"},
        },
    ),
    Case(
        "Bedrock in China",
        "bedrock-runtime.cn-north-1.amazonaws.com.cn",
        f"/model/{CLAUDE}/converse",
        {},
        CONVERSED,
        None,
        {},
        "region: cn-north-1",
    ),
    Case("Groq", "api.groq.com", "/openai/v1/chat/completions", {"model": "x"}, chat("x"), None, {}, "model: x"),
]


def priced(case: Case) -> tuple[TokenUsage, dict[str, Any]]:
    """Return the prepared record of an answer, and its row as a query returns it."""
    providers: tuple[Provider, ...] = DEFAULT_PROVIDERS
    if case.settings:
        providers = (Provider.model_validate({"name": "p", "hosts": [case.host], "base_url": None, **case.settings}),)
    route = Router(providers).proxied(case.host, "POST", case.path)
    assert route is not None and route.dialect is not None
    reading = route.dialect.read_request(JSONObject(json.dumps(case.request).encode()))
    if route.model:
        reading = replace(reading, model=route.model)
    emitted: list[Record] = []
    origin = Origin(Actor("ada", {}), "SDK", None, None, "byok", "", None, upstream_host=case.host)
    exchange = Exchange("i1", route, reading, origin, emit=emitted.append, limits=Limits(), now=lambda: MOMENT)
    exchange.start()
    exchange.open_answer(200, "application/json", "")
    exchange.feed(json.dumps(case.answer).encode())
    exchange.answer_ended()
    [usage] = [record for record in emitted if isinstance(record, TokenUsage)]
    record = Preparation(Recording())(usage)
    assert isinstance(record, TokenUsage)
    row = rows.token_usage(record)
    return record, row | {"metadata": json.loads(row["metadata"])}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_answer_costs_what_its_vendor_bills(case: Case) -> None:
    record, row = priced(case)
    assert (record.cost_usd, record.unpriced) == (case.cost and pytest.approx(case.cost), case.unpriced)
    assert record.cost_source == ("price_list" if case.cost is not None else None)
    assert (row["cost_usd"], row["unpriced"]) == (record.cost_usd, record.unpriced)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_row_alone_gives_the_same_price(case: Case) -> None:
    record, row = priced(case)
    found = price_of_row(row, {"provider": record.provider, "upstream_host": case.host})
    assert (found.cost_usd and float(found.cost_usd), found.unpriced) == (record.cost_usd, record.unpriced)
    assert (found.source, found.price_list) == (record.cost_source, record.price_list)


def test_an_ordinary_row_has_no_terms() -> None:
    _, row = priced(CASES[0])
    assert row["metadata"] == {}


# --- what an answer says of its usage, as the dialects keep it


class Part(NamedTuple):
    """One token row: an answer's, or that of an iteration beside it."""

    model: str
    usage: Usage
    beside: Usage | None = None
    """The answer's usage, for an iteration."""


def row_of(part: Part, host: str, path: str) -> tuple[TokenUsage, dict[str, Any]]:
    """Return the prepared record of a part, and its row as a query returns it."""
    route = Router(DEFAULT_PROVIDERS).proxied(host, "POST", path)
    assert route is not None
    sale, usage = Sale(route, host), part.usage
    if part.beside is None:
        terms = sale.terms(UNREAD, part.model, usage, [])
    else:
        terms = sale.terms_beside(UNREAD, part.model, usage, part.beside)
    counts = (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens, usage.cache_write_input_tokens)
    record = Preparation(Recording())(
        TokenUsage(
            *("i1", "r1", route.type.name, route.provider.name, part.model, *counts, "complete", usage.extra, MOMENT),
            vendor=sale.vendor,
            terms=terms,
        )
    )
    assert isinstance(record, TokenUsage)
    row = rows.token_usage(record)
    return record, row | {"metadata": json.loads(row["metadata"])}


OPUS = "claude-opus-4-6"
ANSWER = Usage(23_000, 1_000)
ANSWER_IN_US = Usage(23_000, 1_000, extra={"inference_geo": "us", "service_tier": "standard"})
COMPACTION = Usage(180_000, 3_500)
SAID = [
    ("an answer and its compaction", "api.anthropic.com", [Part(OPUS, ANSWER), Part(OPUS, COMPACTION, ANSWER)], 1.1275),
    (
        "a compaction is served where its answer is",
        "api.anthropic.com",
        [Part(OPUS, ANSWER_IN_US), Part(OPUS, COMPACTION, ANSWER_IN_US)],
        1.24025,  # 1.1275 * 1.1
    ),
    (
        "an advisor has a model of its own",
        "api.anthropic.com",
        [Part(OPUS, ANSWER), Part(SONNET, Usage(10_000, 1_000), ANSWER)],
        0.185,  # 0.14 + 0.03 + 0.015
    ),
    ("the model that a fallback led to", "api.anthropic.com", [Part(SONNET, Usage(100_000, 10_000))], 0.45),
    ("OpenRouter's own word", "openrouter.ai", [Part("x/y", Usage(1, 1, extra={"cost": 0.0123}))], 0.0123),
    (
        "OpenRouter with a key of one's own",
        "openrouter.ai",
        [
            Part(
                "x/y",
                Usage(1, 1, extra={"cost": 0.01, "is_byok": True, "cost_details.upstream_inference_cost": 0.2}),
            )
        ],
        0.21,
    ),
    (
        "Copilot's own word",
        "api.githubcopilot.com",
        [Part("gpt-5.5", Usage(1, 1, extra={"copilot_usage.total_nano_aiu": 1_500_000_000}))],
        0.015,
    ),
    ("xAI's own word", "api.x.ai", [Part("grok", Usage(1, 1, extra={"cost_in_usd_ticks": 37_756_000}))], 0.0037756),
    (
        "reasoning is part of the output once",
        "api.openai.com",
        [Part("gpt-5.5", Usage(0, 1_500, extra={"completion_tokens_details.reasoning_tokens": 500}))],
        0.045,
    ),
]
PATHS = {
    "api.anthropic.com": MESSAGES,
    "api.githubcopilot.com": "/chat/completions",
    "openrouter.ai": "/api/v1/responses",
}


@pytest.mark.parametrize(("name", "host", "parts", "cost"), SAID, ids=[name for name, *_ in SAID])
def test_the_rows_of_an_answer_add_up_to_its_bill(name: str, host: str, parts: list[Part], cost: float) -> None:
    found = [row_of(part, host, PATHS.get(host, RESPONSES)) for part in parts]
    assert sum(record.cost_usd or 0 for record, _ in found) == pytest.approx(cost)
    for record, row in found:
        assert record.cost_source == ("provider" if "word" in name or "key" in name else "price_list")
        again = price_of_row(row, {"provider": record.provider, "upstream_host": host})
        assert again.cost_usd is not None and float(again.cost_usd) == record.cost_usd
