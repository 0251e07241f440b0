"""The table of provider types, by the name that the configuration uses.

To add a type, add one file beside this one and one row here.
"""

from collections.abc import Mapping
from types import MappingProxyType

from aibridge_addon.providers.anthropic import ANTHROPIC
from aibridge_addon.providers.azure import AZURE
from aibridge_addon.providers.base import ProviderType
from aibridge_addon.providers.bedrock import BEDROCK
from aibridge_addon.providers.copilot import COPILOT
from aibridge_addon.providers.openai import OPENAI
from aibridge_addon.providers.vendors import seller_at

TYPES: Mapping[str, ProviderType] = MappingProxyType(
    {kind.name: kind for kind in (ANTHROPIC, OPENAI, COPILOT, AZURE, BEDROCK)}
)


def vendor_of(type_: str, host: str | None) -> str | None:
    """Return who bills for answers of this host to a provider of this type. None: not known."""
    seller = seller_at(host) if host else None
    if seller is not None:
        return seller.vendor
    return TYPES[type_].vendor if type_ in TYPES else None
