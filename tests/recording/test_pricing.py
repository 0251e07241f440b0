"""What answers cost, computed by hand from the vendors' price lists: one case for each circumstance.

Amounts in comments are US dollars for a million tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import assume, given
from hypothesis import strategies as st

from aibridge_addon.providers.vendors import VENDORS
from aibridge_addon.recording.prices import price_list, supplement, vendors
from aibridge_addon.recording.pricing import Circumstances, price, priced
from aibridge_addon.records import PriceTerms
from tests.support.examples import TOKENS

MOMENT = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
"""A Friday."""

IN, OUT, READ, WRITTEN = "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens"
HOUR, MINUTES = "cache_creation.ephemeral_1h_input_tokens", "cache_creation.ephemeral_5m_input_tokens"
SEARCH = ("web_search",)

ANTHROPIC_PRICING = "https://platform.claude.com/docs/en/about-claude/pricing"
FAST_MODE = "https://platform.claude.com/docs/en/build-with-claude/fast-mode#pricing"
RESIDENCY = "https://platform.claude.com/docs/en/build-with-claude/data-residency"
OPENAI_PRICING = "https://developers.openai.com/api/docs/pricing"
OPENAI_RESIDENCY = "https://developers.openai.com/api/docs/guides/data-residency"
ULTRAFAST = "https://developers.openai.com/api/docs/guides/ultrafast-mode"
COPILOT_PRICING = "https://docs.github.com/en/copilot/reference/copilot-billing/models-and-pricing"
BEDROCK_PRICING = "https://aws.amazon.com/bedrock/pricing/"
BEDROCK_TIERS = "https://aws.amazon.com/bedrock/service-tiers"
AZURE_RETAIL = "litellm 1.110.2, from Azure's retail prices"
GEMINI_PRICING = "https://ai.google.dev/gemini-api/docs/pricing"
XAI_PRICING = "https://docs.x.ai/developers/pricing"
LIBRARY = "genai-prices 0.2.3"


class Case(NamedTuple):
    rule: str
    source: str
    given: Mapping[str, Any]
    cost: str
    """By hand."""


def anthropic(model: str, **more: Any) -> dict[str, Any]:
    return {"vendor": "anthropic", "model": model, **more}


def openai(model: str, **more: Any) -> dict[str, Any]:
    return {"vendor": "openai", "model": model, **more}


def google(model: str, **more: Any) -> dict[str, Any]:
    return {"vendor": "google", "model": model, **more}


def bedrock(model: str, **more: Any) -> dict[str, Any]:
    return {"vendor": "aws", "model": model, **more}


def azure(model: str, scope: str = "global", **more: Any) -> dict[str, Any]:
    return {"vendor": "azure", "model": model, "azure_scope": scope, **more}


def message(read: int, cached: int = 0) -> dict[str, Any]:
    """Return an iteration of an answer of Anthropic's."""
    return {"type": "message", "input_tokens": read, "cache_read_input_tokens": cached, "output_tokens": 1_000}


COMPACTED = [message(60_000), {"type": "compaction", "input_tokens": 90_000, "output_tokens": 100}, message(60_000)]

