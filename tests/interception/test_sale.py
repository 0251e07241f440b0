"""Who bills for an answer, and on which terms: decided by the host, the configuration and the request."""

from __future__ import annotations

from typing import Any

import pytest

from aibridge_addon.config.providers import DEFAULT_PROVIDERS, Provider
from aibridge_addon.dialects.base import UNREAD, ToolCall, Usage
from aibridge_addon.interception.routing import Route, Router
from aibridge_addon.interception.sale import NOT_SENT_TO_BEDROCK, Sale, requested_in
from aibridge_addon.messages_on_bedrock.models import UNSUPPORTED
from aibridge_addon.providers.vendors import Seller, seller_at

SELLERS = [
    ("api.anthropic.com", ("anthropic", None)),
    ("aws-external-anthropic.us-west-2.api.aws", ("anthropic", None)),
    ("api.openai.com", ("openai", None)),
    ("eu.api.openai.com", ("openai", "eu")),
    ("chatgpt.com", ("openai", None)),
    ("api.individual.githubcopilot.com", ("github-copilot", None)),
    ("copilot-api.ours.ghe.com", ("github-copilot", None)),
    ("ours.openai.azure.com", ("azure", None)),
    ("ours.services.ai.azure.com", ("azure", None)),
    ("ours.openai.azure.us", ("azure", "usgov")),
    ("bedrock-runtime.eu-central-1.amazonaws.com", ("aws", "eu-central-1")),
    ("bedrock-runtime-fips.us-east-1.amazonaws.com", ("aws", "us-east-1")),
    ("bedrock-runtime.us-gov-west-1.amazonaws.com", ("aws", "us-gov-west-1")),
    ("bedrock-runtime.cn-north-1.amazonaws.com.cn", ("aws", "cn-north-1")),
    ("bedrock-mantle.us-east-2.api.aws", ("aws", "us-east-2")),
    ("vpce-0a1b2c-3d4e.bedrock-runtime.ap-south-1.vpce.amazonaws.com", ("aws", "ap-south-1")),
    ("openrouter.ai", ("openrouter", None)),
    ("us.api.x.ai", ("x-ai", "us")),
    ("api.mistral.ai", ("mistral", None)),
    ("api.deepseek.com", ("deepseek", None)),
    ("api.groq.com", ("groq", None)),
    ("generativelanguage.googleapis.com", ("google", None)),
    ("API.OpenAI.com.", ("openai", None)),
]


@pytest.mark.parametrize(("host", "seller"), SELLERS)
def test_a_known_host_has_its_vendor(host: str, seller: tuple[str, str | None]) -> None:
    assert seller_at(host) == Seller(*seller)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "llm.corp",
        "127.0.0.1",
        "api.openai.com.evil.example",
        "xapi.openai.com",
        "s3.us-east-1.amazonaws.com",
        "x.ai",
    ],
)
def test_any_other_host_has_none(host: str) -> None:
    assert seller_at(host) is None


def test_every_host_of_a_default_provider_has_a_vendor() -> None:
    for provider in DEFAULT_PROVIDERS:
        for host in provider.hosts:
            name = host.replace("*.bedrock", "vpce-1.bedrock").replace(".*.", ".us-east-1.").replace("*.", "ours.")
            assert seller_at(name) is not None, name


def route(type_: str, path: str, **settings: Any) -> Route:
    provider = Provider.model_validate({"name": "p", "type": type_, "hosts": ["llm.corp"], **settings})
    found = Router([provider]).proxied("llm.corp", "POST", path)
    assert found is not None and found.dialect is not None
    return found


MESSAGES, CHAT, RESPONSES = "/v1/messages", "/v1/chat/completions", "/v1/responses"
CONVERSE = "/model/m/converse"
DEPLOYMENT = "/openai/deployments/ours/chat/completions"
BLOCK = {"region": "eu-west-1", "model": "eu.m"}


