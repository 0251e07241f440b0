"""A model is its exact name or a dated form of it, never a beginning of its name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ClauseAnd, ClauseContains, ClauseEquals, ClauseOr, ClauseStartsWith, MatchLogic

from aibridge_addon.recording.prices import models

VENDORS = ("anthropic", "openai", "azure", "aws", "github-copilot", "google", "x-ai", "deepseek", "groq", "mistral")
ANOTHER = ("-lite", "-search-api", "-thinking", "0", "x", "-v", "-20", "-2026", "-preview-x", ":free", "-latest-2")
"""Ends that make another model of a name."""


def exact_names(clause: MatchLogic) -> Iterator[str]:
    match clause:
        case ClauseEquals():
            yield clause.equals.lower()
        case ClauseOr():
            for part in clause.or_:
                yield from exact_names(part)


def beginnings(clause: MatchLogic) -> Iterator[str]:
    match clause:
        case ClauseStartsWith():
            yield clause.starts_with.lower()
        case ClauseContains():
            yield clause.contains.lower()
        case ClauseOr():
            for part in clause.or_:
                yield from beginnings(part)
        case ClauseAnd():
            for part in clause.and_:
                yield from beginnings(part)


LISTED = [
    (provider.id, name)
    for provider in get_snapshot().providers
    if provider.id in VENDORS
    for model in provider.models
    for name in exact_names(model.match)
]
BEGINNINGS = [
    (provider.id, name)
    for provider in get_snapshot().providers
    if provider.id in VENDORS
    for model in provider.models
    for name in beginnings(model.match)
]


@pytest.mark.parametrize("vendor", VENDORS)
def test_every_exact_name_of_the_list_is_found(vendor: str) -> None:
    for listed, name in LISTED:
        if listed == vendor and name == name.strip():
            found = models.find(vendor, name)
            assert found is not None, name
            assert name in set(exact_names(found.model.match))


@pytest.mark.parametrize("end", ["-v2", "-v9:0", ":9"])
def test_only_bedrock_numbers_the_versions_of_a_model(end: str) -> None:
    exact = set(LISTED) | set(BEGINNINGS)
    for vendor, name in LISTED + BEGINNINGS:
        longer = name.rstrip("-@.") + end
        if vendor == "aws" or (vendor, longer) in exact or name.startswith("ft:"):
            continue
        found = models.find(vendor, longer)
        assert found is None or longer in set(exact_names(found.model.match)), (vendor, longer)


@pytest.mark.parametrize("end", ANOTHER)
def test_a_longer_name_is_another_model(end: str) -> None:
    exact = set(LISTED) | set(BEGINNINGS)
    for vendor, name in LISTED + BEGINNINGS:
        longer = name.rstrip("-@.") + end
        if (vendor, longer) in exact or name.startswith("ft:"):  # the end of a fine-tuned model's name is free
            continue
        found = models.find(vendor, longer)
        assert found is None or longer in set(exact_names(found.model.match)), (vendor, longer)


SAME = {
    "the day after a dash": ("anthropic", "claude-opus-4-8-20260501", "claude-opus-4-8"),
    "the day after an at sign": ("anthropic", "claude-opus-4-5@20251101", "claude-opus-4-5"),
    "a name that ends within a day": ("anthropic", "claude-sonnet-4-20250514", "claude-sonnet-4-0"),
    "the newest": ("anthropic", "claude-3-5-haiku-latest", "claude-3-5-haiku-latest"),
    "the day with dashes": ("openai", "gpt-5.2-2025-12-11", "gpt-5.2"),
    "the day without dashes": ("openai", "gpt-5.2-20251211", "gpt-5.2"),
    "a day that the list does not have": ("openai", "gpt-5.4-2026-08-01", "gpt-5.4"),
    "the day after a colon": ("openai", "gpt-3.5-turbo-instruct:20230824-v2", "gpt-3.5-turbo-instruct"),
    "capitals": ("openai", "GPT-4.1", "gpt-4.1"),
    "Bedrock's version": (
        "aws",
        "global.anthropic.claude-opus-4-5-20251101-v1:0",
        "global.anthropic.claude-opus-4-5-v1:0",
    ),
    "Bedrock's second version": ("aws", "amazon.titan-embed-text-v2:0", "amazon.titan-embed-text-v2:0"),
    "Bedrock's geography": ("aws", "us.amazon.nova-pro-v1:0", "amazon.nova-pro-v1:0"),
    "Google's number": ("google", "gemini-2.5-pro-001", "gemini-2.5-pro"),
    "Copilot's dot": ("github-copilot", "claude-opus-4-8", "claude-opus-4.8"),
    "a snapshot with a price of its own": ("openai", "gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
}


@pytest.mark.parametrize("case", SAME)
def test_a_dated_form_is_the_same_model(case: str) -> None:
    vendor, name, id_ = SAME[case]
    found = models.find(vendor, name)
    assert found is not None
    assert found.model.id == id_


IDS = {
    "anthropic.claude-opus-5": (None, "anthropic.claude-opus-5", None),
    "global.anthropic.claude-opus-5": ("global", "anthropic.claude-opus-5", None),
    "us-gov.anthropic.claude-opus-5": ("us-gov", "anthropic.claude-opus-5", None),
    "arn:aws:bedrock:eu-west-1:1:inference-profile/eu.anthropic.claude-opus-5": (
        "eu",
        "anthropic.claude-opus-5",
        "eu-west-1",
    ),
    "arn:aws-us-gov:bedrock:us-gov-west-1::foundation-model/anthropic.claude-opus-5": (
        None,
        "anthropic.claude-opus-5",
        "us-gov-west-1",
    ),
}


@pytest.mark.parametrize("id_", IDS)
def test_a_bedrock_id_is_taken_apart(id_: str) -> None:
    assert models.bedrock(id_) == IDS[id_]