CASES = [
    # Sonnet 4.5: 3 and 15; cache read 0.30; cache write 3.75 for 5 minutes, 6 for an hour; double beyond 200,000.
    Case("nothing", ANTHROPIC_PRICING, anthropic("claude-sonnet-4-5"), "0"),
    Case(
        "input and output",
        ANTHROPIC_PRICING,
        anthropic("claude-sonnet-4-5-20250929", input_tokens=1_000, output_tokens=100),
        "0.0045",  # 0.003 + 0.0015
    ),
    Case(
        "a cache read",
        ANTHROPIC_PRICING,
        anthropic("claude-sonnet-4-5", input_tokens=1_000, cache_read_input_tokens=10_000),
        "0.006",  # 0.003 + 0.003
    ),
    Case(
        "a cache write without a lifetime is one of 5 minutes",
        ANTHROPIC_PRICING + "#prompt-caching",
        anthropic("claude-sonnet-4-5", cache_write_input_tokens=2_000),
        "0.0075",
    ),
    Case(
        "cache writes for 5 minutes and an hour",
        ANTHROPIC_PRICING + "#prompt-caching",
        anthropic("claude-sonnet-4-5", cache_write_input_tokens=2_000, usage={MINUTES: 1_500, HOUR: 500}),
        "0.008625",  # 1,500 * 3.75 + 500 * 6
    ),
    Case(
        "cache writes for an hour, said in a nested object",
        ANTHROPIC_PRICING + "#prompt-caching",
        anthropic(
            "claude-sonnet-4-5",
            cache_write_input_tokens=2_000,
            usage={"cache_creation": {"ephemeral_1h_input_tokens": 2_000, "ephemeral_5m_input_tokens": 0}},
        ),
        "0.012",
    ),
    Case(
        "a long context",
        ANTHROPIC_PRICING + "#long-context-pricing",
        anthropic("claude-sonnet-4-5", input_tokens=300_000, output_tokens=1_000),
        "1.8225",  # 300,000 * 6 + 1,000 * 22.5
    ),
    Case(
        "exactly 200,000 tokens are no long context",
        ANTHROPIC_PRICING + "#long-context-pricing",
        anthropic("claude-sonnet-4-5", input_tokens=200_000),
        "0.6",
    ),
    Case(
        "cached tokens count for the length of a context",
        ANTHROPIC_PRICING + "#long-context-pricing",
        anthropic("claude-sonnet-4-5", input_tokens=1_000, cache_read_input_tokens=299_000),
        "0.1854",  # 1,000 * 6 + 299,000 * 0.6
    ),
    Case(
        "a context tier of its own: Haiku 5.5 beyond 100,000 tokens costs five times as much",
        ANTHROPIC_PRICING + "#long-context-pricing",
        anthropic("claude-haiku-5-5", input_tokens=100_001, output_tokens=1_000),
        "0.0525005",  # 100,001 * 0.5 + 1,000 * 2.5
    ),
    Case(
        "the length of each inference counts, not that of their sum",
        ANTHROPIC_PRICING + "#long-context-pricing",
        anthropic("claude-haiku-5-5", input_tokens=120_000, output_tokens=2_000, usage={"iterations": COMPACTED}),
        "0.013",  # 120,000 * 0.1 + 2,000 * 0.5
    ),
    Case(
        "inferences that are all long",
        ANTHROPIC_PRICING + "#long-context-pricing",
        anthropic(
            "claude-haiku-5-5",
            input_tokens=220_000,
            cache_read_input_tokens=20_000,
            usage={"iterations": [message(110_000, 10_000)] * 2},
        ),
        "0.111",  # 220,000 * 0.5 + 20,000 * 0.05
    ),
    Case(
        "a top level that is not the sum of its iterations",
        ANTHROPIC_PRICING + "#long-context-pricing",
        anthropic("claude-haiku-5-5", input_tokens=100_001, usage={"iterations": COMPACTED}),
        "0.0500005",
    ),
    # Opus 4.6: 5 and 25, whatever the length.
    Case(
        "the answer of a compacted conversation",
        ANTHROPIC_PRICING,
        anthropic("claude-opus-4-6", input_tokens=23_000, output_tokens=1_000),
        "0.14",
    ),
    Case(
        "its compaction",
        ANTHROPIC_PRICING,
        anthropic("claude-opus-4-6", input_tokens=180_000, output_tokens=3_500),
        "0.9875",  # 0.9 + 0.0875
    ),
    Case(
        "the price of its day: Opus 4.6 had a long-context price until 2026-03-13",
        LIBRARY,
        anthropic("claude-opus-4-6", moment=datetime(2026, 2, 10, tzinfo=UTC), input_tokens=300_000),
        "3",
    ),
    Case(
        "fast mode: Opus 5 at 10 and 50",
        FAST_MODE,
        anthropic("claude-opus-5", input_tokens=1_000, output_tokens=1_000, usage={"speed": "fast"}),
        "0.06",
    ),
    Case(
        "caching multipliers apply to fast mode: Opus 5.5 writes at 10, reads at 0.4",
        FAST_MODE,
        anthropic(
            "claude-opus-5-5", cache_read_input_tokens=10_000, cache_write_input_tokens=1_000, usage={"speed": "fast"}
        ),
        "0.014",
    ),
    Case(
        "fast mode of Opus 4.6, while it had one: 30 and 150",
        "https://platform.claude.com/docs/en/build-with-claude/fast-mode (February 2026)",
        anthropic(
            "claude-opus-4-6",
            moment=datetime(2026, 2, 10, tzinfo=UTC),
            input_tokens=1_000,
            output_tokens=1_000,
            usage={"speed": "fast"},
        ),
        "0.18",
    ),
    Case(
        "inference in the US costs 10 % more: Opus 4.6",
        RESIDENCY,
        anthropic("claude-opus-4-6", input_tokens=1_000, output_tokens=1_000, usage={"inference_geo": "us"}),
        "0.033",  # 1.1 * (0.005 + 0.025)
    ),
    Case(
        "inference in the US and fast mode: both multiply",
        RESIDENCY,
        anthropic("claude-opus-5", input_tokens=1_000, usage={"inference_geo": "us", "speed": "fast"}),
        "0.011",
    ),
    Case(
        "global inference is the standard price",
        RESIDENCY,
        anthropic("claude-opus-4-6", input_tokens=1_000, usage={"inference_geo": "global", "speed": "standard"}),
        "0.005",
    ),
    Case(
        "models older than inference_geo answer not_available",
        RESIDENCY,
        anthropic("claude-haiku-4-5-20251001", input_tokens=1_000, usage={"inference_geo": "not_available"}),
        "0.001",
    ),
    Case(
        "a batch costs half",
        ANTHROPIC_PRICING + "#batch-processing",
        anthropic("claude-opus-5", input_tokens=1_000, output_tokens=1_000, usage={"service_tier": "batch"}),
        "0.015",
    ),
    Case(
        "a batch from before the library's prices of batches",
        ANTHROPIC_PRICING + "#batch-processing",
        anthropic("claude-haiku-4-5", moment=datetime(2026, 6, 1, tzinfo=UTC), input_tokens=1_000, batch=True),
        "0.0005",
    ),
    Case(
        "a web search costs 0.01",
        ANTHROPIC_PRICING + "#web-search-tool",
        anthropic(
            "claude-sonnet-4-5", input_tokens=1_000, usage={"server_tool_use": {"web_search_requests": 2}}, tools=SEARCH
        ),
        "0.023",
    ),
    Case(
        "US inference does not make a web search dearer",
        RESIDENCY,
        anthropic(
            "claude-opus-4-6",
            input_tokens=1_000,
            usage={"server_tool_use.web_search_requests": 1, "inference_geo": "us"},
        ),
        "0.0155",  # 0.0055 + 0.01
    ),
    Case(
        "a web fetch costs tokens only",
        ANTHROPIC_PRICING + "#web-fetch-tool",
        anthropic("claude-sonnet-4-5", input_tokens=1_000, usage={"server_tool_use": {"web_fetch_requests": 3}}),
        "0.003",
    ),
    Case(
        "a web search that was offered and did not run",
        ANTHROPIC_PRICING + "#web-search-tool",
        anthropic("claude-sonnet-4-5", input_tokens=1_000, tools=["web_search_20250305"]),
        "0.003",
    ),
    Case(
        "a model that only our data has: Mythos 5.1",
        ANTHROPIC_PRICING + "#model-pricing",
        anthropic("claude-mythos-5-1", input_tokens=1_000, cache_read_input_tokens=1_000),
        "0.01025",
    ),
    Case(
        "thinking is part of the output",
        ANTHROPIC_PRICING,
        anthropic("claude-opus-5", output_tokens=1_000, usage={"output_tokens_details": {"thinking_tokens": 700}}),
        "0.025",
    ),
    # OpenAI.
    Case(
        "input, cached input and output: GPT-4.1 at 2, 0.5 and 8",
        OPENAI_PRICING,
        openai("gpt-4.1-2025-04-14", input_tokens=1_000, cache_read_input_tokens=9_000, output_tokens=10),
        "0.00658",
    ),
    Case(
        "reasoning is part of the output: o3 at 2 and 8",
        OPENAI_PRICING,
        openai("o3", output_tokens=1_000, usage={"completion_tokens_details": {"reasoning_tokens": 900}}),
        "0.008",
    ),
    Case(
        "the default tier",
        OPENAI_PRICING,
        openai("o3", input_tokens=1_000, usage={"service_tier": "default"}),
        "0.002",
    ),
    Case(
        "the flex tier: half",
        OPENAI_PRICING,
        openai("o3", input_tokens=1_000, cache_read_input_tokens=1_000, usage={"service_tier": "flex"}),
        "0.00125",
    ),
    Case(
        "the priority tier: o3 at 3.5, 0.875 and 14",
        OPENAI_PRICING,
        openai("o3", input_tokens=1_000, output_tokens=1_000, usage={"service_tier": "priority"}),
        "0.0175",
    ),
    Case(
        "the fast tier is the new name of priority: GPT-6 Sol at 4 and 20",
        OPENAI_PRICING,
        openai("gpt-6-sol", input_tokens=1_000, output_tokens=1_000, usage={"service_tier": "fast"}),
        "0.024",
    ),
    Case(
        "the ultrafast tier: six times the standard price, GPT-6 Astra at 60 and 300",
        ULTRAFAST,
        openai("gpt-6-astra", input_tokens=1_000, output_tokens=1_000, usage={"service_tier": "ultrafast"}),
        "0.36",
    ),
    Case(
        "the ultrafast tier, a long context: 120 and 450",
        ULTRAFAST,
        openai("gpt-6-astra", input_tokens=300_000, output_tokens=1_000, usage={"service_tier": "ultrafast"}),
        "36.45",
    ),
    Case(
        "the tier that was served counts, not the one that was asked for",
        OPENAI_PRICING,
        openai("o3", input_tokens=1_000, usage={"service_tier": "default"}, requested={"service_tier": "priority"}),
        "0.002",
    ),
    Case(
        "the tier that was asked for counts where the answer says nothing",
        OPENAI_PRICING,
        openai("o3", input_tokens=1_000, requested={"service_tier": "flex"}),
        "0.001",
    ),
    Case(
        "auto, and nothing in the answer, is the standard tier",
        OPENAI_PRICING,
        openai("o3", input_tokens=1_000, requested={"service_tier": "auto"}),
        "0.002",
    ),
    Case(
        "a batch: half, GPT-5 at 0.625 and 5",
        OPENAI_PRICING,
        openai("gpt-5", input_tokens=1_000, output_tokens=1_000, batch=True),
        "0.005625",
    ),
    Case(
        "a long context: GPT-5.5 beyond 272,000 tokens at 10 and 45",
        OPENAI_PRICING,
        openai("gpt-5.5", input_tokens=300_000, output_tokens=1_000),
        "3.045",
    ),
    Case(
        "cache writes since GPT-5.6: Sol 6 at 2.5",
        OPENAI_PRICING,
        openai(
            "gpt-6-sol",
            cache_write_input_tokens=1_000,
            usage={"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 1_000}},
        ),
        "0.0025",
    ),
    Case(
        "cache writes for 12 hours cost twice as much",
        "litellm 1.110.2",
        openai("gpt-6-sol", cache_write_input_tokens=1_000, requested={"prompt_cache_retention": "12h"}),
        "0.005",
    ),
    Case(
        "a longer lifetime costs nothing where cache writes do not: GPT-4.1",
        "https://developers.openai.com/api/docs/guides/prompt-caching",
        openai("gpt-4.1", cache_write_input_tokens=1_000, requested={"prompt_cache_retention": "24h"}),
        "0.002",
    ),
    Case(
        "no cached price: o1-pro at 150, cached or not",
        OPENAI_PRICING,
        openai("o1-pro", cache_read_input_tokens=1_000),
        "0.15",
    ),
    Case(
        "data residency: 10 % more for models since March 2026, GPT-5.5 at 5.5",
        OPENAI_RESIDENCY,
        openai("gpt-5.5", input_tokens=1_000, region="eu"),
        "0.0055",
    ),
    Case(
        "data residency: no more for older models",
        OPENAI_RESIDENCY,
        openai("gpt-4.1", input_tokens=1_000, region="eu"),
        "0.002",
    ),
    Case(
        "a web search that the usage counts: 0.01",
        OPENAI_PRICING,
        openai("gpt-5", input_tokens=1_000, tools=SEARCH, usage={"tool_usage": {"web_search": {"num_requests": 3}}}),
        "0.03125",
    ),
    Case(
        "a web search that the answer's items count",
        OPENAI_PRICING,
        openai("gpt-5", tools=SEARCH, tool_calls={"web_search_call": 2}),
        "0.02",
    ),
    Case(
        "the preview of web search with a model that does not reason: 0.025",
        OPENAI_PRICING,
        openai("gpt-4.1", tools=["web_search_preview"], tool_calls={"web_search_preview": 1}),
        "0.025",
    ),
    Case(
        "a file search: 0.0025",
        OPENAI_PRICING,
        openai("gpt-5", tools=["file_search"], tool_calls={"file_search_call": 4}),
        "0.01",
    ),
    Case(
        "a remote MCP server costs tokens only",
        "https://developers.openai.com/api/docs/guides/tools-connectors-mcp",
        openai("gpt-5", input_tokens=1_000, tools=["mcp"]),
        "0.00125",
    ),
    Case(
        "audio: gpt-audio at 32 in and 64 out, text at 2.5 and 10",
        "https://developers.openai.com/api/docs/models/gpt-audio",
        openai(
            "gpt-audio",
            input_tokens=1_000,
            output_tokens=500,
            usage={"prompt_tokens_details.audio_tokens": 800, "completion_tokens_details.audio_tokens": 400},
        ),
        "0.0527",  # 200 * 2.5 + 800 * 32 + 100 * 10 + 400 * 64
    ),
    Case(
        "cached audio: gpt-realtime at 0.4, not cached at 32",
        "https://developers.openai.com/api/docs/models/gpt-realtime",
        openai(
            "gpt-realtime",
            input_tokens=300,
            cache_read_input_tokens=700,
            usage={
                "input_token_details": {
                    "audio_tokens": 900,
                    "cached_tokens": 700,
                    "cached_tokens_details": {"audio_tokens": 700, "text_tokens": 0},
                }
            },
        ),
        "0.00708",  # 100 * 4 + 200 * 32 + 700 * 0.4
    ),
    Case(
        "pictures that a chat model reads are text",
        OPENAI_PRICING,
        openai("gpt-5", input_tokens=1_000, usage={"input_tokens_details": {"image_tokens": 600}}),
        "0.00125",
    ),
    Case(
        "pictures that an image model reads have a price: gpt-image-1.5 at 8",
        "https://developers.openai.com/api/docs/models/gpt-image-1.5",
        openai(
            "gpt-image-1.5",
            input_tokens=1_000,
            output_tokens=1_000,
            usage={"input_tokens_details.image_tokens": 600, "output_tokens_details.image_tokens": 1_000},
        ),
        "0.0388",  # 400 * 5 + 600 * 8 + 1,000 * 32
    ),
    *(
        Case(
            f"output of {model} that the answer does not count by modality is pictures",
            OPENAI_PRICING,
            openai(
                model, input_tokens=1_000, output_tokens=4_000, usage={"input_tokens_details": {"image_tokens": 400}}
            ),
            cost,
        )
        for model, cost in (
            ("gpt-image-1.5", "0.1342"),  # 600 * 5 + 400 * 8 + 4,000 * 32
            ("chatgpt-image-latest", "0.1342"),
            ("gpt-image-1", "0.167"),  # 600 * 5 + 400 * 10 + 4,000 * 40
            ("gpt-image-1-mini", "0.0342"),  # 600 * 2 + 400 * 2.5 + 4,000 * 8
            ("gpt-image-2", "0.1262"),  # 600 * 5 + 400 * 8 + 4,000 * 30
        )
    ),
    *(
        Case(
            f"the one output price of {model} is that of pictures",
            OPENAI_PRICING,
            openai(model, output_tokens=4_000, usage={"output_tokens_details": {"image_tokens": 4_000}}),
            cost,
        )
        for model, cost in (("gpt-image-1", "0.16"), ("gpt-image-1-mini", "0.032"), ("gpt-image-2", "0.12"))
    ),
    Case(
        "text of an image model: gpt-image-1.5 at 10",
        OPENAI_PRICING,
        openai(
            "gpt-image-1.5",
            output_tokens=4_000,
            usage={"output_tokens_details": {"image_tokens": 3_900, "text_tokens": 100}},
        ),
        "0.1258",  # 3,900 * 32 + 100 * 10
    ),
    Case(
        "audio that the answer counts: Gemini 2.5 Flash at 1, text at 0.3",
        GEMINI_PRICING,
        google(
            "gemini-2.5-flash",
            input_tokens=1_000,
            output_tokens=10,
            requested={"modality": "audio"},
            usage={"prompt_tokens_details": {"audio_tokens": 1_000}},
        ),
        "0.001025",
    ),
    Case(
        "audio of which the answer says that there was none",
        GEMINI_PRICING,
        google(
            "gemini-2.5-flash",
            input_tokens=1_000,
            requested={"modality": "audio"},
            usage={"prompt_tokens_details": {"audio_tokens": 0}},
        ),
        "0.0003",
    ),
    Case("an embedding", OPENAI_PRICING, openai("text-embedding-3-small", input_tokens=1_000), "0.00002"),
    Case(
        "an embedding in a batch",
        OPENAI_PRICING,
        openai("text-embedding-3-small", input_tokens=1_000, batch=True),
        "0.00001",
    ),
    Case("moderation is free", OPENAI_PRICING, openai("omni-moderation", input_tokens=1_000), "0"),
    Case(
        "a fine-tuned model",
        OPENAI_PRICING,
        openai("ft:gpt-4o-mini-2024-07-18:acme::abc123", input_tokens=1_000),
        "0.0003",
    ),
    # Copilot.
    Case(
        "Copilot states the cost: a billion of nano units is 0.01",
        COPILOT_PRICING,
        {
            "vendor": "copilot",
            "model": "gpt-5.5",
            IN: 1_000,
            "usage": {"copilot_usage": {"total_nano_aiu": 2_581_100_000}},
        },
        "0.025811",
    ),
    Case(
        "Copilot without a stated cost: its list",
        COPILOT_PRICING,
        {"vendor": "github-copilot", "model": "claude-opus-4-8", IN: 1_000, OUT: 1_000},
        "0.03",
    ),
    Case(
        "Copilot, a model that its plans include",
        COPILOT_PRICING,
        {"vendor": "github-copilot", "model": "gpt-4.1", IN: 1_000},
        "0",
    ),
    # OpenRouter, xAI, Groq, Gemini, DeepSeek.
    Case(
        "OpenRouter states the cost",
        "https://openrouter.ai/docs/use-cases/usage-accounting",
        {"vendor": "openrouter", "model": "any/model", IN: 1_000, "usage": {"cost": 0.95, "is_byok": False}},
        "0.95",
    ),
    Case(
        "OpenRouter with a key of one's own: its fee and what the vendor takes",
        "https://openrouter.ai/docs/use-cases/usage-accounting",
        {
            "vendor": "openrouter",
            "model": "any/model",
            "usage": {"cost": 0.05, "is_byok": True, "cost_details": {"upstream_inference_cost": 1}},
        },
        "1.05",
    ),
    Case(
        "xAI states the cost: ten billion ticks are a dollar",
        XAI_PRICING,
        {"vendor": "xai", "model": "grok-4.7", "usage": {"cost_in_usd_ticks": 318_319_000}},
        "0.0318319",
    ),
    Case(
        "xAI's boundary of long contexts is inclusive: Grok 4.7 at 4 from 200,000 tokens on",
        XAI_PRICING,
        {"vendor": "x-ai", "model": "grok-4.7", IN: 200_000},
        "0.8",
    ),
    Case(
        "xAI's regional host in the US: 10 % more",
        XAI_PRICING,
        {"vendor": "x-ai", "model": "grok-4.7", IN: 1_000, "region": "us"},
        "0.0022",
    ),
    Case(
        "Groq serves gpt-oss at its own price: 0.15",
        "https://console.groq.com/docs/models",
        {"vendor": "groq", "model": "openai/gpt-oss-120b", IN: 1_000, "usage": {"service_tier": "on_demand"}},
        "0.00015",
    ),
    Case(
        "Gemini's priority tier: 1.8 times 0.75",
        GEMINI_PRICING,
        {"vendor": "google", "model": "gemini-3.8-flash", IN: 1_000, "usage": {"service_tier": "priority"}},
        "0.00135",
    ),
    Case(
        "Gemini's reasoning beside completion is output once the reader has added it",
        GEMINI_PRICING,
        {"vendor": "gemini", "model": "models/gemini-3.5-flash", OUT: 150},
        "0.00135",
    ),
    Case(
        "DeepSeek's peak hours: V4 Pro at 1.32 on a weekday at 02:00",
        "https://api-docs.deepseek.com/quick_start/pricing",
        {
            "vendor": "deepseek",
            "model": "deepseek-v4-pro",
            IN: 1_000,
            "moment": datetime(2026, 11, 27, 2, 0, tzinfo=UTC),
        },
        "0.00132",
    ),
    Case(
        "DeepSeek has no peak hours at weekends: 0.66",
        "https://api-docs.deepseek.com/quick_start/pricing",
        {
            "vendor": "deepseek",
            "model": "deepseek-v4-pro",
            IN: 1_000,
            "moment": datetime(2026, 11, 28, 2, 0, tzinfo=UTC),
        },
        "0.00066",
    ),
    # Bedrock. Claude and GPT: 10 % more than global in a region or a geography.
    Case(
        "across all regions: Sonnet 4.5 at 3 and 15",
        BEDROCK_PRICING,
        bedrock("global.anthropic.claude-sonnet-4-5-20250929-v1:0", input_tokens=1_000, output_tokens=1_000),
        "0.018",
    ),
    Case(
        "in the regions of a geography",
        BEDROCK_PRICING,
        bedrock("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", input_tokens=1_000, output_tokens=1_000),
        "0.0198",
    ),
    Case(
        "in one region",
        BEDROCK_PRICING,
        bedrock("anthropic.claude-opus-4-6-v1", input_tokens=1_000, region="eu-central-1"),
        "0.0055",
    ),
    Case(
        "an inference profile's ARN",
        BEDROCK_PRICING,
        bedrock(
            "arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            input_tokens=1_000,
        ),
        "0.0033",
    ),
    Case(
        "a model's ARN has the region: Nova Pro at 0.8 in us-east-1",
        BEDROCK_PRICING,
        bedrock("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-pro-v1:0", input_tokens=1_000),
        "0.0008",
    ),
    Case(
        "Nova Pro in the EU's profile has a price of its own: 1.05",
        "litellm 1.110.2, from the AWS price list",
        bedrock("eu.amazon.nova-pro-v1:0", input_tokens=1_000),
        "0.00105",
    ),
    Case(
        "GovCloud: 20 % more than global",
        BEDROCK_PRICING,
        bedrock("us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0", input_tokens=1_000),
        "0.0036",
    ),
    Case(
        "an hour's cache, as Converse says it",
        BEDROCK_PRICING,
        bedrock(
            "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
            cache_write_input_tokens=2_000,
            usage={"cacheDetails": [{"ttl": "1h", "inputTokens": 1_000}, {"ttl": "5m", "inputTokens": 1_000}]},
        ),
        "0.00975",
    ),
    Case(
        "an hour's cache, its names joined",
        BEDROCK_PRICING,
        bedrock(
            "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
            cache_write_input_tokens=2_000,
            usage={"cacheDetails.1h": 1_000, "cacheDetails.5m": 1_000},
        ),
        "0.00975",
    ),
    Case(
        "the priority tier: 75 % more, Nova Pro at 1.4",
        BEDROCK_TIERS,
        bedrock("us.amazon.nova-pro-v1:0", input_tokens=1_000, usage={"serviceTier": {"type": "priority"}}),
        "0.0014",
    ),
    Case(
        "the flex tier: half",
        BEDROCK_TIERS,
        bedrock("us.amazon.nova-pro-v1:0", input_tokens=1_000, usage={"serviceTier": "flex"}),
        "0.0004",
    ),
    Case(
        "standard latency",
        BEDROCK_PRICING,
        bedrock("us.amazon.nova-pro-v1:0", input_tokens=1_000, usage={"performanceConfig": {"latency": "standard"}}),
        "0.0008",
    ),
    # Azure.
    Case(
        "a global deployment costs what OpenAI takes: GPT-5.5 at 5 and 30",
        AZURE_RETAIL,
        azure("gpt-5.5-2026-04-24", input_tokens=1_000, output_tokens=1_000),
        "0.035",
    ),
    Case(
        "a data zone: 10 % more",
        AZURE_RETAIL,
        azure("gpt-5.5", "data_zone", input_tokens=1_000, region="eastus2"),
        "0.0055",
    ),
    Case(
        "the EU's data zone: 20 % more for GPT-6",
        AZURE_RETAIL,
        azure("gpt-6-sol", "data_zone", input_tokens=1_000, region="swedencentral"),
        "0.0024",
    ),
    Case(
        "Azure's priority tier",
        AZURE_RETAIL,
        azure("gpt-5.2", input_tokens=1_000, usage={"service_tier": "priority"}),
        "0.0035",
    ),
    Case(
        "Azure's own price of a DeepSeek model: V4 Pro at 1.74, day and night",
        AZURE_RETAIL,
        azure("DeepSeek-V4-Pro", input_tokens=1_000),
        "0.00174",
    ),
    Case("Azure's own price of a Grok", AZURE_RETAIL, azure("grok-4.3", input_tokens=1_000), "0.00125"),
    Case("Azure's own price of gpt-oss", AZURE_RETAIL, azure("gpt-oss-120b", input_tokens=1_000), "0.00015"),
    Case(
        "a Claude in Foundry, fast by its name: Opus 5.5 at 8",
        AZURE_RETAIL,
        azure("claude-opus-5-5-fast", input_tokens=1_000),
        "0.008",
    ),
]


def circumstances(values: Mapping[str, Any]) -> Circumstances:
    return Circumstances(**{"moment": MOMENT, **values})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_an_answer_costs_what_the_rule_says(case: Case) -> None:
    assert case.source
    found = price(circumstances(case.given))
    assert found.unpriced is None
    assert found.cost_usd == Decimal(case.cost)


def test_a_compacted_answer_costs_its_compaction_too() -> None:
    """23,000 and 1,000 tokens, with a compaction of 180,000 and 3,500, on Opus 4.6."""
    rows = [(23_000, 1_000), (180_000, 3_500)]
    costs = [
        price(circumstances(anthropic("claude-opus-4-6", input_tokens=read, output_tokens=written))).cost_usd
        for read, written in rows
    ]
    assert sum(cost for cost in costs if cost is not None) == Decimal("1.1275")


UNPRICED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "an unknown host": ({"vendor": None, "model": "gpt-5"}, "vendor: unknown"),
    "a vendor that the list does not have": ({"vendor": "acme", "model": "gpt-5"}, "vendor: acme"),
    "a price that the operator does not want": ({"vendor": "none", "model": "gpt-5"}, "vendor: none"),
    "an unknown model": (openai("weights-of-our-own"), "model: weights-of-our-own"),
    "another vendor's model": (anthropic("gpt-4.1"), "model: gpt-4.1"),
    "a model that begins like another": (openai("gpt-4.1-2025-04-14-lite"), "model: gpt-4.1-2025-04-14-lite"),
    "a model that OpenAI does not serve": (openai("gpt-oss-120b"), "model: gpt-oss-120b"),
    "an unknown tier": (openai("o3", usage={"service_tier": "turbo"}), "service_tier: turbo"),
    "a tier that is no text": (openai("o3", usage={"service_tier": 7}), "service_tier: 7"),
    "a tier that the model does not have": (openai("gpt-4.1", usage={"service_tier": "flex"}), "service_tier: flex"),
    "a tier before its price is known": (
        openai("o3", moment=datetime(2026, 6, 1, tzinfo=UTC), usage={"service_tier": "flex"}),
        "service_tier: flex",
    ),
    "OpenAI's scale tier": (openai("gpt-5", usage={"service_tier": "scale"}), "service_tier: scale"),
    "Anthropic's priority tier, whose price is a contract's": (
        anthropic("claude-opus-5", usage={"service_tier": "priority"}),
        "service_tier: priority",
    ),
    "a speed that is not sold": (anthropic("claude-opus-5", usage={"speed": "warp"}), "speed: warp"),
    "fast mode of a model without one": (anthropic("claude-sonnet-5", usage={"speed": "fast"}), "speed: fast"),
    "fast mode in a batch": (
        anthropic("claude-opus-5", batch=True, usage={"speed": "fast"}),
        "combination: processing batch, speed fast",
    ),
    "inferences below and above a threshold": (
        anthropic("claude-haiku-5-5", input_tokens=160_000, usage={"iterations": [message(50_000), message(110_000)]}),
        "usage: iterations below and above a threshold",
    ),
    "an unknown geography": (anthropic("claude-opus-4-6", usage={"inference_geo": "eu"}), "inference_geo: eu"),
    "a cache lifetime without a price": (
        anthropic("claude-opus-5", cache_write_input_tokens=5, usage={"cache_creation.ephemeral_12h_input_tokens": 5}),
        "cache_lifetime: 12h",
    ),
    "a cache lifetime that the model does not have": (
        openai("gpt-6-sol", cache_write_input_tokens=5, requested={"prompt_cache_retention": "24h"}),
        "cache_lifetime: 24h",
    ),
    "more tokens of one lifetime than were written": (
        anthropic("claude-sonnet-4-5", cache_write_input_tokens=2_000, usage={HOUR: 3_000}),
        "usage: cache lifetimes and cache writes disagree",
    ),
    "audio of a model without a price for it": (
        openai("gpt-5", input_tokens=9, usage={"prompt_tokens_details": {"audio_tokens": 5}}),
        "modality: input_audio",
    ),
    "audio that may have been cached": (
        openai(
            "gpt-realtime", input_tokens=9, cache_read_input_tokens=9, usage={"input_token_details.audio_tokens": 5}
        ),
        "modality: cached input_audio",
    ),
    "audio that the answer does not count": (
        google("gemini-2.5-flash", input_tokens=1_000, output_tokens=10, requested={"modality": "audio"}),
        "modality: input_audio without a count",
    ),
    "speech that the answer does not count": (
        openai("gpt-4o-transcribe", input_tokens=1_000, output_tokens=100, requested={"modality": "audio"}),
        "modality: input_audio without a count",
    ),
    "pictures that the answer does not count": (
        openai("gpt-image-2", input_tokens=1_000, output_tokens=100, requested={"modality": "image"}),
        "modality: input_image without a count",
    ),
    "output that is text, pictures or both": (
        google("gemini-2.5-flash-image", input_tokens=9, output_tokens=1_290),
        "modality: output_image without a count",
    ),
    "output that is text, audio or both": (
        openai("gpt-audio", input_tokens=9, output_tokens=9),
        "modality: output_audio without a count",
    ),
    "text of a model that has a price of pictures only": (
        openai("gpt-image-1", output_tokens=100, usage={"output_tokens_details": {"image_tokens": 90}}),
        "rate: output",
    ),
    "more audio than input": (
        openai("gpt-audio", input_tokens=4, usage={"prompt_tokens_details": {"audio_tokens": 5}}),
        "usage: parts are more than the whole",
    ),
    "a modality that is new": (
        openai("gpt-5", input_tokens=9, usage={"prompt_tokens_details": {"smell_tokens": 5}}),
        "usage: prompt_tokens_details.smell_tokens",
    ),
    "a count that is not one": (
        openai("gpt-5", usage={"prompt_tokens_details": {"audio_tokens": "many"}}),
        "usage: prompt_tokens_details.audio_tokens",
    ),
    "a count that is no number": (openai("gpt-5", usage={"sounds_tokens": float("nan")}), "usage: sounds_tokens"),
    "seconds of audio": (
        {"vendor": "mistral", "model": "mistral-small-latest", "usage": {"prompt_audio_seconds": 3}},
        "usage: prompt_audio_seconds",
    ),
    "a hosted tool without a price": (
        anthropic("claude-opus-5", usage={"server_tool_use": {"teleport_requests": 1}}),
        "tool: teleport",
    ),
    "code execution, whose time is in no answer": (
        anthropic("claude-opus-5", usage={"server_tool_use.code_execution_requests": 1}),
        "tool: code_execution",
    ),
    "code execution that may have run": (
        anthropic("claude-opus-5", tools=["code_execution_20250825"]),
        "tool: code_execution",
    ),
    "a model that is paid by the hour": (openai("whisper-1"), "rate: audio_hours"),
    "a tier that was asked for as no text": (openai("o3", requested={"service_tier": ["x"]}), "service_tier: ['x']"),
    "a tier that was asked for in an object": (
        bedrock("us.amazon.nova-pro-v1:0", requested={"serviceTier": {"type": "reserved"}}),
        "service_tier: reserved",
    ),
    "a name that is too long": (openai("x" * 10_000), "model: too long a name"),
    "a code interpreter's container": (
        openai("gpt-5", tool_calls={"code_interpreter_call": 1}),
        "tool: code_interpreter",
    ),
    "a hosted tool that may have run": (openai("gpt-5", tools=SEARCH), "tool: web_search"),
    "a hosted tool that is new": (openai("gpt-5", tools=["teleport_2027_01_01"]), "tool: teleport"),
    "pictures that a hosted tool made": (
        openai("gpt-5", usage={"tool_usage": {"image_gen": {"output_tokens": 900}}}),
        "tool: image_gen",
    ),
    "a model that always searches": (openai("gpt-5-search-api", input_tokens=9), "tool: web_search"),
    "a model that always searches, on Azure": (azure("gpt-5-search-api", input_tokens=9), "tool: web_search"),
    "a dated one on Azure": (azure("gpt-4o-mini-search-preview-2025-03-11", input_tokens=9), "tool: web_search"),
    "a model that always searches, at OpenRouter": (
        {"vendor": "openrouter", "model": "openai/gpt-4o-mini-search-preview", IN: 9},
        "tool: web_search",
    ),
    "xAI's searches without a stated cost": (
        {"vendor": "x-ai", "model": "grok-4.7", "usage": {"server_side_tool_usage_details": {"x_search_calls": 2}}},
        "tool: x_search",
    ),
    "an unknown data residency": (openai("gpt-5.5", region="mars"), "region: mars"),
    "data residency of a model without a rule": (openai("gpt-audio", region="eu"), "region: eu"),
    "Azure without a scope": (azure("gpt-5.5", scope=None), "azure_scope: unknown"),  # type: ignore[arg-type]
    "Azure's regional deployments": (azure("gpt-5.5", "regional", region="eastus"), "azure_scope: regional"),
    "a data zone without a region": (azure("gpt-5.5", "data_zone"), "data_zone: unknown"),
    "a model that Azure does not price": (azure("my-deployment"), "model: my-deployment"),
    "a Grok that only xAI prices": (azure("grok-4.5"), "model: grok-4.5"),
    "a Bedrock model in a region without a price": (
        bedrock("amazon.nova-pro-v1:0", region="eu-west-1"),
        "region: eu-west-1",
    ),
    "a Bedrock model in no region": (bedrock("amazon.nova-pro-v1:0"), "region: unknown"),
    "a geography without a price": (bedrock("ca.amazon.nova-pro-v1:0"), "region: ca"),
    "China": (bedrock("anthropic.claude-opus-4-6-v1", region="cn-north-1"), "region: cn-north-1"),
    "GovCloud without a price": (bedrock("us-gov.anthropic.claude-opus-4-6-v1"), "region: us-gov"),
    "an application's inference profile": (
        bedrock("arn:aws:bedrock:us-east-1:1:application-inference-profile/abc"),
        "model: application-inference-profile",
    ),
    "provisioned throughput": (
        bedrock("arn:aws:bedrock:us-east-1:1:provisioned-model/abc"),
        "model: provisioned-model",
    ),
    "an ARN of nothing": (bedrock("arn:aws:s3:::bucket"), "model: arn"),
    "optimized latency": (
        bedrock("us.amazon.nova-pro-v1:0", usage={"performanceConfig": {"latency": "optimized"}}),
        "latency: optimized",
    ),
    "optimized latency, asked for": (
        bedrock("us.amazon.nova-pro-v1:0", requested={"performanceConfig.latency": "optimized"}),
        "latency: optimized",
    ),
    "Bedrock's reserved tier": (
        bedrock("us.amazon.nova-pro-v1:0", usage={"serviceTier": {"type": "reserved"}}),
        "service_tier: reserved",
    ),
    "a long context whose price is not certain": (bedrock("openai.gpt-5.5", input_tokens=300_000), "rate: input"),
    "an amount that is none": (
        {"vendor": "openrouter", "model": "m", "usage": {"cost": "free"}},
        "provider_cost: not an amount",
    ),
    "an amount below nothing": (
        {"vendor": "openrouter", "model": "m", "usage": {"cost": -1}},
        "provider_cost: not an amount",
    ),
    "a key of one's own without the vendor's part": (
        {"vendor": "openrouter", "model": "m", "usage": {"cost": 1, "is_byok": True}},
        "provider_cost: upstream_inference_cost missing",
    ),
    "DeepSeek's name that has stood for several models": (
        {"vendor": "deepseek", "model": "deepseek-chat", IN: 9},
        "model: deepseek-chat",
    ),
}


