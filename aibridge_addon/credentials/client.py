"""Find the credential in a client's request, and mask it for rows and logs."""

from __future__ import annotations

from collections.abc import Iterator

from aibridge_addon.records import Headers

_CREDENTIAL = "Credential="
PROTOCOLS = b"sec-websocket-protocol"
"""Header in which programs in browsers send a credential, because they can set no other one of a WebSocket."""
_NAMES = ("key", "secret", "token", "bearer", "authorization")
"""How the name of a credential among a WebSocket's protocols ends: `openai-insecure-api-key.<key>`, `token, <key>`."""


def mask(secret: str) -> str:
    """Return just enough of a secret to distinguish it from others: `sk-a...efgh`."""
    visible = 4 if len(secret) >= 20 else 2 if len(secret) >= 10 else 1 if len(secret) >= 5 else 0
    if not secret or not visible:
        return "..." if secret else ""
    return f"{secret[:visible]}...{secret[-visible:]}"


def client_credential(headers: Headers, names: tuple[bytes, ...]) -> str | None:
    """Return the credential in the first of these headers that has one.

    `Authorization` has a bearer token, or the id of the access key of an AWS signature. The protocols of a WebSocket
    may have a credential, too.
    """
    for name in names:
        value = headers.get(name, b"").decode("latin-1").strip()
        if name == b"authorization":
            value = _access_key_id(value) if signs_request(headers) else _bearer(value)
        if value:
            return value
    return next((secret for _, secret in _protocols(headers.get(PROTOCOLS, b"").decode("latin-1")) if secret), None)


def masked_protocols(value: str) -> str:
    """Return the value of `Sec-WebSocket-Protocol` without the credentials in it."""
    return ", ".join(before + mask(secret) for before, secret in _protocols(value))


def _protocols(value: str) -> Iterator[tuple[str, str]]:
    """Yield the protocols of a WebSocket, each divided into what is no credential and what is one."""
    is_named = False
    for protocol in value.split(","):
        text = protocol.strip()
        name, dot, secret = text.partition(".")
        if is_named:
            yield "", text
        elif dot and name.lower().endswith(_NAMES):
            yield name + dot, secret
        else:
            yield text, ""
        is_named = not dot and not is_named and name.lower() in _NAMES


def signs_request(headers: Headers) -> bool:
    """Whether the request has an AWS signature. Any change to its body would make the signature invalid."""
    return headers.get(b"authorization", b"").lstrip().upper().startswith(b"AWS4-")


def brings_credential(headers: Headers, names: tuple[bytes, ...]) -> bool:
    """Whether the client authenticates itself to the provider, by a credential or by an AWS signature."""
    return signs_request(headers) or client_credential(headers, names) is not None


def _bearer(value: str) -> str:
    match value.split():
        case [scheme, token] if scheme.lower() == "bearer":
            return token
    return ""


def _access_key_id(value: str) -> str:
    """Read the id from `AWS4-HMAC-SHA256 Credential=<id>/<date>/<region>/<service>/aws4_request, …`."""
    before, named, rest = value.partition(_CREDENTIAL)
    if not named or (before and not before.endswith((" ", ",", "\t"))):
        return ""
    key_id, ended, _ = rest.partition("/")
    return "" if not ended or "," in key_id or key_id.split() != [key_id] else key_id
