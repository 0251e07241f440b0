"""Distinguish credentials without storing them: a digest of the client's credential, or of the login that it proves.

Conversations of one credential are never completed from those of another one, so most credentials count as they were
sent. A login's tokens are renewed within a session. Where the provider is known to verify them, the person named in
the token counts instead: a forged token is refused there, and its sender gets nothing. Decision 11 has the reasons.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from aibridge_addon.credentials.client import client_credential
from aibridge_addon.records import Headers

CENTRAL = "central"
"""The identity of all requests with a credential of the bridge's own. Their actors tell them apart."""
CREDENTIAL_HEADERS = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"ocp-apim-subscription-key")
"""Headers that may have a credential in a form that the provider's type does not know."""
MAX_TOKEN = 16 * 1024
"""Characters. Longer tokens count as they were sent."""

Person = tuple[str, ...]
"""What identifies the person in a login's token."""


@dataclass(frozen=True, slots=True)
class Login:
    """Tokens that a provider issues for a person and verifies with every request."""

    hosts: re.Pattern[str]
    """Hosts that refuse a token that was not issued to its sender. Must match completely."""
    person: Callable[[str], Person | None]
    """Returns the person in a token; None if it is no token of this login."""


def credential_identity(headers: Headers, names: tuple[bytes, ...], logins: Sequence[Login], host: str) -> str:
    """Return what distinguishes the client's credential from all others. It does not reveal the credential.

    `names` are the provider's credential headers, `host` is where the request goes; empty if it is not encrypted.
    """
    credential = client_credential(headers, names)
    if credential is None:
        return _digest("headers", *(headers.get(name, b"").decode("latin-1") for name in CREDENTIAL_HEADERS))
    for login in logins:
        if len(credential) <= MAX_TOKEN and login.hosts.fullmatch(host) and (person := login.person(credential)):
            return _digest("login", *person)
    return _digest("credential", credential)


def jwt_person(issuer: str, *claims: tuple[str, ...]) -> Callable[[str], Person | None]:
    """Read these claims of a JSON web token. `issuer` is a pattern for its `iss`. Claims are paths of member names."""
    issued_by = re.compile(issuer)

    def person(token: str) -> Person | None:
        payload = _payload(token)
        issued = _text(payload, ("iss",))
        found = tuple(_text(payload, claim) for claim in claims)
        return (issued, *found) if issued_by.fullmatch(issued) and all(found) else None

    return person


def field_person(name: str) -> Callable[[str], Person | None]:
    """Read one field of a token in the form `name=value;…:signature`."""

    def person(token: str) -> Person | None:
        fields, _, signature = token.rpartition(":")
        found = next((value for key, _, value in (f.partition("=") for f in fields.split(";")) if key == name), "")
        return (name, found) if found and signature else None

    return person


def _payload(token: str) -> object:
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        return msgspec.json.decode(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None


def _text(value: object, path: tuple[str, ...]) -> str:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""


def _digest(*parts: str) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