@pytest.mark.parametrize("case", UNPRICED)
def test_what_is_not_known_has_no_price_and_a_reason(case: str) -> None:
    values, reason = UNPRICED[case]
    found = price(circumstances(values))
    assert (found.cost_usd, found.source, found.price_list) == (None, None, None)
    assert found.unpriced == reason


def test_every_word_of_a_reason_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "accounting.md").read_text()
    words = {reason.partition(":")[0] for _, reason in UNPRICED.values()}
    assert words == set(re.findall(r"`(\w+)`", page[page.index("| Word |") : page.index("## How prices")])) & words


def test_a_price_says_where_it_comes_from() -> None:
    listed = price(circumstances(openai("gpt-5", input_tokens=1)))
    assert (listed.source, listed.price_list, listed.unpriced) == ("price_list", price_list(), None)
    stated = price(circumstances({"vendor": "openrouter", "model": "m", "usage": {"cost": 1}}))
    assert (stated.source, stated.price_list, stated.unpriced) == ("provider", None, None)
    assert price_list().startswith("genai-prices 0.")


@pytest.mark.parametrize("vendor", sorted(vendors()))
def test_every_figure_of_our_own_has_a_source_and_a_day(vendor: str) -> None:
    data = supplement(vendor)
    for entry in (*data.rates, *data.factors, *data.fees, *data.lifetimes, *data.long_contexts):
        assert entry.source
        assert entry.read.year == 2026
        assert all(name == name.lower() for name in entry.models)


