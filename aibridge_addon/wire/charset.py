"""Convert a body to UTF-8, by its byte order mark or its declared charset. Sans-io."""

from __future__ import annotations

import codecs
import json
import re

_charset = re.compile(r";\s*charset\s*=\s*\"?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE).search
_is_safe = re.compile(r"(?:utf|iso|latin|windows|cp|ascii|us-ascii|gb|big5|euc|shift|koi8)", re.IGNORECASE).match
"""Charsets of text. Python has other codecs, some of which need quadratic time."""
MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def to_utf8(body: bytes, content_type: str) -> bytes:
    """Return a body in UTF-8, without a byte order mark.

    Many servers declare a charset that they do not use, so a body that is UTF-8 stays as it is. The body is also
    returned unchanged if its charset is not known.
    """
    if body.startswith(MARKS) or b"\0" in body[:4]:
        return _decoded(body, "utf-8-sig" if body.startswith(codecs.BOM_UTF8) else json.detect_encoding(body))
    try:
        body.decode()
    except UnicodeDecodeError:
        declared = _charset(content_type)
        return _decoded(body, declared[1]) if declared and _is_safe(declared[1]) else body
    return body


def _decoded(body: bytes, charset: str) -> bytes:
    try:
        return body.decode(charset, "replace").encode("utf-8", "replace")
    except (LookupError, UnicodeError):
        return body
