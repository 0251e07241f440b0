"""What a dump shows: a message as text for somebody who looks for a fault, without the credentials in it.

    head(…)   the first line and the headers, as they were sent, but for masked values
    whole(…)  a body that is there at once: decoded, secrets redacted, JSON indented
    Body      one that comes piece by piece: decoded, secrets redacted line by line, shown as it comes

The headers that frame a body on the wire would be wrong about the body in the file. They are shown with `WIRE` in
front, so that a file can be read by whatever reads HTTP/1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote_plus

import msgspec

from aibridge_addon.credentials.client import mask
from aibridge_addon.wire.codings import CodingError, decode_all, decoder_for

Fields = Iterable[tuple[bytes, bytes]]
Redact = Callable[[bytes], bytes]
"""Put something else in place of the secrets in a text, which may be JSON and may be cut anywhere."""

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
"""Of header names: what gateways call theirs (`x-goog-api-key`, `cf-access-client-secret`, `x-session-token`)."""
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
"""Of a query, in lower case."""

FRAMING = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
WIRE = b"x-aibridge-wire-"

INDENTED = 1024 * 1024
"""Bytes of JSON that are indented: about a millisecond, in which no other thread runs. More stays as it is."""
SLICE = 64 * 1024
"""Bytes that are looked through for secrets at a stretch, and of a line that are waited for."""


def head(first_line: bytes, fields: Fields, *, length: int | None = None) -> bytes:
    """The head of a message; `length`: bytes of the body in the file, where that is known."""
    lines = [first_line]
    for name, value in fields:
        lower = name.lower()
        if lower in FRAMING:
            name = WIRE + lower
        elif lower in MASKED_HEADERS or lower.endswith(MASKED_ENDINGS):
            value = _mask(value)
        lines.append(name + b": " + value)
    if length is not None:
        lines.append(b"content-length: %d" % length)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def target(path: bytes) -> bytes:
    """A request's path, the secrets in its query masked."""
    before, mark, query = path.partition(b"?")
    return before + mark + b"&".join(_parameter(part) for part in query.split(b"&"))


def _parameter(part: bytes) -> bytes:
    name, equals, value = part.partition(b"=")
    secret = unquote_plus(name.decode("utf-8", "replace")).lower() in MASKED_PARAMETERS
    return name + equals + (_mask(value) if secret else value)


def _mask(value: bytes) -> bytes:
    return mask(value.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def note(text: str) -> bytes:
    """A line of our own at the end of what is shown."""
    return b"\n[aibridge: %s]\n" % re.sub(r"[^ -~]", "?", text).encode()


def whole(body: bytes, coding: str | None, redact: Redact, limit: int) -> bytes:
    """A whole body; `limit`: bytes of it that are shown when it is decoded."""
    shown = Body(coding, redact, limit)
    try:
        decoded = decode_all(body, coding, max(limit, len(body)))
        if len(decoded) <= INDENTED:
            decoded = msgspec.json.format(decoded, indent=2) + b"\n"
    except CodingError:
        return shown.feed(body) + shown.finish()  # as far as it goes
    except msgspec.DecodeError:
        pass
    plain = Body(None, redact, limit)
    return plain.feed(decoded) + plain.finish()


class Body:
    def __init__(self, coding: str | None, redact: Redact, limit: int) -> None:
        """`coding` is a Content-Encoding; `limit` bounds what it may decode to."""
        self._redact = redact
        self._pending = b""
        self._unreadable: str | None = None
        self._decoder = None
        try:
            self._decoder = decoder_for(coding, limit)
        except CodingError as e:
            self._unreadable = str(e)

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; returns what can be shown by now: whole lines, and of a long line its words."""
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
        """What is left when the body has ended, or will not go on."""
        rest, self._pending = self._redact(self._pending), b""
        return rest if self._unreadable is None else rest + note(f"the rest cannot be decoded: {self._unreadable}")

    def _show(self, data: bytes) -> bytes:
        shown = []
        for start in range(0, len(data), SLICE):
            text = self._pending + data[start : start + SLICE]
            end = text.rfind(b"\n") + 1
            if not end and len(text) >= SLICE:
                # No secret has a blank or a quotation mark in it; what is longer than a slice and has none is no text.
                end = max(text.rfind(b" "), text.rfind(b'"')) + 1 or len(text)
            shown.append(self._redact(text[:end]) if end else b"")
            self._pending = text[end:]
        return b"".join(shown)