def test_every_vendor_of_the_price_list_can_be_named() -> None:
    assert {found.id for found in get_snapshot().providers} | vendors() == VENDORS


@pytest.mark.parametrize("vendor", ["anthropic", "openai", "github-copilot", "azure", "aws"])
@pytest.mark.parametrize("model", ["", " ", "no-such-model", "gpt-4.1\n", "x" * 10_000, "\0", "😀"])
def test_a_row_of_an_unknown_model_has_no_cost(vendor: str, model: str) -> None:
    row = priced(replace(TOKENS, vendor=vendor, model=model, input_tokens=1_000))
    assert (row.cost_usd, row.cost_source, row.price_list) == (None, None, None)
    assert row.unpriced


def test_a_row_has_the_cost_of_its_counts() -> None:
    terms = PriceTerms(azure_scope="global", model="gpt-4o-2024-11-20")
    row = replace(TOKENS, vendor="azure", model="ours", terms=terms, input_tokens=1_000, output_tokens=1_000, extra={})
    row = priced(replace(row, cache_read_input_tokens=0, cache_write_input_tokens=0, unpriced=None))
    assert row.cost_usd == pytest.approx(0.0125)
    assert (row.cost_source, row.price_list, row.unpriced) == ("price_list", price_list(), None)


@pytest.mark.parametrize(("vendor", "reason"), [(None, "vendor: unknown"), ("none", "vendor: none")])
def test_without_a_vendor_there_is_no_cost(vendor: str | None, reason: str) -> None:
    assert priced(replace(TOKENS, vendor=vendor, model="gpt-4.1", extra={})).unpriced == reason


