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
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.origin import Origin
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


class Form(dict[str, str]):
    """A request that is a form, by its short fields."""


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
SHELL = {"type": "shell_call", "id": "sh_1", "call_id": "sh", "action": {"commands": ["ls"]}}
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
    *(
        Case(
            f"a search by the preview tool, {name}",
            "api.openai.com",
            RESPONSES,
            {"model": "gpt-4o", "tools": [{"type": tool}]},
            response("gpt-4o", output=output, tool_usage={"web_search": {"num_requests": count}}),
            cost,
        )
        for name, tool, output, count, cost in (
            ("counted by the usage and by the call", "web_search_preview", [SEARCH], 1, 0.375),  # 0.35 + 0.025
            ("dated", "web_search_preview_2025_03_11", [SEARCH], 1, 0.375),
            ("more often by the usage", "web_search_preview", [SEARCH], 2, 0.4),
            ("counted by the usage alone", "web_search_preview", [], 1, 0.36),
            ("of the newer tool", "web_search", [SEARCH], 1, 0.36),
        )
    ),
    Case(
        "searches by two tools",
        "api.openai.com",
        RESPONSES,
        {"model": "gpt-4o", "tools": [{"type": "web_search_preview"}, {"type": "web_search"}]},
        response("gpt-4o", output=[SEARCH], tool_usage={"web_search": {"num_requests": 1}}),
        0.36,
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
    *(
        Case(
            f"a shell of OpenAI's own, {name}",
            "api.openai.com",
            RESPONSES,
            {"model": "gpt-5.5", "tools": [{"type": "shell", "environment": {"type": "container_auto"}}]},
            response("gpt-5.5", output=output),
            None,
            {},
            "tool: shell",
        )
        for name, output in (
            ("by its output", [SHELL, {"type": "shell_call_output", "call_id": "sh", "output": []}]),
            ("by its container", [SHELL | {"environment": {"type": "container_reference", "container_id": "c"}}]),
        )
    ),
    *(
        Case(
            f"the client's shell, {name}",
            "api.openai.com",
            RESPONSES,
            {"model": "gpt-5.5", "tools": [tool]},
            response("gpt-5.5", output=[call]),
            0.8,
        )
        for name, tool, call in (
            ("a local shell", {"type": "local_shell"}, SHELL | {"type": "local_shell_call"}),
            ("a shell", {"type": "shell"}, SHELL),
            ("a shell that says so", {"type": "shell"}, SHELL | {"environment": {"type": "local"}}),
        )
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
    *(
        Case(
            f"Anthropic's container, shown by {name}",
            "api.anthropic.com",
            MESSAGES,
            {"model": SONNET},
            message(**more),
            None,
            {},
            "tool: code_execution",
        )
        for name, more in (
            ("its id", {"container": {"id": "container_1", "expires_at": "2026-11-28T00:00:00Z"}}),
            ("a result", {"content": [{"type": "bash_code_execution_tool_result", "tool_use_id": "s", "content": {}}]}),
            (
                "a call that code made",
                {
                    "content": [
                        {
                            "type": "tool_use",
                            "id": "t",
                            "name": "f",
                            "input": {},
                            "caller": {"type": "code_execution_20250825", "tool_id": "s"},
                        }
                    ]
                },
            ),
        )
    ),
    Case(
        "an answer without a container, and a call that the model made",
        "api.anthropic.com",
        MESSAGES,
        {"model": SONNET},
        message(
            container=None,
            content=[{"type": "tool_use", "id": "t", "name": "f", "input": {}, "caller": {"type": "direct"}}],
        ),
        0.45,
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
        "Azure, in a data zone that is named as in the portal",
        "ours.openai.azure.com",
        "/openai/v1/chat/completions",
        {"model": "ours"},
        chat("gpt-4.1"),
        0.308,
        {"type": "azure", "azure_scope": "data_zone", "region": "East US 2"},
    ),
    *(
        Case(
            f"a search of xAI's with mode {mode}",
            "api.x.ai",
            CHAT,
            {"model": "grok-4.7", "search_parameters": {"mode": mode}},
            chat("grok-4.7"),
            cost,
            {},
            reason,
        )
        for mode, cost, reason in (("off", 0.26, None), ("auto", None, "tool: live_search"))
    ),
    Case(
        "a legacy completion, dated by the answer",
        "api.openai.com",
        "/v1/completions",
        {"model": "gpt-3.5-turbo-instruct"},
        chat("gpt-3.5-turbo-instruct:20230824-v2"),
        0.17,  # 0.15 + 0.02
    ),
    Case(
        "a wish that is not sent on to Bedrock",
        "api.anthropic.com",
        MESSAGES,
        {"model": f"global.{CLAUDE}", "inference_geo": "us", "service_tier": "priority"},
        message(model=f"global.{CLAUDE}"),
        0.45,
        {"type": "anthropic", "bedrock": {"region": "us-east-1", "model": f"global.{CLAUDE}"}},
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
    Case(
        "audio that Gemini does not count",
        "generativelanguage.googleapis.com",
        "/v1beta/openai/chat/completions",
        {
            "messages": [
                {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": ""}}]}
            ]
        },
        chat("gemini-2.5-flash"),
        None,
        {},
        "modality: input_audio without a count",
    ),
    Case(
        "a word in a prompt that looks like audio",
        "generativelanguage.googleapis.com",
        "/v1beta/openai/chat/completions",
        {"messages": [{"role": "user", "content": 'what is "input_audio"?'}]},
        chat("gemini-2.5-flash"),
        0.055,  # 0.03 + 0.025
    ),
    Case(
        "audio in a Responses request",
        "api.openai.com",
        RESPONSES,
        {"model": "gpt-audio", "input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        response("gpt-audio"),
        None,
        {},
        "modality: input_audio without a count",
    ),
    Case(
        "speech in a form",
        "api.openai.com",
        "/v1/audio/transcriptions",
        Form({"model": "gpt-4o-transcribe"}),
        {"text": "x", "usage": {"type": "tokens", "input_tokens": 1_000, "output_tokens": 100}},
        None,
        {},
        "modality: input_audio without a count",
    ),
    Case(
        "speech in a form, counted",
        "api.openai.com",
        "/v1/audio/transcriptions",
        Form({"model": "gpt-4o-transcribe"}),
        {
            "text": "x",
            "usage": {
                "type": "tokens",
                "input_tokens": 1_000,
                "output_tokens": 100,
                "input_token_details": {"text_tokens": 100, "audio_tokens": 900},
            },
        },
        0.00665,  # 100 * 2.5 + 900 * 6 + 100 * 10
    ),
    *(
        Case(
            f"a picture to edit, in {name}",
            "api.openai.com",
            "/v1/images/edits",
            request,
            {"usage": {"input_tokens": 1_000, "output_tokens": 4_000}},
            None,
            {},
            "modality: input_image without a count",
        )
        for name, request in (
            ("a form", Form({"model": "gpt-image-1.5"})),
            ("an object", {"model": "gpt-image-1.5", "images": [{"image_url": "https://example.com"}]}),
        )
    ),
    *(
        Case(
            f"what a picture costs, as {host} states it",
            host,
            path,
            {"model": "x", "prompt": "a cat"},
            {"data": [], "usage": usage},
            cost,
        )
        for host, path, usage, cost in (
            ("api.x.ai", "/v1/images/generations", {"cost_in_usd_ticks": 200_000_000}, 0.02),
            ("openrouter.ai", "/api/v1/images/generations", {"cost": 0.04}, 0.04),
            (
                "eu.openrouter.ai",
                "/api/v1/embeddings",
                {"cost": 0.04, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.5}},
                0.54,
            ),
        )
    ),
    *(
        Case(
            f"a picture without counts from {model}",
            "api.openai.com",
            "/v1/images/generations",
            {"model": model, "prompt": "a cat"},
            {"data": []},
            None,
            {},
            "usage: no token counts",
        )
        for model in ("dall-e-3", "gpt-image-1.5")
    ),
    Case(
        "OpenAI's moderation",
        "api.openai.com",
        "/v1/moderations",
        {"model": "omni-moderation-latest"},
        {"id": "m", "model": "omni-moderation-latest", "results": []},
        0,
    ),
    Case(
        "a moderation by a model that is not free",
        "api.openai.com",
        "/v1/moderations",
        {"model": "gpt-4.1"},
        {"id": "m", "model": "gpt-4.1", "results": []},
        None,
        {},
        "usage: no token counts",
    ),
    Case(
        "Mistral's moderation",
        "api.mistral.ai",
        "/v1/moderations",
        {"model": "mistral-moderation-latest"},
        {"id": "m", "model": "mistral-moderation-latest", "usage": {"prompt_tokens": 1_000_000}},
        None,
        {},
        "model: mistral-moderation-latest",
    ),
    *(
        Case(
            f"the moderation of {name}",
            "llm.corp",
            "/v1/moderations",
            {"model": "omni-moderation-latest"},
            {"id": "m", "results": []},
            None,
            settings,
            reason,
        )
        for name, settings, reason in (
            ("a host that is not known", {"type": "openai"}, "vendor: unknown"),
            ("a provider that is never priced", {"type": "openai", "price_as": "none"}, "vendor: none"),
        )
    ),
    Case(
        "a picture from text",
        "api.openai.com",
        "/v1/images/generations",
        {"model": "gpt-image-1.5", "prompt": "a cat"},
        {"usage": {"input_tokens": 1_000, "output_tokens": 4_000}},
        0.133,  # 1,000 * 5 + 4,000 * 32
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
    if isinstance(case.request, Form):
        reading = route.dialect.read_form(case.request)
    else:
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
    source = "provider" if "states" in case.name else "price_list"
    assert record.cost_source == (source if case.cost is not None else None)
    assert (row["cost_usd"], row["unpriced"]) == (record.cost_usd, record.unpriced)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_row_alone_gives_the_same_price(case: Case) -> None:
    record, row = priced(case)
    found = price_of_row(row, {"provider": record.provider, "upstream_host": case.host})
    assert (found.cost_usd and float(found.cost_usd), found.unpriced) == (record.cost_usd, record.unpriced)
    assert (found.source, found.price_list) == (record.cost_source, record.price_list)


GPT_6_WRITES = {"input_tokens": 10_000, "output_tokens": 0, "input_tokens_details": {"cache_write_tokens": 10_000}}
"""gpt-6-sol writes at 2.5 for 30 minutes, and at 5 for 12 hours."""
HALF_HOUR, HALF_DAY = {"prompt_cache_options": {"ttl": "30m"}}, {"prompt_cache_options": {"ttl": "12h"}}


@pytest.mark.parametrize(
    ("asked", "said", "cost"),
    [
        (HALF_DAY, {}, 0.05),
        (HALF_DAY, HALF_DAY, 0.05),
        (HALF_DAY, HALF_HOUR, 0.025),
        ({}, HALF_DAY, 0.05),
        (HALF_HOUR, {}, 0.025),
        ({"prompt_cache_retention": "12h"}, {}, 0.05),
        ({"prompt_cache_retention": "12h"}, {"prompt_cache_retention": "in_memory"}, 0.025),
        ({"prompt_cache_retention": "12h"}, HALF_HOUR, 0.025),
        ({"prompt_cache_options": {"ttl": 12}, "prompt_cache_retention": None}, {"prompt_cache_options": None}, 0.025),
    ],
)
def test_the_lifetime_of_a_cache_is_that_of_the_answer_or_else_of_the_request(
    asked: dict[str, Any], said: dict[str, Any], cost: float
) -> None:
    answer = response("gpt-6-sol", GPT_6_WRITES, **said)
    case = Case("", "api.openai.com", RESPONSES, {"model": "gpt-6-sol", **asked}, answer, cost)
    record, row = priced(case)
    assert record.cost_usd == pytest.approx(cost)
    again = price_of_row(row, {"provider": record.provider, "upstream_host": case.host})
    assert again.cost_usd is not None and float(again.cost_usd) == record.cost_usd


@pytest.mark.parametrize("foreign", ["x", ["x"], {"region": 7}, {"batch": "x"}, {"new": 1}, None, 5])
def test_a_usage_with_our_own_name_for_terms_changes_nothing(foreign: Any) -> None:
    case = Case("", "api.openai.com", CHAT, {}, chat("gpt-4.1", {**CHAT_USAGE, "price_terms": foreign}), 0.28)
    record, row = priced(case)
    assert "price_terms" not in row["metadata"]
    assert record.cost_usd == pytest.approx(0.28)
    stored = {**row, "metadata": {"price_terms": foreign}}
    found = price_of_row(stored, {"provider": record.provider, "upstream_host": case.host})
    assert found.cost_usd is not None and float(found.cost_usd) == record.cost_usd


def test_an_ordinary_row_has_no_terms() -> None:
    _, row = priced(CASES[0])
    assert row["metadata"] == {}


# --- what an answer says of its usage, as the dialects keep it


class Part(NamedTuple):
    """One token row: an answer's, or that of an iteration beside it."""

    model: str
    usage: Usage
    beside: bool = False
    """Whether this is an iteration."""


def row_of(part: Part, host: str, path: str) -> tuple[TokenUsage, dict[str, Any]]:
    """Return the prepared record of a part, and its row as a query returns it."""
    route = Router(DEFAULT_PROVIDERS).proxied(host, "POST", path)
    assert route is not None
    sale, usage = Sale(route, host), part.usage
    terms = sale.terms_beside(UNREAD, part.model, usage) if part.beside else sale.terms(UNREAD, part.model, usage, [])
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
COMPACTION_IN_US = Usage(180_000, 3_500, extra=ANSWER_IN_US.extra)
SAID = [
    ("an answer and its compaction", "api.anthropic.com", [Part(OPUS, ANSWER), Part(OPUS, COMPACTION, True)], 1.1275),
    (
        "a compaction is served where its answer is",
        "api.anthropic.com",
        [Part(OPUS, ANSWER_IN_US), Part(OPUS, COMPACTION_IN_US, True)],
        1.24025,  # 1.1275 * 1.1
    ),
    (
        "an advisor has a model of its own",
        "api.anthropic.com",
        [Part(OPUS, ANSWER), Part(SONNET, Usage(10_000, 1_000), True)],
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
