"""Who bills for the answers of a request, and on which terms. Sans-io."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from aibridge_addon.dialects import MESSAGES
from aibridge_addon.dialects.base import MAX_WISH, RequestReading, ToolCall, Usage
from aibridge_addon.dialects.hosted_calls import count_hosted
from aibridge_addon.interception.routing import Route
from aibridge_addon.providers import vendor_of
from aibridge_addon.providers.vendors import ALIASES, seller_at
from aibridge_addon.records import CACHE_LIFETIMES, Headers, PriceTerms

ANSWERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "service_tier": ("service_tier", "serviceTier.type", "serviceTier"),
        "speed": ("speed",),
        "inference_geo": ("inference_geo",),
        "performanceConfig.latency": ("performanceConfig.latency",),
        **dict.fromkeys(CACHE_LIFETIMES, CACHE_LIFETIMES),
    }
)
"""What a request may ask for, and the names under which answers say what was served."""
WISHES: Mapping[bytes, str] = MappingProxyType(
    {
        b"x-amzn-bedrock-service-tier": "service_tier",
        b"x-amzn-bedrock-performanceconfig-latency": "performanceConfig.latency",
    }
)
"""Headers of an InvokeModel request that decide the price (Amazon Bedrock API reference, "InvokeModel")."""
NOT_SENT_TO_BEDROCK = ("service_tier", "inference_geo")
"""Members of a Messages request that its translation for Bedrock removes."""


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
        self._dropped: Collection[str] = ()
        """Members that are not sent on, so the answer is not served by them."""
        self._region = (seller.region if seller else None) or provider.region
        known = vendor_of(route.type.name, host)
        self.vendor = known
        if provider.price_as is not None:
            self.vendor = ALIASES.get(provider.price_as, provider.price_as)
        elif provider.bedrock is not None and route.dialect is MESSAGES:
            self.vendor = "aws"
            self._region = self._region or provider.bedrock.region
            self._dropped = NOT_SENT_TO_BEDROCK
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
            requested=_unanswered(self._sent(request), usage),
            hosted_tools=() if counted else request.hosted_tools,
            tool_calls=_hosted_calls(request, usage, calls if counted else None),
        )

    def terms_beside(self, request: RequestReading, model: str, usage: Usage) -> PriceTerms:
        """Return the terms of an iteration beside an answer."""
        return PriceTerms(
            price_as=self._price_as,
            model=self._model_behind(model),
            region=self._region,
            azure_scope=self._route.provider.azure_scope,
            requested=_unanswered(self._sent(request), usage),
            tool_calls=usage.hosted_calls,
        )

    def expected_terms(self, request: RequestReading, model: str) -> PriceTerms:
        """Return the terms of the answer to a request, as far as they are known before it."""
        terms = self.terms_beside(request, model, Usage())
        return replace(terms, model=self._model_behind(model, self._route.deployment))

    def _sent(self, request: RequestReading) -> dict[str, str]:
        """Return what was requested, without the members that a translation removes."""
        return {name: value for name, value in request.requested.items() if name not in self._dropped}

    @property
    def _lists_calls(self) -> bool:
        return self._route.dialect is not None and self._route.dialect.lists_hosted_calls

    def _model_behind(self, *names: str) -> str:
        """Return the model that the operator says is behind the first of these names that is configured."""
        models = self._route.provider.models
        return next((models[name] for name in names if name in models), "")


def _hosted_calls(request: RequestReading, usage: Usage, calls: Iterable[ToolCall] | None) -> Mapping[str, int]:
    """Count the calls of hosted tools, unless the reader has counted them."""
    return usage.hosted_calls or ({} if calls is None else count_hosted(calls, request.hosted_tools))


def _unanswered(requested: Mapping[str, str], usage: Usage) -> dict[str, str]:
    """Return what was requested and the answer does not mention."""
    return {
        name: value
        for name, value in requested.items()
        if not _answers(usage, name) and (usage.cache_write_input_tokens or name not in CACHE_LIFETIMES)
    }


def _answers(usage: Usage, name: str) -> bool:
    return any(usage.extra.get(answer) is not None for answer in ANSWERS.get(name, ()))
