"""The `providers` section: its schema, and the defaults for hosts and base URLs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from aibridge_addon.config import values as values
from aibridge_addon.config.errors import did_you_mean, rejected
from aibridge_addon.config.values import Section
from aibridge_addon.providers import TYPES
from aibridge_addon.providers.base import BaseUrl, DefaultProvider
from aibridge_addon.providers.vendors import ALIASES, NONE, VENDORS

AzureScope = Literal["global", "data_zone", "regional"]


def _vendor(value: object) -> str | None:
    """Check the name of a vendor of the price list."""
    if value is None or value == "":
        return None
    names = sorted({*VENDORS, *ALIASES})
    if not isinstance(value, str) or value not in (NONE, *names):
        expected = f"none, or a vendor of the price list: {', '.join(names)}"
        raise rejected(expected + did_you_mean(str(value)[:64], names))
    return value


class CircuitBreaker(Section):
    failure_threshold: values.Positive = 5
    interval: values.Positive = 10
    timeout: values.Positive = 30
    max_requests: values.Positive = 3


class Bedrock(Section):
    """Send the Messages requests of a provider of type anthropic to Bedrock."""

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
        """The URL for the requests (AWS General Reference, "Amazon Bedrock endpoints")."""
        return self.base_url or BaseUrl("https", f"bedrock-runtime.{self.region}.amazonaws.com", 443)


def _with_addresses(given: dict[str, Any]) -> dict[str, Any]:
    """Fill in hosts and base_url if one or both are missing.

    The values come from the default provider of the same name and type, or else from the first of the type. A custom
    host must not be paired with a vendor's base_url or vice versa: a client's OpenAI key would reach another vendor.
    """
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in TYPES or not (defaults := TYPES[kind].defaults):
        return given
    if given.get("openai_compatible") is True:
        return given
    named = next((default for default in defaults if default.name == given.get("name")), None)
    default = named or defaults[0]
    return {
        "hosts": _default_hosts(given.get("base_url"), default, named=named is not None),
        "base_url": _default_base_url(given.get("hosts"), default),
        **given,
    }


def _default_hosts(given: object, default: DefaultProvider, *, named: bool) -> tuple[str, ...]:
    try:
        base_url = values.parse_base_url(given) if given else None
    except PydanticCustomError:
        return default.hosts  # the field's own validator reports the error
    if base_url is None or base_url == default.base_url:
        return default.hosts
    # One address can replace a vendor's named hosts, but not every host that a wildcard matches.
    redirected = tuple(host for host in default.hosts if "*" not in host) if named else ()
    return redirected or (base_url.host,)


def _default_base_url(given: object, default: DefaultProvider) -> BaseUrl | None:
    if not isinstance(given, list | tuple):
        return default.base_url
    hosts = [host.lower() if isinstance(host, str) else "" for host in given]
    if default.base_url is None or not all(host in default.hosts for host in hosts):
        return None
    if not hosts or default.base_url.host in hosts:
        return default.base_url
    return replace(default.base_url, host=hosts[0]) if len(hosts) == 1 and "*" not in hosts[0] else None


def _provider_type(value: object) -> str:
    if not isinstance(value, str) or value not in TYPES:
        *names, last = (f"'{name}'" for name in TYPES)
        hint = did_you_mean(value, list(TYPES)) if isinstance(value, str) else ""
        raise rejected(f"{', '.join(names)} or {last}{hint}")
    return value


def _provider_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise rejected("a name that matches ^[a-z0-9]+(-[a-z0-9]+)*$", shown=f'invalid provider name "{name[:60]}"')
    if name == "api":
        raise rejected('any name but "api", which /api/v2/aibridge/ needs', shown=f'invalid provider name "{name}"')
    return name


class Provider(Section):
    name: Annotated[str, AfterValidator(_provider_name)]
    type: Annotated[str, PlainValidator(_provider_type)]
    hosts: tuple[values.HostPattern, ...] = ()
    base_url: values.OptionalBaseUrl = None
    api_key: values.ApiKeys = ()
    max_retries: Annotated[values.Whole, Field(ge=0, le=10)] = 0
    allow_anonymous: bool = False
    circuit_breaker: CircuitBreaker | None = None
    send_actor_headers: bool = False
    inject_tools: bool = True
    region: values.OptionalLine = None
    azure_scope: Annotated[AzureScope | None, values.EmptyIsNull] = None
    models: Annotated[dict[values.Line, values.Line], values.NullIsEmpty] = Field(default_factory=dict)
    price_as: Annotated[str | None, PlainValidator(_vendor)] = None
    openai_compatible: bool = False
    bedrock: Bedrock | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        return _with_addresses(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _consistent(self) -> Provider:
        if not self.hosts and self.base_url is None:
            raise rejected("at least one host, or a base_url (gateway only)", found="no host", at=("hosts",))
        kind = TYPES[self.type]
        if self.api_key and kind.refuses_central_key is not None:
            raise rejected(f"no api_key: {kind.refuses_central_key}", found="one", at=("api_key",))
        if self.api_key and self.base_url is None and all("*" in host for host in self.hosts):
            expected = "a base_url, or a host without *: a key is never sent to a host that matches only a wildcard"
            raise rejected(expected, found="no such address", at=("api_key",))
        if self.openai_compatible and self.type != "openai":
            raise rejected("true for type openai only", found="true for another type", at=("openai_compatible",))
        if self.openai_compatible and self.base_url is not None:
            expected = "no base_url: each of the hosts is reached where the client asks for it"
            raise rejected(expected, found="a base_url", at=("openai_compatible",))
        if self.bedrock is not None and not kind.answers_on_bedrock:
            allowed = " or ".join(name for name, other in TYPES.items() if other.answers_on_bedrock)
            raise rejected(f"a bedrock block for type {allowed} only", found="one for another type", at=("bedrock",))
        if self.bedrock is not None and self.api_key:
            raise rejected("no api_key beside a bedrock block", found="both", at=("api_key",))
        return self

    def stays(self, pattern: str) -> bool:
        """Return whether requests to one of the hosts stay there although there is a base URL.

        A vendor's regional hosts do: the vendor's default base URL does not replace them.
        """
        base = self.base_url
        return (
            base is not None
            and pattern != base.host
            and any(default.base_url == base and pattern in default.hosts for default in TYPES[self.type].defaults)
        )

    def owns(self, scheme: str, host: str, port: int) -> bool:
        """Return whether a central key may be sent to this address.

        Hosts that match a wildcard are excluded: anyone may be able to register one.
        """
        base = self.base_url
        if base is not None and (scheme, host, port) == (base.scheme, base.host, base.port):
            return True
        own = host in self.hosts and "*" not in host and (base is None or self.stays(host))
        return own and scheme == "https" and port == 443

    @property
    def gateway_url(self) -> BaseUrl | None:
        """The URL for gateway requests. None if every host has a wildcard and there is no base_url."""
        if self.base_url is not None:
            return self.base_url
        host = next((host for host in self.hosts if "*" not in host), None)
        return None if host is None else BaseUrl("https", host, 443)


DEFAULT_PROVIDERS = tuple(
    Provider(name=default.name, type=kind.name, hosts=default.hosts, base_url=default.base_url)
    for kind in TYPES.values()
    for default in kind.defaults
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
