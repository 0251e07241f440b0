"""Find out what media are by their first bytes. Pure.

Providers compare an image's type with its bytes, and refuse the whole request if they differ ("Image does not match
the provided media type", "The image data you provided does not represent a valid image").
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

IMAGES = frozenset(("image/jpeg", "image/jpg", "image/png", "image/gif", "image/webp"))
_SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n").match, "image/png"),
    (re.compile(rb"\xff\xd8\xff").match, "image/jpeg"),
    (re.compile(rb"GIF8[79]a").match, "image/gif"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL).match, "image/webp"),
    (re.compile(rb"RIFF.{4}WAVE", re.DOTALL).match, "audio/wav"),
    (re.compile(rb"BM.{4}\0\0\0\0", re.DOTALL).match, "image/bmp"),
    (re.compile(rb"II\*\0|MM\0\*").match, "image/tiff"),
    (re.compile(rb".{4}ftypavi[fs]", re.DOTALL).match, "image/avif"),
    (re.compile(rb".{4}ftyp(?:heic|heix|mif1)", re.DOTALL).match, "image/heic"),
    (re.compile(rb"%PDF-?").match, "application/pdf"),
)
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")


def decoded(data: Any) -> tuple[bytes, str]:
    """Return media as bytes, and as base64 in the alphabet, with the padding and in the one line of RFC 4648.

    Raises:
        ValueError: it is not base64, or empty. The text says which.
    """
    if not isinstance(data, str):
        raise ValueError("no data")
    if data.startswith("data:") and ";base64," in data[:200]:
        data = data.partition(";base64,")[2]
    text = "".join(data.split()).rstrip("=").replace("-", "+").replace("_", "/")
    if not text:
        raise ValueError("no data")
    if _NOT_BASE64.search(text):
        raise ValueError("not valid base64")
    encoded = text + "=" * (-len(text) % 4)
    try:
        return base64.b64decode(encoded, validate=True), encoded
    except (binascii.Error, ValueError):
        raise ValueError("not valid base64") from None


def plain(mime_type: str) -> str:
    """Return a media type without its parameters."""
    return mime_type.partition(";")[0].strip().lower()


def maybe_type(content: bytes) -> str | None:
    """Return the media type that the first bytes show."""
    head = content[:32]
    return next((kind for match, kind in _SIGNATURES if match(head)), None)


def maybe_problem(claimed: str, content: bytes) -> str | None:
    """Say what is wrong with bytes whose type is not known from them; None if nothing is."""
    kind = plain(claimed)
    if kind in IMAGES or kind == "image/*":
        return "the data is not an image"
    if kind == "application/pdf" and b"%PDF" not in content[:1024]:
        return "the data is not a PDF file"
    return None