@pytest.mark.parametrize(
    ("type_", "path", "settings", "host", "vendor"),
    [
        ("openai", CHAT, {}, "llm.corp", None),
        ("anthropic", MESSAGES, {}, "llm.corp", None),
        ("openai", CHAT, {}, "openrouter.ai", "openrouter"),
        ("openai", CHAT, {"price_as": "xai"}, "llm.corp", "x-ai"),
        ("openai", CHAT, {"price_as": "none"}, "api.openai.com", "none"),
        ("azure", DEPLOYMENT, {}, "llm.corp", "azure"),
        ("bedrock", CONVERSE, {}, "llm.corp", "aws"),
        ("copilot", "/responses", {}, "llm.corp", "github-copilot"),
        ("anthropic", MESSAGES, {"bedrock": BLOCK}, "bedrock-runtime.eu-west-1.amazonaws.com", "aws"),
        ("anthropic", MESSAGES, {"bedrock": BLOCK}, "llm.corp", "aws"),
        ("anthropic", MESSAGES, {}, "api.deepseek.com", "deepseek"),
    ],
)
def test_the_host_decides_who_bills_unless_the_configuration_does(
    type_: str, path: str, settings: dict[str, Any], host: str, vendor: str | None
) -> None:
    assert Sale(route(type_, path, **settings), host).vendor == vendor


def terms(path: str = RESPONSES, calls: list[ToolCall] | None = None, **request: Any) -> Any:
    usage = request.pop("usage", Usage())
    reading = UNREAD.__class__("m", False, None, None, False, **request)
    return Sale(route("openai", path), "llm.corp").terms(reading, "m", usage, calls)


def test_what_was_requested_counts_only_where_the_answer_is_silent() -> None:
    wish = {"service_tier": "flex", "prompt_cache_retention": "24h"}
    assert terms(requested=wish).requested == {"service_tier": "flex"}
    assert terms(requested=wish, usage=Usage(extra={"service_tier": "default"})).requested == {}
    written = Usage(cache_write_input_tokens=1, extra={"serviceTier.type": "flex"})
    assert terms(requested=wish, usage=written).requested == {"prompt_cache_retention": "24h"}


def call(name: str, **members: Any) -> ToolCall:
    return ToolCall("id", name, **{"input": {}, "server_side": True, **members})


def test_calls_of_hosted_tools_are_counted_by_the_type_that_was_offered() -> None:
    calls = [
        *(call("web_search_call", input={"type": "search"}), call("web_search_call", input={"type": "open_page"})),
        *(call("file_search_call"), call("file_search_call")),
        *(call("read", server_side=False), call("ask", server_name="mcp")),
    ]
    offered = ("web_search_preview_2025_03_11", "file_search")
    found = terms(calls=calls, hosted_tools=offered)
    assert found.tool_calls == {"web_search_preview_2025_03_11": 1, "file_search": 2}
    assert found.hosted_tools == ()


@pytest.mark.parametrize(("path", "calls"), [(RESPONSES, None), (CHAT, [])])
def test_tools_whose_calls_are_not_known_stay_as_they_were_offered(path: str, calls: list[ToolCall] | None) -> None:
    found = terms(path, calls, hosted_tools=("web_search",))
    assert (found.hosted_tools, found.tool_calls) == (("web_search",), {})


def test_a_name_of_the_operators_own_stands_for_a_model() -> None:
    sale = Sale(route("azure", DEPLOYMENT, models={"ours": "gpt-5.5", "theirs": "o3"}), "ours.openai.azure.com")
    assert sale.terms(UNREAD, "gpt-5", Usage(), []).model == "gpt-5.5"
    assert sale.terms(UNREAD, "theirs", Usage(), []).model == "o3"
    assert Sale(route("azure", DEPLOYMENT), None).terms(UNREAD, "gpt-5", Usage(), []).model == ""


def test_the_headers_of_a_bedrock_request_are_wishes() -> None:
    headers = {b"x-amzn-bedrock-service-tier": b"flex", b"x-amzn-bedrock-performanceconfig-latency": b"optimized"}
    assert requested_in(headers) == {"service_tier": "flex", "performanceConfig.latency": "optimized"}
    assert requested_in({b"accept": b"*/*"}) == {}


def test_what_is_not_sent_to_bedrock_is_what_the_translation_removes() -> None:
    assert set(NOT_SENT_TO_BEDROCK) <= set(UNSUPPORTED)
