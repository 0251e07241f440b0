"""Headers of HTTP/1 messages, whose look-ups are cheaper than mitmproxy's.

mitmproxy's class calls a function for the name of each header, at each look-up. mitmproxy and the bridge look up about
45 headers for a request.
"""

from __future__ import annotations

from typing import Any

from mitmproxy import http
from mitmproxy.utils.strutils import always_bytes


class Headers(http.Headers):
    """Does what mitmproxy's class does. It has its name, which `repr` shows."""

    def get_all(self, name: str | bytes) -> list[str]:
        key = _key(name)
        size = len(key)
        return [
            value.decode("utf-8", "surrogateescape")
            for other, value in self.fields
            if len(other) == size and other.lower() == key
        ]

    def get(self, key: str | bytes, default: Any = None) -> Any:
        values = self.get_all(key)
        return self._reduce_values(values) if values else default

    def __contains__(self, key: object) -> bool:
        return bool(self.get_all(key))  # type: ignore[arg-type]


def _key(name: Any) -> bytes:
    encoded = name.encode("utf-8", "surrogateescape") if type(name) is str else always_bytes(name)
    return encoded.lower()
