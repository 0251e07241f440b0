"""What token rows cost, computed by hand from the vendors' price lists (US dollars for a million tokens)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.config.providers import DEFAULT_PROVIDERS
from aibridge_addon.providers import TYPES
from aibridge_addon.recording.pricing import cost_usd
from tests.support.examples import TOKENS

ROW = replace(
    TOKENS,
    input_tokens=0,
    output_tokens=0,
    cache_read_input_tokens=0,
    cache_write_input_tokens=0,
    extra={},
)
SONNET = {"vendor": "anthropic", "model": "claude-sonnet-4-5-20250929"}
"""Input 3, output 15, cache read 0.30, cache write 3.75 for 5 minutes and 6 for an hour; beyond 200,000 tokens of
input: 6, 22.50, 0.60, 7.50 and 12."""
GPT = {"vendor": "openai", "model": "gpt-4.1-2025-04-14"}
"""Input 2, output 8, cached input 0.50."""
O3: dict[str, Any] = {"vendor": "openai", "model": "o3", "created_at": datetime(2026, 11, 1, tzinfo=UTC)}
"""Input 2, output 8, cached input 0.50; flex: half of each; priority: 3.50, 14 and 0.875."""
IN, OUT, READ, WRITTEN = "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens"
HOUR, MINUTES = "cache_creation.ephemeral_1h_input_tokens", "cache_creation.ephemeral_5m_input_tokens"

COSTS: dict[str, tuple[Mapping[str, Any], float]] = {
    "nothing": ({**SONNET}, 0.0),
    "input and output": ({**SONNET, IN: 1_000, OUT: 100}, 0.003 + 0.0015),
    "a cache read": ({**SONNET, IN: 1_000, READ: 10_000}, 0.003 + 0.003),
    "a cache write of 5 minutes": ({**SONNET, IN: 1_000, WRITTEN: 2_000}, 0.003 + 0.0075),
    "a cache write of 5 minutes, reported": (
        {**SONNET, WRITTEN: 2_000, "extra": {MINUTES: 2_000, HOUR: 0}},
        0.0075,
    ),
    "a cache write of an hour": ({**SONNET, WRITTEN: 2_000, "extra": {HOUR: 2_000, MINUTES: 0}}, 0.012),
    "cache writes of both kinds": (
        {**SONNET, IN: 1_000, WRITTEN: 2_000, "extra": {HOUR: 500, MINUTES: 1_500}},
        0.003 + 500 * 6e-6 + 1_500 * 3.75e-6,
    ),
    "a count of one-hour writes above all writes is ignored": (
        {**SONNET, WRITTEN: 2_000, "extra": {HOUR: 3_000}},
        0.0075,
    ),
    "everything": (
        {**SONNET, IN: 10, OUT: 1_000, READ: 100_000, WRITTEN: 4_000, "extra": {HOUR: 1_000, MINUTES: 3_000}},
        10 * 3e-6 + 0.015 + 0.03 + 0.006 + 3_000 * 3.75e-6,
    ),
    "a long context": ({**SONNET, IN: 300_000, OUT: 1_000}, 300_000 * 6e-6 + 1_000 * 22.5e-6),
    "the sum of a batch, whose requests are short": (
        {**SONNET, IN: 300_000, OUT: 1_000, "extra": {"requests": 100}},
        300_000 * 3e-6 + 1_000 * 15e-6,
    ),
    "what was cached counts for the length of the context": (
        {**SONNET, IN: 1_000, READ: 299_000},
        1_000 * 6e-6 + 299_000 * 0.6e-6,
    ),
    "the standard tier": ({**SONNET, IN: 1_000, "extra": {"service_tier": "standard"}}, 0.003),
    "OpenAI": ({**GPT, IN: 1_000, OUT: 1_000}, 0.002 + 0.008),
    "OpenAI, cached": ({**GPT, IN: 1_000, READ: 9_000, OUT: 10}, 0.002 + 0.0045 + 0.00008),
    "the default tier": ({**O3, IN: 1_000, OUT: 1_000, "extra": {"service_tier": "default"}}, 0.002 + 0.008),
    "the flex tier": (
        {**O3, IN: 1_000, READ: 1_000, OUT: 1_000, "extra": {"service_tier": "flex"}},
        0.001 + 0.00025 + 0.004,
    ),
    "the priority tier": (
        {**O3, IN: 1_000, READ: 1_000, OUT: 1_000, "extra": {"service_tier": "priority"}},
        0.0035 + 0.000875 + 0.014,
    ),
    "a tier that is no text": ({**O3, IN: 1_000, "extra": {"service_tier": 7}}, 0.002),
    "an unknown tier": ({**O3, IN: 1_000, "extra": {"service_tier": "nonsense"}}, 0.002),
    "Copilot": ({"vendor": "github-copilot", "model": "claude-sonnet-4", IN: 1_000, OUT: 1_000}, 0.018),
    "Copilot, a model that its plans include": ({"vendor": "github-copilot", "model": "gpt-4.1", IN: 1_000}, 0.0),
    "Azure": ({"vendor": "azure", "model": "gpt-4o-2024-11-20", IN: 1_000, OUT: 1_000}, 0.0025 + 0.01),
    "Azure, an Anthropic model": ({"vendor": "azure", "model": "claude-sonnet-4-5", IN: 1_000, OUT: 1_000}, 0.018),
    "Bedrock, a region's price": (
        {"vendor": "aws", "model": "anthropic.claude-sonnet-4-5-20250929-v1:0", IN: 1_000, OUT: 1_000},
        1.1 * 0.018,
    ),
    "Bedrock, an hour's cache, as Converse reports it": (
        {
            "vendor": "aws",
            "model": "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
            WRITTEN: 2_000,
            "extra": {"cacheDetails.1h": 1_000, "cacheDetails.5m": 1_000},
        },
        0.006 + 0.00375,
    ),
    "Bedrock, an inference profile": (
        {
            "vendor": "aws",
            "model": "arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            IN: 1_000,
        },
        1.1 * 0.003,
    ),
    "Bedrock, across all regions": (
        {"vendor": "aws", "model": "global.anthropic.claude-sonnet-4-5-20250929-v1:0", IN: 1_000, OUT: 1_000},
        0.018,
    ),
}

VENDORS = sorted(kind.vendor for kind in TYPES.values() if kind.vendor is not None)


@pytest.mark.parametrize("case", COSTS)
def test_a_row_costs_what_the_price_list_says(case: str) -> None:
    columns, cost = COSTS[case]
    assert cost_usd(replace(ROW, **columns)) == pytest.approx(cost, abs=1e-12)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("model", ["", " ", "no-such-model", "gpt-4.1\n", "x" * 10_000, "\0", "😀"])
def test_a_model_without_a_known_price_has_no_cost(vendor: str, model: str) -> None:
    """Unknown is not free."""
    assert cost_usd(replace(ROW, vendor=vendor, model=model, input_tokens=1_000)) is None


def test_another_vendors_model_has_no_cost() -> None:
    assert cost_usd(replace(ROW, vendor="anthropic", model="gpt-4.1", input_tokens=1_000)) is None


def test_a_type_of_provider_without_a_price_list_has_no_cost() -> None:
    assert cost_usd(replace(ROW, **SONNET | {"vendor": None}, input_tokens=1_000)) is None  # type: ignore[arg-type]


def test_a_price_is_the_one_of_its_day() -> None:
    """The price of o3 fell from 10 and 40 on 2025-06-10."""
    row = replace(ROW, vendor="openai", model="o3", input_tokens=1_000, output_tokens=1_000)
    assert cost_usd(replace(row, created_at=datetime(2025, 6, 1, tzinfo=UTC))) == pytest.approx(0.05)
    assert cost_usd(replace(row, created_at=datetime(2025, 7, 1, tzinfo=UTC))) == pytest.approx(0.01)


def test_every_type_of_provider_has_a_price_list() -> None:
    assert set(TYPES) == {provider.type for provider in DEFAULT_PROVIDERS}


COUNTS = st.integers(0, 2**63 - 1)


@given(
    vendor=st.sampled_from(VENDORS),
    model=st.text(max_size=20) | st.sampled_from(["claude-sonnet-4-5", "gpt-4.1", "o3"]),
    counts=st.tuples(COUNTS, COUNTS, COUNTS, COUNTS),
    extra=st.dictionaries(st.sampled_from([HOUR, MINUTES, "service_tier"]), COUNTS | st.text(max_size=8)),
)
def test_no_counts_and_no_names_make_it_fail(
    vendor: str, model: str, counts: tuple[int, int, int, int], extra: dict[str, Any]
) -> None:
    columns = dict(zip((IN, OUT, READ, WRITTEN), counts, strict=True))
    cost = cost_usd(replace(ROW, vendor=vendor, model=model, extra=extra, **columns))  # type: ignore[arg-type]
    assert cost is None or cost >= 0
