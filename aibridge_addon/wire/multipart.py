"""Read short text fields of a `multipart/form-data` body (RFC 7578). Sans-io.

Only the beginning and the end of a large body are searched, because its files are of no interest.
"""

from __future__ import annotations

import re

WINDOW = 64 * 1024
"""Bytes. Size of each of the two searched parts of a large body."""
MAX_PARTS = 64
"""Maximum number of parts that are read in each of them."""
MAX_VALUE = 4096
"""Bytes. Longer values are ignored."""

_boundary = re.compile(r'boundary=(?:"([^"]{1,70})"|([^";,\s]{1,70}))', re.IGNORECASE)
_name = re.compile(rb'[;\s]name="([^"\r\n]{1,64})"')


def form_fields(content_type: str, body: bytes) -> dict[str, str] | None:
    """Return the short text fields of a form. None if the content type is another one."""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        return None
    boundary = _boundary.search(content_type)
    if boundary is None:
        return {}
    delimiter = b"--" + (boundary[1] or boundary[2]).encode("utf-8", "replace")
    windows = (body,) if len(body) <= 2 * WINDOW else (body[:WINDOW], body[-WINDOW:])
    fields: dict[str, str] = {}
    for window in windows:
        # What stands before the first delimiter and after the last one is no part, or a part that is cut.
        for part in window.split(delimiter, MAX_PARTS + 1)[1:-1]:
            head, _, value = part.partition(b"\r\n\r\n")
            name = _name.search(head)
            if name is not None and b"filename" not in head and len(value) <= MAX_VALUE:
                fields[name[1].decode("utf-8", "replace")] = value.removesuffix(b"\r\n").decode("utf-8", "replace")
    return fields
