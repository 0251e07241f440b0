"""Where the context of a request went, as one stacked bar in text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

BAR_WIDTH = 60
"""Characters of a bar, where the line has that many."""
PARTS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "system": ("█", "system prompt", "blue"),
        "client_tools": ("▓", "tools of the client", "cyan"),
        "our_tools": ("▒", "injected tools", "green"),
        "user_text": ("■", "prompt", "magenta"),
        "tool_results": ("▤", "tool results", "yellow"),
        "images": ("▦", "images and files", "red"),
        "history": ("░", "history before the prompt", "white"),
        "other": ("·", "other", "dim"),
    }
)
"""By category: the character of its part, its name, and its colour. Without colours, the characters differ."""


def bar(context: Sequence[tuple[str, int]], width: int) -> list[tuple[str, str]]:
    """Return the parts of a bar as texts with their styles. A category that has any bytes has a character."""
    width = max(min(width, BAR_WIDTH), len(context))
    total = sum(count for _, count in context)
    sizes = [max(1, round(count / total * width)) for _, count in context]
    while sum(sizes) > width:
        sizes[sizes.index(max(sizes))] -= 1
    sizes[sizes.index(max(sizes))] += width - sum(sizes)
    return [(PARTS[category][0] * size, PARTS[category][2]) for (category, _), size in zip(context, sizes, strict=True)]


def legend(context: Sequence[tuple[str, int]]) -> list[str]:
    """Return what each character of a bar means, and its share of all bytes."""
    total = sum(count for _, count in context)
    return [f"{PARTS[category][0]} {PARTS[category][1]} {_share(count / total)}" for category, count in context]


def _share(part: float) -> str:
    return f"{part:.0%}" if part >= 0.005 else "<1%"
