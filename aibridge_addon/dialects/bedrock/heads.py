"""The headers of the turns of one blocking answer, merged. Sans-io.

A client sees the first turn's id, its input tokens, and the output tokens and the latency of all turns.
"""

from __future__ import annotations

from collections.abc import Mapping

from aibridge_addon.dialects.bedrock.common import REQUEST_ID, TOKEN_COUNTS
from aibridge_addon.wire.json_values import as_count

WORK = (TOKEN_COUNTS["output_tokens"], "x-amzn-bedrock-invocation-latency")
"""Headers whose numbers are added up."""
FIRST = (REQUEST_ID, *(name for name in TOKEN_COUNTS.values() if name not in WORK))
"""Headers that are the first turn's."""


class Heads:
    def __init__(self) -> None:
        self.id = ""
        """The request id of the last answer."""
        self._merged: dict[str, str] = {}
        self._has_turns = False

    def add(self, headers: Mapping[str, str]) -> None:
        """Add the headers of the next turn's answer."""
        self.id = headers.get(REQUEST_ID, "")
        if not self._has_turns:
            self._has_turns = True
            self._merged = {name: value for name in FIRST if (value := headers.get(name))}
        for name in WORK:
            if value := headers.get(name):
                self._merged[name] = str(as_count(self._merged.get(name)) + as_count(value))

    def merged(self) -> Mapping[str, str]:
        """Return the headers of the merged answer that Bedrock has sent for a turn."""
        return self._merged
