"""Find what makes a request's head unsafe to forward. Sans-io.

Servers read a bare CR, a NUL, or a folded line in different ways, so a request with one could become two on its way
(RFC 9110, section 5.5; RFC 9112, sections 2.2 and 5.2). HTTP/2 has no request line, so a blank in its path would end
the path of an HTTP/1.1 request. mitmproxy forwards all of these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mitmproxy import http

UNSAFE_IN_TARGET = re.compile(rb"[\x00-\x20\x7f]")
UNSAFE_IN_FIELD = re.compile(rb"[\x00\r\n]")
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""A method (RFC 9110, section 5.6.2)."""


def problem_of_lines(lines: Sequence[bytes]) -> str | None:
    """Return what is wrong with the lines of an HTTP/1 head, which have no line ends. None: nothing.

    mitmproxy's parser replaces some of these bytes, so that they are not in the parsed request.
    """
    if any(b"\r" in line or b"\0" in line for line in lines):
        return "the request's head has a bare CR or a NUL"
    if any(line[:1] in (b" ", b"\t") for line in lines[1:]):
        return "the request's head has a folded line (obs-fold)"
    return None


def problem_of_request(request: http.Request) -> str | None:
    """Return what is wrong with the parsed head of a request in any version of HTTP. None: nothing."""
    data = request.data
    if TOKEN.fullmatch(data.method) is None:
        return "the request's method has a character that is not allowed"
    if UNSAFE_IN_TARGET.search(data.path) or UNSAFE_IN_TARGET.search(data.authority):
        return "the request's path or authority has a blank or a control character"
    if data.method != b"CONNECT" and data.path[:1] != b"/" and data.path != b"*":
        return "the request's path does not begin with a slash"
    if UNSAFE_IN_FIELD.search(b"".join(part for field in data.headers.fields for part in field)):
        return "a header of the request has a line break or a NUL"
    return None
