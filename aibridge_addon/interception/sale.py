"""Who bills for the answers of a request, and on which terms. Sans-io."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from aibridge_addon.dialects import MESSAGES
from aibridge_addon.dialects.base import MAX_HOSTED_TOOLS, MAX_WISH, RequestReading, ToolCall, Usage
from aibridge_addon.interception.routing import Route
from aibridge_addon.providers import vendor_of
from aibridge_addon.providers.vendors import ALIASES, seller_at
from aibridge_addon.records import Headers, PriceTerms

ANSWERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "service_tier": ("service_tier", "serviceTier.type", "serviceTier"),
        "speed": ("speed",),
        "inference_geo": ("inference_geo",),
        "performanceConfig.latency": ("performanceConfig.latency",),
    }
)
"""What a request may ask for, and the names under which answers say what was served."""
CACHE_LIFETIME = "prompt_cache_retention"
"""Requested lifetime of a cache. No answer mentions it."""
WISHES: Mapping[bytes, str] = MappingProxyType(
    {
        b"x-amzn-bedrock-service-tier": "service_tier",
        b"x-amzn-bedrock-performanceconfig-latency": "performanceConfig.latency",
    }
)
"""Headers of an InvokeModel request that decide the price (Amazon Bedrock API reference, "InvokeModel")."""
FREE_ACTIONS = frozenset(("open_page", "find_in_page", "find"))
"""Actions of OpenAI's web search that are not billed (API documentation, "Web search")."""


def requested_in(headers: Headers) -> dict[str, str]:
    """Return what a request asks for in its headers."""
    return {
        name: headers[header].decode("latin-1")[:MAX_WISH] for header, name in WISHES.items() if headers.get(header)
    }


class Sale:
    """The vendor and the terms of one request's answers."""

    def __init__(self, route: Route, host: str | None) -> None:
        """`host` is the one that the request goes to."""
        provider = route.provider
        seller = seller_at(host) if host else None
        self._route = route
        self._region = (seller.region if seller else None) or provider.region
        known = vendor_of(route.type.name, host)
        self.vendor = known
        if provider.price_as is not None:
            self.vendor = ALIASES.get(provider.price_as, provider.price_as)
        elif provider.bedrock is not None and route.dialect is MESSAGES:
            self.vendor = "aws"
            self._region = self._region or provider.bedrock.region
        self._price_as = self.vendor if self.vendor != known else None

    def model(self, requested: str, answered: str) -> str:
        """Return the model of a row. Bedrock's prices depend on its own id, which only the request contains."""
        return (requested or answered) if self.vendor == "aws" else (answered or requested)

    def terms(self, request: RequestReading, model: str, usage: Usage, calls: Iterable[ToolCall] | None) -> PriceTerms:
        """Return the terms of an answer. `calls`: all that the model made; None: not all of them are known."""
        counted = calls is not None and self._lists_calls
        return PriceTerms(
            price_as=self._price_as,
            model=self._model_behind(model, request.model, self._route.deployment),
            region=self._region,
            azure_scope=self._route.provider.azure_scope,
            requested=_unanswered(request.requested, usage),
            hosted_tools=() if counted else request.hosted_tools,
            tool_calls=_count(calls, request.hosted_tools) if calls is not None and counted else {},
        )

    def terms_beside(self, request: RequestReading, model: str, usage: Usage, answer: Usage | None) -> PriceTerms:
        """Return the terms of an iteration beside an answer. It is served like the answer, unless it says otherwise."""
        extra = answer.extra if answer is not None else {}
        served = {
            name: value[:MAX_WISH]
            for name, names in ANSWERS.items()
            if (value := next((extra[n] for n in names if isinstance(extra.get(n), str)), None))
        }
        return PriceTerms(
            price_as=self._price_as,
            model=self._model_behind(model),
            region=self._region,
            azure_scope=self._route.provider.azure_scope,
            requested=_unanswered({**request.requested, **served}, usage),
        )

    @property
    def _lists_calls(self) -> bool:
        return self._route.dialect is not None and self._route.dialect.lists_hosted_calls

    def _model_behind(self, *names: str) -> str:
        """Return the model that the operator says is behind the first of these names that is configured."""
        models = self._route.provider.models
        return next((models[name] for name in names if name in models), "")


def _unanswered(requested: Mapping[str, str], usage: Usage) -> dict[str, str]:
    """Return what was requested and the answer does not mention."""
    return {
        name: value
        for name, value in requested.items()
        if (usage.cache_write_input_tokens if name == CACHE_LIFETIME else not _answers(usage, name))
    }


def _answers(usage: Usage, name: str) -> bool:
    return any(usage.extra.get(answer) is not None for answer in ANSWERS.get(name, ()))


def _count(calls: Iterable[ToolCall], offered: tuple[str, ...]) -> dict[str, int]:
    """Count the calls of hosted tools. A call of a remote MCP server's tool costs tokens only."""
    counts: dict[str, int] = {}
    for call in calls:
        if not call.server_side or call.server_name is not None or _is_free(call):
            continue
        name = _offered_as(call.name, offered)
        if name in counts or len(counts) < MAX_HOSTED_TOOLS:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _is_free(call: ToolCall) -> bool:
    return isinstance(call.input, dict) and call.name == "web_search_call" and _action(call.input) in FREE_ACTIONS


def _action(members: Mapping[str, object]) -> str:
    kind = members.get("type")
    return kind if isinstance(kind, str) else ""


def _offered_as(name: str, offered: tuple[str, ...]) -> str:
    """Return the tool that a call belongs to. `web_search_call` may also be that of `web_search_preview`."""
    name = name.removesuffix("_call")[:MAX_WISH]
    if name in offered:
        return name
    return next((type_ for type_ in offered if type_.startswith(f"{name}_preview")), name)
