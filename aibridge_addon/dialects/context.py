"""Where the context of a request goes: its bytes by category. Sans-io.

    {"system": …, "messages": [ history …, │ prompt, calls, results ], "tools": [ client's, ours ], "model": …}
                                           └ the last prompt: what stands before it is `history`

The categories add up to the length of the body. `other` is the rest: parameters, the model's answers since the last
prompt, and JSON's own characters. Values are measured as they stand in the body, escapes and base64 included.

Only what follows the last prompt is looked into, at most `MAX_ENTRIES` entries, and only as deep as their types. The
history is measured as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from aibridge_addon.dialects.client_results import MAX_ENTRIES
from aibridge_addon.wire.json_object import JSONObject

SYSTEM: Final = "system"
CLIENT_TOOLS: Final = "client_tools"
OUR_TOOLS: Final = "our_tools"
USER_TEXT: Final = "user_text"
TOOL_RESULTS: Final = "tool_results"
IMAGES: Final = "images"
HISTORY: Final = "history"
OTHER: Final = "other"
CATEGORIES = (SYSTEM, CLIENT_TOOLS, OUR_TOOLS, USER_TEXT, TOOL_RESULTS, IMAGES, HISTORY, OTHER)

SYSTEM_ROLES = frozenset(("system", "developer"))
MAX_SYSTEM = 16
"""Maximum number of system messages at the beginning of a conversation."""
MAX_BLOCKS = 1_000
"""Blocks of one entry that are looked into."""
TEXTS = frozenset(("text", "input_text"))
MEDIA = frozenset(("image", "document", "video", "audio", "file"))
"""Beginnings and names of the types of images and files, such as `image_url`, `input_image` and `input_audio`."""

_entry = msgspec.json.Decoder(dict[str, msgspec.Raw])
_blocks = msgspec.json.Decoder(list[msgspec.Raw])
_text = msgspec.json.Decoder(str)
_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

Members = Mapping[str, msgspec.Raw]


@dataclass(frozen=True, slots=True)
class Shape:
    """The members of a dialect's requests."""

    entries: str
    """The conversation: a list, or a text that is the prompt."""
    system: tuple[str, ...] = ()
    tools: tuple[str, ...] = ("tools",)


def context_bytes(body: JSONObject, shape: Shape, ours: int = 0) -> dict[str, int]:
    """Return the bytes of each category that has any. They add up to the length of the body.

    `ours`: bytes of the definitions of injected tools.
    """
    if not body.verbatim:
        return {OTHER: body.size}
    counts: Counter[str] = Counter()
    for name in shape.system:
        counts[SYSTEM] += body.length(name)
    tools = sum(body.length(name) for name in shape.tools)
    if shape.entries in body:
        tools += _count_entries(body, shape.entries, counts)
    counts[OUR_TOOLS] = min(ours, tools)
    counts[CLIENT_TOOLS] = tools - counts[OUR_TOOLS]
    counts[OTHER] = body.size - counts.total()
    return {category: counts[category] for category in CATEGORIES if counts[category]}


def _count_entries(body: JSONObject, name: str, counts: Counter[str]) -> int:
    """Count the entries of a conversation. Returns the bytes of definitions of tools among them."""
    if body.text(name) is not None:
        counts[USER_TEXT] += body.length(name)
        return 0
    entries = body.raw_elements(name)
    first = 0  # of the entries that are not a leading system message
    tools = 0
    for entry in entries[:MAX_SYSTEM]:
        members = _members(entry)
        if _word(members, "type") == "additional_tools":
            tools += _size(entry)
        elif _word(members, "role") in SYSTEM_ROLES:
            counts[SYSTEM] += _size(entry)
        else:
            break
        first += 1
    last = len(entries)
    while last > first and len(entries) - last < MAX_ENTRIES:
        last -= 1
        if _count_entry(_members(entries[last]), _size(entries[last]), counts):
            break
    counts[HISTORY] += sum(map(_size, entries[first:last]))
    return tools


def _count_entry(members: Members, size: int, counts: Counter[str]) -> bool:
    """Count an entry by its blocks. Returns whether it is a person's prompt."""
    role, kind = _word(members, "role"), _word(members, "type")
    if role in SYSTEM_ROLES:
        counts[SYSTEM] += size
    elif role in ("tool", "function") or kind.endswith(("_call_output", "tool_search_output")):
        _count_result(members.get("content") or members.get("output"), size, counts)
    elif role == "user":
        found: Counter[str] = Counter()
        content = members.get("content")
        if content is not None and bytes(memoryview(content)[:1]) == b'"':
            found[USER_TEXT] += _size(content)
        for block in _elements(content):
            _count_block(block, found)
        counts += found
        # A message with results goes on with the work on an earlier prompt.
        return found[USER_TEXT] > 0 and not found[TOOL_RESULTS]
    return False


def _count_block(block: msgspec.Raw, counts: Counter[str]) -> None:
    members, size = _members(block), _size(block)
    kind = _word(members, "type")
    if kind == "tool_result":
        _count_result(members.get("content"), size, counts)
    elif "toolResult" in members:
        _count_result(_members(members["toolResult"]).get("content"), size, counts)
    elif _is_media(kind, members):
        counts[IMAGES] += size
    elif kind in TEXTS or (not kind and "text" in members):
        counts[USER_TEXT] += size


def _count_result(content: msgspec.Raw | None, size: int, counts: Counter[str]) -> None:
    """Count a result, whose images count apart."""
    images = 0
    for part in _elements(content):
        members = _members(part)
        if _is_media(_word(members, "type"), members):
            images += _size(part)
    counts[IMAGES] += images
    counts[TOOL_RESULTS] += size - images


def _is_media(kind: str, members: Iterable[str]) -> bool:
    words = kind.split("_")
    return not MEDIA.isdisjoint(words) if kind else not MEDIA.isdisjoint(members)


def _elements(value: msgspec.Raw | None) -> list[msgspec.Raw]:
    if value is None or bytes(memoryview(value)[:1]) != b"[":
        return []
    try:
        return _blocks.decode(value)[:MAX_BLOCKS]
    except _ERRORS:
        return []


def _members(value: msgspec.Raw) -> Members:
    try:
        return _entry.decode(value)
    except _ERRORS:
        return {}


def _word(members: Members, name: str) -> str:
    """Return a member that is a short text."""
    value = members.get(name)
    try:
        return _text.decode(value) if value is not None and _size(value) <= 64 else ""
    except _ERRORS:
        return ""


def _size(value: msgspec.Raw) -> int:
    return len(memoryview(value))
