"""What a provider says of usage beside the four counts: circumstances, modalities, hosted tools, cache lifetimes.

Names are the provider's own, nested or joined with dots. A count of something that is not known here is reported, since
it may cost something.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from aibridge_addon.records import LEFT_OUT

MAX_DEPTH = 6
MAX_NAMES = 512
"""Per row. A provider's usage has about a dozen."""

CONTAINER = re.compile(r"container(?:\.id)?")
"""Anthropic's sign of code that ran in a container, also where no use of a tool is counted."""
Kind = Literal["ignored", "container", "circumstance", "modality", "tool", "lifetime", "beside", "unknown"]
REQUESTS = "requests"
"""How many requests of a batch a row is the sum of."""
BESIDE_TOKENS = frozenset((REQUESTS, "images", "input_characters"))
"""Counts that the bridge adds. They decide the price only of an answer that has no tokens."""


class Meaning(NamedTuple):
    kind: Kind
    what: str = ""


@dataclass(slots=True)
class Said:
    """What was said, by meaning."""

    circumstances: dict[str, str] = field(default_factory=dict)
    modalities: dict[str, int] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)
    """Modalities that the answer counts, those with a count of 0 included."""
    tools: dict[str, int] = field(default_factory=dict)
    lifetimes: dict[str, int] = field(default_factory=dict)
    """Tokens written to a cache, by the lifetime's name: `5m`, `1h` …"""
    beside: str | None = None
    """A count that decides the price if the answer has no tokens."""
    unknown: str | None = None
    """The first name of a count that is not understood, or whose value is not a count."""


CIRCUMSTANCES: Mapping[str, str] = MappingProxyType(
    {
        "service_tier": "service_tier",
        "serviceTier": "service_tier",
        "serviceTier.type": "service_tier",
        "speed": "speed",
        "inference_geo": "inference_geo",
        "performanceConfig.latency": "latency",
    }
)
"""Names in the answer, and what they decide."""

KNOWN_TOKENS = frozenset(
    """total_tokens prompt_tokens completion_tokens input_tokens output_tokens reasoning_tokens thinking_tokens
    text_tokens cached_tokens cache_write_tokens cache_read_tokens cache_creation_tokens accepted_prediction_tokens
    rejected_prediction_tokens prompt_cache_hit_tokens prompt_cache_miss_tokens num_cached_tokens
    cache_read_input_tokens cache_creation_input_tokens estimated_tokens totalTokens inputTokens outputTokens
    cacheReadInputTokens cacheWriteInputTokens cacheReadInputTokenCount cacheWriteInputTokenCount""".split()  # noqa: SIM905
)
"""The four counts under their other names, sums of them, and parts of them that cost what they cost."""

LENGTH = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
"""What the length of a request is, in Anthropic's names."""

_COUNT = re.compile(
    r"tokens|token[_-]count|requests|calls|seconds|images|characters|searches|queries|pages|sources_used"
    r"|(?<=[a-z])(?:Tokens|TokenCount|Requests|Calls|Seconds)"
)
_LIFETIME = re.compile(r"cache_creation\.ephemeral_(\w+)_input_tokens|cacheDetails\.(\w+)")
_MODALITY = re.compile(
    r"(?:(prompt|input)|completion|output)_tokens?_details\.(cached_tokens_details\.)?(audio|image|video)_tokens"
)
_TOOL = re.compile(
    r"server_tool_use\.(?P<anthropic>\w+?)_(?:requests|calls)"
    r"|tool_usage\.(?P<openai>\w+)\.(?:num_)?(?:requests|calls)"
    r"|server_side_tool_usage_details\.(?P<xai>\w+)_calls"
)
_TOOL_PART = re.compile(r"tool_usage\.(\w+)\..+")


def read(usage: Mapping[str, Any]) -> Said:
    """Sort what was said by what it means for the price."""
    said = Said()
    for name, value in usage.items():
        if isinstance(value, (int, str, float)) or value is None:
            _sort(said, name, value)
        else:
            for below, leaf in _leaves(name, value):
                _sort(said, below, leaf)
    return said