@pytest.mark.parametrize(
    ("said", "cost"),
    [
        ({"cost": 0.25}, 0.25),
        ({"copilot_usage.total_nano_aiu": 25_000_000_000}, 0.25),
        ({"cost_in_usd_ticks": 10**10}, 1),
    ],
)
def test_what_an_unknown_host_says_it_costs_counts(said: dict[str, Any], cost: float) -> None:
    row = priced(replace(TOKENS, vendor=None, extra=said))
    assert (row.cost_usd, row.cost_source, row.price_list) == (cost, "provider", None)


COUNTS = st.integers(0, 2**63 - 1)
MODELS = st.sampled_from(
    [
        ("anthropic", "claude-sonnet-4-5"),
        ("anthropic", "claude-haiku-5-5"),
        ("openai", "gpt-6-sol"),
        ("openai", "gpt-4.1"),
        ("github-copilot", "gpt-5.4"),
        ("x-ai", "grok-4.7"),
        ("aws", "global.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("azure", "gpt-5.5"),
        ("deepseek", "deepseek-v4-pro"),
    ]
)
KINDS = (IN, OUT, READ)


@given(
    model=MODELS,
    counts=st.tuples(*[st.integers(0, 2**40)] * 3),
    more=st.integers(0, 2**40),
    kind=st.sampled_from(KINDS),
)
def test_more_tokens_never_cost_less(
    model: tuple[str, str], counts: tuple[int, int, int], more: int, kind: str
) -> None:
    vendor, name = model
    few = dict(zip(KINDS, counts, strict=True))
    many = few | {kind: few[kind] + more}
    costs = [
        price(circumstances({"vendor": vendor, "model": name, "azure_scope": "global", **given_})).cost_usd
        for given_ in (few, many)
    ]
    assert costs[0] is not None
    assert costs[1] is not None
    assert 0 <= costs[0] <= costs[1]


NAMES = st.sampled_from(
    [HOUR, MINUTES, "service_tier", "speed", "prompt_tokens_details", "server_tool_use", "tool_usage", "cost"]
) | st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | COUNTS | st.floats() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(NAMES, below, max_size=3),
    max_leaves=8,
)


