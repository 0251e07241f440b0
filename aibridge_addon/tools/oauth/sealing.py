"""Encrypt what the database keeps of logins: Fernet (AES-128 in CBC mode, with an HMAC).

The owner is part of the content, so that a row that was copied to another actor or server cannot be read there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

KEY_BYTES = 32
OWNER = "owner"
"""Member of each content."""


class Sealer:
    """Encrypts with the first key, and decrypts with all, so that keys can be rotated."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._fernet = MultiFernet([Fernet(_key(key.get_secret_value())) for key in keys])

    def seal(self, owner: Sequence[str], value: Mapping[str, Any]) -> str:
        return self._fernet.encrypt(json.dumps({OWNER: list(owner), **value}).encode()).decode()

    def maybe_open(self, owner: Sequence[str], text: str) -> dict[str, Any] | None:
        """Return a content. None: it was encrypted with another key, or for another owner."""
        with suppress(InvalidToken, ValueError, RecursionError):
            value = json.loads(self._fernet.decrypt(text.encode()))
            if isinstance(value, dict) and value.pop(OWNER, None) == list(owner):
                return value
        return None


def _key(text: str) -> bytes:
    """Return the key of Fernet that a text is, or that is derived from it."""
    with suppress(ValueError):
        if len(base64.urlsafe_b64decode(text)) == KEY_BYTES and "+" not in text and "/" not in text:
            return text.encode()
    derived = HKDF(SHA256(), KEY_BYTES, salt=None, info=b"aibridge mcp tokens").derive(text.encode())
    return base64.urlsafe_b64encode(derived)
