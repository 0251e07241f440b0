"""Equivalent forms of a path. Servers and the proxies in front of them answer them like the path itself.

`normalised` applies what RFC 3986 (section 6.2.2) calls equivalent for every server, and two forms that most servers
treat alike: repeated slashes and a slash at the end. `read_most_freely` applies everything that any server is known to
do. A path that is a bridged route only when it is read freely gets no central key, because it would not be recorded.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

UNRESERVED = re.compile("%(?:2[DdEe]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe])")
"""Encoded characters that need no encoding (RFC 3986, section 2.3): letters, digits, `-`, `.`, `_`, `~`."""
MAX_DECODED = 4
"""How often a path is decoded. Each proxy in a chain may do it once."""


def normalised(path: str) -> str:
    """Return the path in its usual form: without needless encodings, dot segments and slashes."""
    if not ("//" in path or "%" in path or "/." in path or path.endswith("/")):
        return path
    return _simple(UNRESERVED.sub(lambda found: unquote(found[0]), path))


def read_most_freely(path: str) -> str:
    """Return the path as the most tolerant server may read it."""
    for _ in range(MAX_DECODED):
        decoded = unquote(path, errors="replace")
        if decoded == path:
            break
        path = decoded
    path = re.split("[?#\\0]", path, maxsplit=1)[0].replace("\\", "/")
    segments = (segment.partition(";")[0].strip() for segment in path.split("/"))
    return _simple("/".join(segments)).lower()


def _simple(path: str) -> str:
    """Remove dot segments (RFC 3986, section 5.2.4), repeated slashes and a slash at the end."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return "/" + "/".join(kept)
