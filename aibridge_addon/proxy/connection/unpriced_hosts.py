"""Say at the start which providers will have rows without a price."""

from __future__ import annotations

from collections.abc import Iterator

from aibridge_addon.config.schema import Settings
from aibridge_addon.providers import vendor_of


def unpriced_hosts(settings: Settings) -> Iterator[str]:
    """Yield a line for each provider whose answers have no price, because nothing says who bills."""
    for provider in settings.providers:
        hosts = provider.hosts if provider.base_url is None else (provider.base_url.host,)
        unknown = [host for host in hosts if "*" not in host and vendor_of(provider.type, host) is None]
        if unknown and provider.price_as is None and provider.bedrock is None:
            yield (
                f"provider {provider.name}: no prices are known for {', '.join(unknown)}: set price_as to the vendor"
                " whose prices apply, or to none"
            )
