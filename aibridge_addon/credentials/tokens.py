"""Tokens of the bridge: their form, what is stored of them, and where a request has them. Sans-io.

    aib_ + 43 characters of 256 random bits + 6 characters of the CRC-32 of both

In memory a token is represented by its digest. The database has an HMAC of the digest with a key of the database's own.
Decision 19 has the reasons.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import string
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote_to_bytes
from zlib import crc32

from aibridge_addon.credentials.identity import CREDENTIAL_HEADERS

PREFIX = "aib_"
RANDOM_BYTES = 32
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
"""No character of it has a meaning in a URL or in a shell."""
RANDOM_LENGTH = 43
"""Characters. 62 ** 43 is the first power above 2 ** 256."""
CHECK_LENGTH = 6
"""Characters. 62 ** 6 is above 2 ** 32."""
REMOVED = b"removed"
"""Replaces a token in the URL of a refused request, which logs show."""

_MARK = PREFIX.encode()
_IN_TEXT = re.compile(rb"aib_[0-9A-Za-z]{%d}" % (RANDOM_LENGTH + CHECK_LENGTH))
_PROXY_HEADER = b"proxy-authorization"

Fields = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Presented:
    """A token in a request's head."""

    digest: str
    well_formed: bool
    """Its checksum is right. A token without one was never made, so the database is not asked."""


@dataclass(frozen=True, slots=True)
class Found:
    """The tokens in the headers of a request."""

    as_key: Presented | None
    """Given as an API key, or in the user part of a base URL."""
    as_password: Presented | None
    """Given in `Proxy-Authorization`."""
    others: tuple[tuple[bytes, bytes], ...]
    """The headers that have no token, unchanged."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A token as the database has it."""

    id: str
    actor: str
    groups: tuple[str, ...] = ()
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def refusal(self, now: datetime) -> RefusedToken | None:
        """Return why the token does not count any more."""
        if self.revoked_at is not None:
            return RefusedToken("the token of the bridge was revoked: ask for a new one")
        if self.expires_at is not None and self.expires_at <= now:
            return RefusedToken("the token of the bridge has expired: ask for a new one")
        return None


@dataclass(frozen=True, slots=True)
class RefusedToken:
    message: str
    unavailable: bool = False
    """The token may be right, but it cannot be checked now."""


Verdict = Grant | RefusedToken

UNKNOWN = RefusedToken("the token of the bridge is unknown: it was mistyped, or it belongs to another bridge")
UNAVAILABLE = RefusedToken("the token of the bridge cannot be checked now: the database cannot be reached", True)


def make_token(random: bytes) -> str:
    """Return the token for `RANDOM_BYTES` random bytes."""
    begin = PREFIX + _base62(int.from_bytes(random), RANDOM_LENGTH)
    return begin + _check(begin)


def is_well_formed(token: str) -> bool:
    begin, check = token[:-CHECK_LENGTH], token[-CHECK_LENGTH:]
    return _IN_TEXT.fullmatch(token.encode("utf-8", "replace")) is not None and check == _check(begin)


def token_digest(token: str) -> str:
    """Return what stands for a token in memory."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def stored_hash(key: bytes, digest: str) -> str:
    """Return what the database has of a token. `key` is the database's own."""
    return hmac.digest(key, digest.encode(), "sha256").hex()


def presented(token: str) -> Presented:
    return Presented(token_digest(token), is_well_formed(token))


def presented_in(user: str, password: str) -> Presented | None:
    """Return the token that is one of these."""
    token = next((text for text in (password, user) if text.startswith(PREFIX)), None)
    return None if token is None else presented(token)


def find_tokens(fields: Fields) -> Found | None:
    """Return the tokens in the headers of a request, or None if there are none.

    If several headers have one, the first of `CREDENTIAL_HEADERS` counts. A header of another name is no way to give a
    token. It is removed if it has one.
    """
    kept: list[tuple[bytes, bytes]] = []
    tokens: dict[bytes, Presented] = {}
    found = False
    for name, value in fields:
        lower = name.lower()
        token = _credential(value) if lower in CREDENTIAL_HEADERS or lower == _PROXY_HEADER else None
        if token is not None:
            tokens[lower] = presented(token)
            found = True
        elif has_token(value) or has_token(name) or has_token(_basic(value)):
            found = True
        else:
            kept.append((name, value))
    if not found:
        return None
    as_key = next((tokens[name] for name in CREDENTIAL_HEADERS if name in tokens), None)
    return Found(as_key, tokens.get(_PROXY_HEADER), tuple(kept))


def has_token(text: bytes) -> bool:
    """Return whether a token that was made by a bridge is anywhere in a text, also percent-encoded."""
    return _well_formed_in(text) or (b"%" in text and _well_formed_in(unquote_to_bytes(text)))


def without_tokens(target: bytes) -> bytes:
    """Return a URL's path and query without the tokens in it."""
    if _MARK in target and not has_token(clean := _IN_TEXT.sub(REMOVED, target)):
        return clean
    return b"/" + REMOVED


def _well_formed_in(text: bytes) -> bool:
    return _MARK in text and any(is_well_formed(found.decode()) for found in _IN_TEXT.findall(text))


def _credential(value: bytes) -> str | None:
    """Return the token in the value of a credential header: alone, as a bearer token, or in Basic credentials."""
    match value.decode("latin-1").split():
        case [token] | [_, token] if token.startswith(PREFIX):
            return token
    user, _, password = _basic(value).decode("utf-8", "replace").partition(":")
    return next((text for text in (password, user) if text.startswith(PREFIX)), None)


def _basic(value: bytes) -> bytes:
    """Return user and password of Basic credentials (RFC 7617); empty if these are others."""
    if value[:6].lower() != b"basic ":
        return b""
    encoded = value[6:].strip()
    try:
        return b64decode(encoded + b"=" * (-len(encoded) % 4))
    except ValueError:
        return b""


def _check(begin: str) -> str:
    return _base62(crc32(begin.encode("utf-8", "replace")), CHECK_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
