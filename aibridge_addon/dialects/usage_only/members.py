"""Find the few members of an answer that are recorded, even if only the edges of its body were kept. Sans-io."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any

from aibridge_addon.wire.body_edges import BodyEdges
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable
from aibridge_addon.wire.json_values import maybe_count

NAMES = ("id", "model", "usage", "error", "duration", "size", "quality", "output_format", "service_tier")
MAX_TEXT = 256
"""Characters. Longer texts are not kept."""
MAX_MEMBERS = 64
MAX_MATCHES = 64
"""Maximum number of members that are decoded in one part of a body. The last ones count."""

# A quote inside a JSON string follows a backslash. So each match is the name of a member, at some depth.
_member = re.compile(r'(?<!\\)"(id|model|usage|size|quality|output_format|duration|service_tier)"\s*:\s*')
_decoder = json.JSONDecoder()


def members_of(edges: BodyEdges) -> dict[str, Any]:
    """Return the recorded members of a JSON object. Empty if there are none, or if they cannot be read."""
    whole = edges.whole
    if whole is not None:
        try:
            body = JSONObject(whole)
        except (NotJSON, Unreadable):
            pass
        else:
            return {name: value for name in NAMES if (value := body.get(name)) is not None}
    return members_in(*edges.windows)


def members_in(*windows: bytes) -> dict[str, Any]:
    """Return the members that are found in parts of a body. The last one of a name in the first part counts."""
    found: dict[str, Any] = {}
    for window in reversed(windows):
        text = window.decode("utf-8", "replace")
        for match in deque(_member.finditer(text), MAX_MATCHES):
            value = _value_at(text, match.end(), is_object=match[1] == "usage")
            if value is not None:
                found[match[1]] = value
    return found


def _value_at(text: str, position: int, *, is_object: bool) -> Any:
    if (text[position : position + 1] == "{") is not is_object:
        return None
    try:
        value, _ = _decoder.raw_decode(text, position)
    except (ValueError, RecursionError):
        return None
    return value if is_object or isinstance(value, str | int | float) else None


def plain(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members that are numbers or short texts."""
    return dict(islice(((name, value) for name, value in members.items() if _is_plain(value)), MAX_MEMBERS))


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    return maybe_count(value) is not None or (isinstance(value, float) and abs(value) < 1e15)
