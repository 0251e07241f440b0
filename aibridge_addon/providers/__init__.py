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

TYPES: Mapping[str, ProviderType] = MappingProxyType(
    {kind.name: kind for kind in (ANTHROPIC, OPENAI, COPILOT, AZURE, BEDROCK)}
)
