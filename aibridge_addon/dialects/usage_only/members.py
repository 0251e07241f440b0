"""Find the few members of an answer that are recorded, even if only the edges of its body were kept. Sans-io."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any

from aibridge_addon.dialects.errors import AnswerError, error_in, error_instead, error_of_body
from aibridge_addon.wire.body_edges import BodyEdges
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, decode
from aibridge_addon.wire.json_values import maybe_count

NAMES = ("id", "model", "usage", "duration", "size", "quality", "output_format", "service_tier")
ERROR_NAMES = ("error", "errors", "detail", "message", "msg", "code", "type", "object", "status")
OUTPUT = ("data", "results", "text", "choices", "segments")
"""Members with what the model made. An answer with one of them is no error."""
EMPTY = (b"[]", b"null", b'""')
BLANK = b"\xef\xbb\xbf \t\r\n"
PAGES = (b"<!doctype html", b"<html")
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


def error_in_edges(edges: BodyEdges, *, default_type: str) -> AnswerError | None:
    """Return the error in a body that should be an answer: an object, a list of them, or a page. None: it has none."""
    whole = edges.whole
    if whole is None:
        return None
    beginning = whole[:64].lstrip(BLANK).lower()
    if beginning.startswith(PAGES):
        return error_of_body(whole, default_type=default_type)
    if beginning.startswith(b"["):
        return _error_in_list(whole, default_type)
    try:
        body = JSONObject(whole)
    except (NotJSON, Unreadable):
        return None
    if any(name in body and bytes(body.raw(name)) not in EMPTY for name in OUTPUT):
        return None
    return error_instead({name: body.get(name) for name in ERROR_NAMES}, default_type=default_type)


def _error_in_list(body: bytes, default_type: str) -> AnswerError | None:
    try:
        value = decode(body)
    except (NotJSON, Unreadable):
        return None
    return error_in(value, default_type=default_type) if isinstance(value, list) else None


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
