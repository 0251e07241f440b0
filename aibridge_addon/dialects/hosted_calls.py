"""Count the calls of tools that the provider runs, since some have a fee for each use."""

from __future__ import annotations

from collections.abc import Iterable

from aibridge_addon.dialects.base import MAX_HOSTED_TOOLS, MAX_WISH, ToolCall
from aibridge_addon.wire.json_values import as_dict, as_text

FREE_ACTIONS = frozenset(("open_page", "find_in_page", "find"))
"""Actions of OpenAI's web search that are not billed (API documentation, "Web search")."""


def count_hosted(calls: Iterable[ToolCall], offered: tuple[str, ...]) -> dict[str, int]:
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
    return call.name == "web_search_call" and as_text(as_dict(call.input).get("type")) in FREE_ACTIONS


def _offered_as(name: str, offered: tuple[str, ...]) -> str:
    """Return the tool that a call belongs to. `web_search_call` may also be that of `web_search_preview`."""
    name = name.removesuffix("_call")[:MAX_WISH]
    if name in offered:
        return name
    return next((type_ for type_ in offered if type_.startswith(f"{name}_preview")), name)