@given(
    vendor=st.sampled_from(["anthropic", "openai", "azure", "aws", "github-copilot", "openrouter", "x-ai"])
    | st.text(max_size=5),
    model=st.text(max_size=20) | st.sampled_from(["claude-sonnet-4-5", "gpt-4.1", "o3", "arn:aws:bedrock:::x/y"]),
    counts=st.tuples(COUNTS, COUNTS, COUNTS, COUNTS),
    said=st.dictionaries(NAMES, JSON, max_size=4),
    requested=st.dictionaries(NAMES | st.just("prompt_cache_retention"), JSON, max_size=3),
    region=st.none() | st.text(max_size=8),
)
def test_whatever_a_provider_says_there_is_a_price_or_a_reason(
    vendor: str,
    model: str,
    counts: tuple[int, int, int, int],
    said: dict[str, Any],
    requested: dict[str, Any],
    region: str | None,
) -> None:
    columns = dict(zip((IN, OUT, READ, WRITTEN), counts, strict=True))
    found = price(
        circumstances(
            {"vendor": vendor, "model": model, "usage": said, "requested": requested, "region": region, **columns}
        )
    )
    if found.cost_usd is None:
        assert found.unpriced
        assert len(found.unpriced) <= 120
    else:
        assert found.cost_usd >= 0
        assert found.unpriced is None


@given(tier=st.text(min_size=1, max_size=12))
def test_a_tier_that_is_not_sold_has_no_price(tier: str) -> None:
    assume(tier not in ("default", "standard", "batch", "flex", "priority", "fast"))
    assert price(circumstances(openai("o3", input_tokens=1, usage={"service_tier": tier}))).cost_usd is None
