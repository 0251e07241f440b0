"""Ask a chat stream for its usage, and give the client the stream that it asked for. Sans-io.

Chat completions report usage in a stream only to those who ask (`stream_options.include_usage`). It then comes in one
more chunk, whose `choices` are empty, and as `"usage":null` in every other chunk (API reference, "stream_options").
"""

from __future__ import annotations

import re
import sys

from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, decode, encode
from aibridge_addon.wire.json_values import as_dict
from aibridge_addon.wire.sse import SSEScanner, parse

NO_USAGE = re.compile(rb',\s*"usage"\s*:\s*null')
"""What asking adds to every chunk. A quote inside a string is escaped, so this can only be a member."""


def ask_for_usage(body: JSONObject) -> bytes | None:
    """The request with `stream_options.include_usage` set and all else as it was; None if that cannot be done."""
    given = body.get("stream_options")
    if given is not None and not isinstance(given, dict):
        return None  # wrong, which is for the provider to say
    if not body.verbatim:
        return None  # the other members could not stay as they are
    options = as_dict(given) | {"include_usage": True}
    return body.replaced({"stream_options": encode(options)})


def refuses_usage(error: bytes) -> bool:
    """Whether the body of a 400 answer says that the server does not know what we added."""
    return b"stream_options" in error or b"include_usage" in error


class UsageChunkFilter:
    """Takes out of a stream what only came because we asked; every other byte passes as it is.

    An event larger than `max_event` is not held until it is whole: from there on, everything passes.
    """

    def __init__(self, max_event: int) -> None:
        self._scanner = SSEScanner(sys.maxsize)  # what it drops for its size, a client would miss
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
