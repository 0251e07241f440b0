"""Convert a message to the text of a dump: decoded, and without credentials.

    head(…)   the first line and the headers, unchanged except for masked values
    whole(…)  a complete body: decoded, secrets redacted, JSON indented
    Body      a body in pieces: decoded, secrets redacted line by line, written as it arrives

Content-Length and similar headers describe the body on the wire, not the decoded body in the file. They get the prefix
`WIRE`, so that an HTTP/1 parser can read the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote_plus, unquote_to_bytes

import msgspec

from aibridge_addon.credentials.client import PROTOCOLS, mask, masked_protocols
from aibridge_addon.credentials.redaction import REDACTED
from aibridge_addon.wire.codings import CodingError, decode_all, decoder_for

Fields = Iterable[tuple[bytes, bytes]]
Redact = Callable[[bytes], bytes]
"""Replace the secrets in a text, which may be JSON and may be cut anywhere."""

MASKED_HEADERS = frozenset(
    {
        b"authorization",
        b"proxy-authorization",
        b"x-api-key",
        b"api-key",
        b"x-auth-token",
        b"x-amz-security-token",
        b"cookie",
        b"set-cookie",
        b"www-authenticate",
        b"proxy-authenticate",
    }
)
MASKED_ENDINGS = (b"-token", b"-key", b"-secret", b"-password", b"-authorization", b"-cookie")
"""Endings of masked header names, for gateways (`x-goog-api-key`, `cf-access-client-secret`, `x-session-token`)."""
MASKED_PARAMETERS = frozenset(
    {
        "access_token",
        "api-key",
        "api_key",
        "apikey",
        "client_secret",
        "code",
        "key",
        "password",
        "refresh_token",
        "sig",
        "signature",
        "subscription-key",
        "token",
        "x-amz-credential",
        "x-amz-security-token",
        "x-amz-signature",
    }
)
"""Names of masked query parameters, in lower case."""

MARK = REDACTED.encode()
MAX_PARTS = 200
"""Maximum number of parts of a target that are searched for secrets one by one."""
FRAMING = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
"""Headers that describe the body on the wire."""
WIRE = b"x-aibridge-wire-"
"""Prefix of such headers in a dump."""

INDENTED = 1024 * 1024
"""Bytes. Larger JSON is not indented: that takes about a millisecond per MiB and holds the GIL."""
SLICE = 64 * 1024
"""Bytes that are searched for secrets at once. A longer line is written in parts."""
BEFORE, BEHIND = 100, 1000
"""Bytes around the end of a part of a line. A secret that reaches over it, with the name in front of it, is shorter."""
MAX_ENDS = 10
"""Maximum number of places that are tried for the end of a part."""
MAX_KEY = 16 * 1024
"""Bytes. Maximum length of a private key that is waited for."""


def head(first_line: bytes, fields: Fields, *, length: int | None = None) -> bytes:
    """Return the head of a message. `length`: bytes of the body in the file, if known."""
    lines = [first_line]
    for name, value in fields:
        lower = name.lower()
        if lower in FRAMING:
            name = WIRE + lower
        elif lower in MASKED_HEADERS or lower.endswith(MASKED_ENDINGS):
            value = _mask(value)
        elif lower == PROTOCOLS:
            value = masked_protocols(value.decode("latin-1")).encode("latin-1")
        lines.append(name + b": " + value)
    if length is not None:
        lines.append(b"content-length: %d" % length)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def line(first_line: bytes, redact: Redact) -> bytes:
    """Return a first line without the secrets that are percent-encoded in it."""
    if not _hides_secret(first_line, redact):
        return first_line
    parts = re.split(rb"([/?&= ])", first_line)
    shown = first_line
    if len(parts) <= MAX_PARTS:
        shown = b"".join(MARK if _hides_secret(part, redact) else part for part in parts)
    if _hides_secret(shown, redact):  # it reaches over several parts, as a URL does
        method, _, rest = shown.partition(b" ")
        shown = b" ".join((method, MARK, rest.rpartition(b" ")[2]))
    return shown


def _hides_secret(text: bytes, redact: Redact) -> bool:
    return b"%" in text and redact(decoded := unquote_to_bytes(text)) != decoded


def target(path: bytes) -> bytes:
    """Return a request's path with the secrets in its query masked."""
    before, mark, query = path.partition(b"?")
    return before + mark + b"&".join(_parameter(part) for part in query.split(b"&"))


