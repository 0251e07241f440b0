"""Request the usage of a streamed chat completion, and remove it from the client's stream again. Sans-io.

A streamed chat completion contains usage only if `stream_options.include_usage` is set. An additional chunk with empty
`choices` then contains it, and every other chunk has `"usage":null` (API reference, "stream_options"). Some servers
send the additional chunk without `choices`.
"""

from __future__ import annotations

import re
import sys

from aibridge_addon.wire.framing import Form, form_of
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, decode, encode
from aibridge_addon.wire.json_values import as_dict
from aibridge_addon.wire.sse import SSEScanner, parse

NO_USAGE = re.compile(rb',\s*"usage"\s*:\s*null')
"""Added to every chunk by `include_usage`. Quotes inside strings are escaped, so this can only be a member."""


def ask_for_usage(body: JSONObject) -> bytes | None:
    """Return the request with `stream_options.include_usage` set, or None if that is not possible."""
    given = body.get("stream_options")
    if given is not None and not isinstance(given, dict):
        return None  # invalid: the provider reports the error
    if not body.verbatim:
        return None  # the other members could not be kept verbatim
    options = as_dict(given) | {"include_usage": True}
    return body.replaced({"stream_options": encode(options)})


REFUSALS = frozenset((400, 404, 422))
"""Statuses with which providers refuse an option that they do not know."""
_unknown_member = re.compile(
    rb"(?i)(?:unknown|unrecognized|unrecognised|unsupported|unexpected|invalid|additional|extra|extraneous)"
    rb"[ _](?:\w{1,20}[ _])?(?:parameter|argument|field|member|propert|input|key|option)"
).search


def refuses_usage(error: bytes) -> bool:
    """Return whether the body of an error names the option that we added."""
    return b"stream_options" in error or b"include_usage" in error


def may_refuse_usage(error: bytes) -> bool:
    """Return whether the body of an error refuses a member of the request that it does not name."""
    return _unknown_member(error) is not None


class UsageRefusals:
    """The models, each with its provider, that refuse the option. Bounded: clients choose the names of models."""

    def __init__(self, limit: int = 1024) -> None:
        self._known: dict[tuple[str, str], None] = {}
        self._limit = limit

    def __contains__(self, model: tuple[str, str]) -> bool:
        return model in self._known

    def add(self, provider_name: str, model: str) -> None:
        self._known[provider_name, model] = None
        if len(self._known) > self._limit:
            del self._known[next(iter(self._known))]


class UsageChunkFilter:
    """Remove the usage that we requested from a stream. All other bytes pass unchanged, and a whole body does.

    An event larger than `max_event` is not held back until it is complete. From there on the filter is off.
    """

    def __init__(self, max_event: int) -> None:
        self._scanner = SSEScanner(sys.maxsize)  # a dropped event would be missing in the client's stream
        self._max_event = max_event
        self._held = 0
        self._beginning: bytes | None = b""
        """The first bytes, until they show whether the answer is a stream."""
        self._gave_up = False

    def feed(self, data: bytes) -> bytes:
        if self._gave_up:
            return data
        if self._beginning is not None:
            data = self._beginning + data
            form = form_of(data)
            self._beginning = data if form is Form.OPEN else None
            if form is Form.OPEN:
                return b""
            if form is not Form.SERVER_SENT:
                self._gave_up = True
                return data
        events = self._scanner.feed(data)
        self._held += len(data) - sum(len(raw) for raw, _ in events)
        passed = b"".join(_without_usage(raw) for raw, _ in events)
        if self._held > self._max_event:
            self._gave_up = True
            passed += self._scanner.finish()
        return passed

    def finish(self) -> bytes:
        if self._gave_up:
            return b""
        return self._beginning or _without_usage(self._scanner.finish())


def _without_usage(raw: bytes) -> bytes:
    if b'"usage"' not in raw:
        return raw
    if NO_USAGE.search(raw):
        return NO_USAGE.sub(b"", raw, count=1)
    return b"" if _is_usage_chunk(raw) else raw


def _is_usage_chunk(raw: bytes) -> bool:
    _, data = parse(raw)
    try:
        chunk = as_dict(decode(data or b""))
    except (NotJSON, Unreadable):
        return False
    return chunk.get("choices") in (None, []) and "error" not in chunk and bool(as_dict(chunk.get("usage")))
