"""Request the usage of a streamed chat completion, and remove it from the client's stream again. Sans-io.

A streamed chat completion contains usage only if `stream_options.include_usage` is set. An additional chunk with empty
`choices` then contains it, and every other chunk has `"usage":null` (API reference, "stream_options").
"""

from __future__ import annotations

import re
import sys

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


def refuses_usage(error: bytes) -> bool:
    """Return whether the body of a 400 answer refuses the option that we added."""
    return b"stream_options" in error or b"include_usage" in error


class UsageChunkFilter:
    """Remove the usage that we requested from a stream. All other bytes pass unchanged.

    An event larger than `max_event` is not held back until it is complete. From there on the filter is off.
    """

    def __init__(self, max_event: int) -> None:
        self._scanner = SSEScanner(sys.maxsize)  # a dropped event would be missing in the client's stream
        self._max_event = max_event
        self._held = 0
        self._gave_up = False

    def feed(self, data: bytes) -> bytes:
        if self._gave_up:
            return data
        events = self._scanner.feed(data)
        self._held += len(data) - sum(len(raw) for raw, _ in events)
        passed = b"".join(_without_usage(raw) for raw, _ in events)
        if self._held > self._max_event:
            self._gave_up = True
            passed += self._scanner.finish()
        return passed

    def finish(self) -> bytes:
        return b"" if self._gave_up else _without_usage(self._scanner.finish())


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
    return chunk.get("choices") == [] and bool(as_dict(chunk.get("usage")))
