"""The providers: their schema, the default set, and what stands in for addresses that are left out."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from aibridge_addon.config import values as values
from aibridge_addon.config.errors import rejected
from aibridge_addon.config.urls import BaseUrl
from aibridge_addon.config.values import Section

ProviderType = Literal["anthropic", "openai", "copilot", "azure", "bedrock"]


class CircuitBreaker(Section):
    failure_threshold: values.Positive = 5
    interval: values.Positive = 10
    timeout: values.Positive = 30
    max_requests: values.Positive = 3


class Bedrock(Section):
    """Where a provider of type anthropic has its Messages requests answered by Bedrock."""

    region: values.OptionalLine = None
    model: values.Line
    small_fast_model: values.OptionalLine = None
    access_key: values.OptionalSecret = None
    secret_key: values.OptionalSecret = None
    base_url: values.OptionalBaseUrl = None

    @model_validator(mode="after")
    def _complete(self) -> Bedrock:
        if self.region is None and self.base_url is None:
            raise rejected("a region, or a base_url", found="neither", at=("region",))
        if (self.access_key is None) != (self.secret_key is None):
            missing = "access_key" if self.access_key is None else "secret_key"
            raise rejected("both keys, or neither: then AWS's own chain is used", found="nothing", at=(missing,))
        return self

    @property
    def endpoint(self) -> BaseUrl:
        """Where the requests go (AWS General Reference, "Amazon Bedrock endpoints")."""
        return self.base_url or BaseUrl("https", f"bedrock-runtime.{self.region}.amazonaws.com", 443)


class _Default(NamedTuple):
    name: str
    type: ProviderType
    hosts: tuple[str, ...]
    base_url: BaseUrl | None = None


_DEFAULTS = (
    _Default("anthropic", "anthropic", ("api.anthropic.com",), BaseUrl.parse("https://api.anthropic.com")),
    _Default("openai", "openai", ("api.openai.com",), BaseUrl.parse("https://api.openai.com/v1")),
    _Default("chatgpt", "openai", ("chatgpt.com",), BaseUrl.parse("https://chatgpt.com/backend-api/codex")),
    _Default("copilot", "copilot", ("api.individual.githubcopilot.com", "api.githubcopilot.com")),
    _Default("copilot-business", "copilot", ("api.business.githubcopilot.com",)),
    _Default("copilot-enterprise", "copilot", ("api.enterprise.githubcopilot.com",)),
    _Default("azure", "azure", ("*.openai.azure.com", "*.cognitiveservices.azure.com", "*.services.ai.azure.com")),
    _Default("bedrock", "bedrock", ("bedrock-runtime.*.amazonaws.com", "bedrock-mantle.*.api.aws")),
)


def _with_addresses(given: dict[str, Any]) -> dict[str, Any]:
    """Fill in hosts and base_url where one or both are left out.

    The default of the same name and type is the model, else the first of the type. But one of the two that is
    given must not be paired with a vendor's other: a client's OpenAI key would go to a stranger.
    """
    of_type = [default for default in _DEFAULTS if default.type == given.get("type")]
    named = next((default for default in of_type if default.name == given.get("name")), None)
    default = named or next(iter(of_type), None)
    if default is None:
        return given
    return {
        "hosts": _default_hosts(given.get("base_url"), default, named=named is not None),
        "base_url": _default_base_url(given.get("hosts"), default),
        **given,
    }


def _default_hosts(given: object, default: _Default, *, named: bool) -> tuple[str, ...]:
    try:
        base_url = values.parse_base_url(given) if given else None
    except PydanticCustomError:
        return default.hosts  # the field itself reports what is wrong
    # One address can stand in for a named vendor host, but not for each that a wildcard matches.
    redirects = named and not any("*" in host for host in default.hosts)
    if base_url is None or base_url == default.base_url or redirects:
        return default.hosts
    return (base_url.host,)


def _default_base_url(given: object, default: _Default) -> BaseUrl | None:
    hosts = given if isinstance(given, list | tuple) else default.hosts
    vendors = all(isinstance(host, str) and host.lower() in default.hosts for host in hosts)
    return default.base_url if vendors else None


def _provider_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise rejected("a name that matches ^[a-z0-9]+(-[a-z0-9]+)*$", shown=f'invalid provider name "{name[:60]}"')
    if name == "api":
        raise rejected('any name but "api", which /api/v2/aibridge/ needs', shown=f'invalid provider name "{name}"')
    return name


class Provider(Section):
    name: Annotated[str, AfterValidator(_provider_name)]
    type: ProviderType
    hosts: tuple[values.HostPattern, ...] = ()
    base_url: values.OptionalBaseUrl = None
    api_key: values.ApiKeys = ()
    max_retries: Annotated[values.Whole, Field(ge=0, le=10)] = 0
    allow_anonymous: bool = False
    circuit_breaker: CircuitBreaker | None = None
    send_actor_headers: bool = False
    inject_tools: bool = True
    bedrock: Bedrock | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        return _with_addresses(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _consistent(self) -> Provider:
        if not self.hosts and self.base_url is None:
            raise rejected("at least one host, or a base_url (gateway only)", found="no host", at=("hosts",))
        if self.api_key and self.type == "copilot":
            expected = "no api_key: Copilot knows each user by a token of their own, which passes through"
            raise rejected(expected, found="one", at=("api_key",))
        if self.api_key and self.base_url is None and all("*" in host for host in self.hosts):
            expected = "a base_url, or a host without *: a key is for nobody whom a wildcard may match"
            raise rejected(expected, found="no such address", at=("api_key",))
        if self.bedrock is not None and self.type != "anthropic":
            raise rejected("a bedrock block for type anthropic only", found="one for another type", at=("bedrock",))
        if self.bedrock is not None and self.api_key:
            raise rejected("no api_key beside a bedrock block", found="both", at=("api_key",))
        return self

    @property
    def gateway_url(self) -> BaseUrl | None:
        """Where a gateway request goes; null where every host has a wildcard and no base_url is set."""
        if self.base_url is not None:
            return self.base_url
        host = next((host for host in self.hosts if "*" not in host), None)
        return None if host is None else BaseUrl("https", host, 443)


DEFAULT_PROVIDERS = tuple(
    Provider(name=default.name, type=default.type, hosts=default.hosts, base_url=default.base_url)
    for default in _DEFAULTS
)


def unique_or_default(providers: tuple[Provider, ...]) -> tuple[Provider, ...]:
    seen: set[str] = set()
    for index, provider in enumerate(providers):
        if provider.name in seen:
            raise rejected(
                "a name that no other provider has",
                shown=f'duplicate provider name: "{provider.name}"',
                at=(index, "name"),
            )
        seen.add(provider.name)
    return providers or DEFAULT_PROVIDERS
