"""W3C Trace Context: the `traceparent` header, and ids of spans that follow from what they describe.

    00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
    version-trace id-parent's span id-flags

Source: https://www.w3.org/TR/trace-context/, sections 3.2 and 3.3. A span's id is derived, not drawn, because a tool
server gets the id of a span that is made later, from records.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
MAX_TRACEPARENT = 256
"""Characters. Later versions may have further fields."""
MAX_TRACESTATE = 512
"""Characters. A longer `tracestate` is left out, which the specification allows (section 3.3.1.5)."""
SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str = ""
    """The `tracestate` header; empty: none."""

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{SAMPLED if self.sampled else 0:02x}"

    def at(self, span_id: int) -> TraceContext:
        """Return the context of another span of the same trace."""
        return replace(self, span_id=span_id)


def parse(traceparent: str | None, tracestate: str | None) -> TraceContext | None:
    """Read the headers of a request. None: there is no valid `traceparent`."""
    if traceparent is None or len(traceparent) > MAX_TRACEPARENT:
        return None
    found = _TRACEPARENT.fullmatch(traceparent.strip())
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    trace_id, span_id = int(found[2], 16), int(found[3], 16)
    if not trace_id or not span_id:
        return None
    state = tracestate.strip() if tracestate and len(tracestate) <= MAX_TRACESTATE else ""
    return TraceContext(trace_id, span_id, bool(int(found[4], 16) & SAMPLED), state)


def trace_id_for(interception_id: str) -> int:
    """Return the id of the trace that an interception starts. All of its bits are evenly spread, as samplers need."""
    return _derived(16, "trace", interception_id)


def span_id_for(interception_id: str, *place: str | int) -> int:
    """Return the id of a span within an interception."""
    return _derived(8, interception_id, *place)


def _derived(size: int, *parts: str | int) -> int:
    text = "\0".join(map(str, parts)).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2s(text, digest_size=size).digest()) or 1
