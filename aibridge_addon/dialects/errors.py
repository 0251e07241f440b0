"""Read the error in a provider's answer, in any of the shapes that providers and the gateways before them use."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from aibridge_addon.wire import sse
from aibridge_addon.wire.json_object import NotJSON, Unreadable, decode_tolerantly
from aibridge_addon.wire.json_values import as_dict, as_list, as_text

MAX_WORDS = 2000
"""Characters. The rest of an error's words is dropped."""
MAX_PAGE = 8192
"""Characters. Only the beginning of an error page is searched for words."""
MAX_DEPTH = 4
MAX_ERRORS = 16
"""Maximum number of errors whose words are joined."""
NO_DETAILS: Mapping[str, Any] = MappingProxyType({})
UNSHOWN = ("script", "style")
"""Elements of a page whose content is not shown."""
_end_of = MappingProxyType({name: re.compile(f"</{name}", re.IGNORECASE).search for name in UNSHOWN})


@dataclass(slots=True)
class AnswerError:
    type: str
    message: str
    details: Mapping[str, Any] = NO_DETAILS
    """The provider's own error object."""


def answer_error(error: object, *, default_type: str) -> AnswerError:
    """Read an error object or text. Its words may be nested."""
    return error_in({"error": error}, default_type=default_type) or AnswerError(default_type, "", as_dict(error))


def error_in(value: object, *, default_type: str, depth: int = MAX_DEPTH) -> AnswerError | None:
    """Return the error in a decoded body, or None if it has none of the shapes of an error.

    Shapes: `{"error": {…} or "…"}`, a list of them (Google), `{"errors": […]}`, `{"detail": "…" or […]}` (FastAPI) and
    `{"message": "…"}`.
    """
    if isinstance(value, list):
        found = (error_in(entry, default_type=default_type, depth=depth - 1) for entry in value[:MAX_ERRORS])
        return next((error for error in found if error is not None), None) if depth else None
    members = as_dict(value)
    for name in ("error", "errors", "detail"):
        inner = members.get(name)
        if isinstance(inner, dict) and depth:
            kind, words = _kind(inner), _words(inner)
            nested = None if words else error_in(inner, default_type=kind or default_type, depth=depth - 1)
            return nested or AnswerError(kind or default_type, words[:MAX_WORDS], inner)
        if isinstance(inner, str | list) and inner and (words := _joined(inner)):
            described = _words(members) if name == "error" else ""
            return AnswerError(_kind(members) or default_type, (described or words)[:MAX_WORDS])
        if isinstance(inner, list) and inner and depth:
            return error_in(inner, default_type=default_type, depth=depth - 1)
    if words := _words(members):
        return AnswerError(_kind(members) or default_type, words[:MAX_WORDS])
    return None


def error_of_event(event: Mapping[str, Any], *, default_type: str) -> AnswerError | None:
    """Return the error in an event or a chunk that says that it is one, or None."""
    says_so = is_error(event) or event.get("detail") or event.get("errors")
    return (error_in(event, default_type=default_type) or AnswerError(default_type, "")) if says_so else None


def error_instead(body: Mapping[str, Any], *output: str, default_type: str) -> AnswerError | None:
    """Return the error in a successful body, or None. `output` names the members of an answer's output.

    A body without output is an error if it has one of the shapes of an error.
    """
    if is_error(body):
        return error_in(body, default_type=default_type) or AnswerError(default_type, "")
    return None if any(map(body.get, output)) else error_in(body, default_type=default_type)


def is_error(members: Mapping[str, Any]) -> bool:
    """Return whether a body or an event says that it is an error, whatever else it has."""
    return bool(members.get("error")) or "error" in (members.get("type"), members.get("object"))


def error_of_body(body: bytes, *, default_type: str) -> AnswerError:
    """Read the body of an answer with an error status: JSON, server-sent events, HTML or plain text, in UTF-8."""
    try:
        value = decode_tolerantly(body)
    except (NotJSON, Unreadable):
        text = body[: 4 * MAX_PAGE].decode("utf-8", "replace").strip()
        return _error_event(body, default_type) or AnswerError(default_type, _words_of_page(text))
    return error_in(value, default_type=default_type) or AnswerError(_kind(as_dict(value)) or default_type, "")


def _error_event(body: bytes, default_type: str) -> AnswerError | None:
    if not body.lstrip().startswith((b"data:", b"event:", b":")):
        return None
    scanner = sse.SSEScanner(len(body) + 1)
    for raw in (*(raw for raw, _ in scanner.feed(body)), scanner.finish()):
        _, data = sse.parse(raw)
        try:
            error = error_in(decode_tolerantly(data or b"null"), default_type=default_type)
        except (NotJSON, Unreadable):
            continue
        if error is not None:
            return error
    return None


def _kind(members: Mapping[str, Any]) -> str:
    """Return the type of an error, or an empty text. `error` names the event or the body, not the error."""
    kinds = (members.get(name) for name in ("type", "code", "status"))
    kind = next((kind for kind in kinds if isinstance(kind, str) and kind not in ("", "error")), "")
    return kind or as_text(members.get("__type")).rpartition("#")[2]


def _words(members: Mapping[str, Any]) -> str:
    words = (members.get(name) for name in ("message", "Message", "error_description", "msg", "detail", "title"))
    return next((text for text in words if isinstance(text, str) and text), "")


def _joined(errors: str | list[Any]) -> str:
    """Return the words of an error, or of a list of errors with the places in the request that FastAPI names."""
    return errors if isinstance(errors, str) else "; ".join(filter(None, map(_entry, errors[:MAX_ERRORS])))


def _entry(error: object) -> str:
    members = as_dict(error)
    place = ".".join(str(part) for part in as_list(members.get("loc")) if isinstance(part, str | int))
    words = as_text(error) or _words(members)
    return f"{place}: {words}" if place and words else words


def _words_of_page(text: str) -> str:
    """Return the title of an HTML page, or else its text without tags. Plain text is returned as it is."""
    if not text.startswith("<"):
        return text[:MAX_WORDS]
    lower = text.lower()
    begin = lower.find(">", lower.find("<title")) + 1 if "<title" in lower else 0
    end = lower.find("</title", begin)
    words = text[begin:end] if begin and end > begin else ""
    return _plain(words.split() or _without_tags(text[:MAX_PAGE]).split())


def _without_tags(page: str) -> str:
    """Return the text that a page shows."""
    shown, at, closed = [], 0, dict.fromkeys(UNSHOWN, True)
    while (begin := page.find("<", at)) >= 0:
        shown.append(page[at:begin])
        name = next((name for name in UNSHOWN if page[begin + 1 : begin + 1 + len(name)].lower() == name), None)
        if name is not None and closed[name]:
            end_tag = _end_of[name](page, begin)
            closed[name] = end_tag is not None  # if it is not closed, neither is a later one
            begin = end_tag.start() if end_tag is not None else begin
        at = page.find(">", begin) + 1
        if not at:
            return " ".join((*shown, page[begin:]))
    return " ".join((*shown, page[at:]))


def _plain(words: Iterable[str]) -> str:
    return html.unescape(" ".join(words))[:MAX_WORDS]