def _sort(said: Said, name: str, value: object) -> None:
    kind, what = meaning(name)
    if value is None:
        return
    if kind == "ignored":
        # A text is a count that could not be read.
        if isinstance(value, str) and name.rpartition(".")[2] in KNOWN_TOKENS:
            said.unknown = said.unknown or name
        return
    if kind == "container":
        said.tools.setdefault("code_execution", 1)
        return
    if kind == "circumstance":
        said.circumstances[what] = value if isinstance(value, str) else repr(value)[:32]
        return
    count = value if type(value) is int and value >= 0 else _count(value)
    if count is None:
        said.unknown = said.unknown or name
    elif kind == "tool":
        said.tools[what] = max(said.tools.get(what, 0), count)
    elif kind == "modality":
        said.counted.add(what)
        if count:
            said.modalities[what] = said.modalities.get(what, 0) + count
    elif count == 0:
        return
    elif kind == "beside":
        said.beside = name
    elif kind == "lifetime":
        said.lifetimes[what] = said.lifetimes.get(what, 0) + count
    else:
        said.unknown = said.unknown or name


@lru_cache(maxsize=4096)
def meaning(name: str) -> Meaning:
    """Return what a name, its parts joined with dots, means for the price."""
    if name in CIRCUMSTANCES:
        return Meaning("circumstance", CIRCUMSTANCES[name])
    if CONTAINER.fullmatch(name):
        return Meaning("container")
    if found := _LIFETIME.fullmatch(name):
        return Meaning("lifetime", found[1] or found[2])
    if found := _MODALITY.fullmatch(name):
        side = "input" if found[1] else "output"
        return Meaning("modality", f"cache_{found[3]}_read" if found[2] else f"{side}_{found[3]}")
    if found := _TOOL.fullmatch(name):
        return Meaning("tool", next(tool for tool in found.groups() if tool))
    if found := _TOOL_PART.fullmatch(name):
        return Meaning("tool", found[1])
    if name in BESIDE_TOKENS:
        return Meaning("beside")
    leaf = name.rpartition(".")[2]
    if leaf in KNOWN_TOKENS or name == "num_server_side_tools_used":
        return Meaning("ignored")
    return Meaning("unknown") if _COUNT.search(leaf) else Meaning("ignored")


def _leaves(name: str, value: object) -> Iterator[tuple[str, Any]]:
    """Yield every value below a name with its own name, the parts joined with dots."""
    waiting: list[tuple[str, Any, int]] = [(name, value, 0)]
    seen = 0
    while waiting:
        name, value, depth = waiting.pop()
        seen += 1
        if seen > MAX_NAMES:
            yield LEFT_OUT, 1
            return
        if isinstance(value, Mapping):
            if depth < MAX_DEPTH:
                waiting += [(f"{name}.{part}", below, depth + 1) for part, below in value.items()]
        elif isinstance(value, (list, tuple)):
            for item in value[:MAX_NAMES] if name == "cacheDetails" else ():
                # Converse: [{"ttl": "1h", "inputTokens": 100}]
                if isinstance(item, Mapping) and isinstance(item.get("ttl"), str):
                    yield f"{name}.{item['ttl']}", item.get("inputTokens")
        else:
            yield name, value


def message_lengths(usage: Mapping[str, Any]) -> list[int]:
    """Return the input of each inference that Anthropic's top level is the sum of: its iterations of type `message`."""
    iterations = usage.get("iterations")
    return [
        sum(_count(part.get(name, 0)) or 0 for name in LENGTH)
        for part in (iterations[:MAX_NAMES] if isinstance(iterations, list) else ())
        if isinstance(part, Mapping) and part.get("type") == "message"
    ]


def _count(value: object) -> int | None:
    """Return a count; None where it is not one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    if isinstance(value, float) and math.isfinite(value) and value >= 0:
        return math.ceil(value)
    return None


_TOOL_VERSION = re.compile(r"(?:_call|_requests|_tool_result)?(?:_20\d{6}|_20\d\d_\d\d_\d\d)?$")


@lru_cache(maxsize=1024)
def tool_name(type_: str) -> str:
    """Return a hosted tool's name without the version of its type: `web_search` for `web_search_20250305`."""
    return _TOOL_VERSION.sub("", type_, count=1)
