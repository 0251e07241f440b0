"""The credential that a client brings: which header it is in, and what of it may be shown."""

from __future__ import annotations

import re

from aibridge_addon.records import Headers

_CREDENTIAL = re.compile(r"\bCredential=([^/,\s]+)/")


def mask(secret: str) -> str:
    """Show just enough of a secret to tell it from another: `sk-a...efgh`."""
    visible = 4 if len(secret) >= 20 else 2 if len(secret) >= 10 else 1 if len(secret) >= 5 else 0
    if not secret or not visible:
        return "..." if secret else ""
    return f"{secret[:visible]}...{secret[-visible:]}"


def client_credential(headers: Headers, names: tuple[bytes, ...]) -> str | None:
    """The credential in the first of these headers that holds one.

    For `Authorization`, a bearer's token, or the id of the access key that AWS's signature is made with.
    """
    for name in names:
        value = headers.get(name, b"").decode("latin-1").strip()
        if name == b"authorization":
            value = _access_key_id(value) if signs_request(headers) else _bearer(value)
        if value:
            return value
    return None


def signs_request(headers: Headers) -> bool:
    """Whether AWS's signature is over this request: a byte of its body that changes makes it invalid."""
    return headers.get(b"authorization", b"").lstrip().upper().startswith(b"AWS4-")


def brings_credential(headers: Headers, names: tuple[bytes, ...]) -> bool:
    """Whether the client authenticates itself to the provider: by a credential, or by AWS's signature."""
    return signs_request(headers) or client_credential(headers, names) is not None


def _bearer(value: str) -> str:
    match value.split():
        case [scheme, token] if scheme.lower() == "bearer":
            return token
    return ""


def _access_key_id(value: str) -> str:
    """`AWS4-HMAC-SHA256 Credential=<id>/<date>/<region>/<service>/aws4_request, SignedHeaders=…, Signature=…`."""
    found = _CREDENTIAL.search(value)
    return found[1] if found else ""