def _parameter(part: bytes) -> bytes:
    name, equals, value = part.partition(b"=")
    secret = unquote_plus(name.decode("utf-8", "replace")).lower() in MASKED_PARAMETERS
    return name + equals + (_mask(value) if secret else value)


def _mask(value: bytes) -> bytes:
    return mask(value.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def note(text: str) -> bytes:
    """Return a note for the end of a dump."""
    return b"\n[aibridge: %s]\n" % re.sub(r"[^ -~]", "?", text).encode()


def whole(body: bytes, coding: str | None, redact: Redact, limit: int) -> bytes:
    """Return the text of a complete body. `limit`: maximum decoded bytes to show."""
    shown = Body(coding, redact, limit)
    try:
        decoded = decode_all(body, coding, max(limit, len(body)))
        if len(decoded) <= INDENTED:
            decoded = msgspec.json.format(decoded, indent=2) + b"\n"
    except CodingError:
        return shown.feed(body) + shown.finish()  # as much as can be decoded
    except msgspec.DecodeError:
        pass
    plain = Body(None, redact, limit)
    return plain.feed(decoded) + plain.finish()


class Body:
    def __init__(self, coding: str | None, redact: Redact, limit: int) -> None:
        """`coding`: a Content-Encoding. `limit`: maximum decoded bytes."""
        self._redact = redact
        self._pending = b""
        self._unreadable: str | None = None
        self._decoder = None
        try:
            self._decoder = decoder_for(coding, limit)
        except CodingError as e:
            self._unreadable = str(e)

    def feed(self, data: bytes) -> bytes:
        """Process the next bytes. Returns text that is complete: whole lines, or whole words of a long line."""
        if self._unreadable is not None:
            return b""
        if self._decoder is None:
            return self._show(data)
        shown = []
        try:
            for piece in self._decoder.feed(data):
                shown.append(self._show(piece))
        except CodingError as e:
            self._unreadable = str(e)
        return b"".join(shown)

    def finish(self) -> bytes:
        """Return the rest of the text at the end of the body."""
        rest, self._pending = self._redact(self._pending), b""
        return rest if self._unreadable is None else rest + note(f"the rest cannot be decoded: {self._unreadable}")

    def _show(self, data: bytes) -> bytes:
        shown = []
        for start in range(0, len(data), SLICE):
            text = self._pending + data[start : start + SLICE]
            end = text.rfind(b"\n") + 1
            if not end and len(text) >= SLICE:
                end = self._end_of_part(text)
            key = text.rfind(b"-----BEGIN ", 0, end)
            if key >= 0 and end - key <= MAX_KEY and text.find(b"-----END ", key, end) < 0:
                end = key
            shown.append(self._redact(text[:end]) if end else b"")
            self._pending = text[end:]
        return b"".join(shown)

    def _end_of_part(self, text: bytes) -> int:
        """Return where a long line can be divided: behind a space or a quotation mark, and not within a secret."""
        end = len(text) - BEHIND
        for _ in range(MAX_ENDS):
            end = max(text.rfind(b" ", 0, end), text.rfind(b'"', 0, end)) + 1
            if not end:
                break
            before, behind = text[max(0, end - BEFORE) : end], text[end : end + BEHIND]
            if self._redact(before + behind) == self._redact(before) + self._redact(behind):
                return end
            end -= 1
        return len(text)  # a slice without any such place is not text
