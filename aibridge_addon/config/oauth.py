"""Logins of people at MCP servers: `mcp.servers.<name>.oauth`, and the key that encrypts their tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, SecretStr, model_validator

from aibridge_addon.config import urls, values
from aibridge_addon.config.errors import rejected

KEY_VARIABLE = "AIBRIDGE_MCP_TOKEN_KEY"
"""Environment variable with the keys of `mcp.token_key`, if the file has none."""
MIN_KEY = 32
"""Characters of a key. `openssl rand -base64 32` makes 44."""
MAX_KEYS = 16
MAX_SCOPES = 64

NEEDS_KEY = f"a key that encrypts the tokens of those who log in: openssl rand -base64 32, in {KEY_VARIABLE}"


def _scopes(value: object) -> object:
    """Accept what OAuth itself has: one text with spaces."""
    return tuple(value.split()) if isinstance(value, str) else () if value is None else value


def _scope(text: str) -> str:
    if not re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}", text):  # RFC 6749, section 3.3
        raise rejected("a scope: printable ASCII without spaces, quotes and backslashes")
    return text


Scope = Annotated[str, AfterValidator(_scope)]


class OAuth(values.Section):
    """`oauth: {}` registers a client at the authorization server (RFC 7591)."""

    client_id: values.OptionalLine = None
    client_secret: values.OptionalSecret = None
    scopes: Annotated[tuple[Scope, ...], BeforeValidator(_scopes), Field(max_length=MAX_SCOPES)] = ()

    @model_validator(mode="after")
    def _secret_has_a_client(self) -> Self:
        if self.client_secret is not None and self.client_id is None:
            raise rejected("a client_id beside it", found="a client_secret alone", at=("client_secret",))
        return self


def _switch(value: object) -> object:
    """Accept `true` as `{}`, and `false` as null."""
    return {} if value is True else None if value is False else value


def parse_keys(value: object) -> tuple[SecretStr, ...]:
    """Parse one key, a list, or one text of several that are separated by commas. The first one encrypts."""
    items = value if isinstance(value, list | tuple) else () if value is None else (value,)
    texts = [word for item in items for word in re.split(r"[,\s]+", _text(item)) if word]
    if any(len(text) < MIN_KEY for text in texts):
        raise rejected(f"keys of at least {MIN_KEY} characters: openssl rand -base64 32", found="a shorter key")
    if len(texts) > MAX_KEYS:
        raise rejected(f"at most {MAX_KEYS} keys", found=f"{len(texts)} keys")
    return tuple(map(SecretStr, texts))


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    text = urls.expect_text(value, f"a key of at least {MIN_KEY} characters, or a list of them")
    if not text.isascii():
        raise rejected("keys in ASCII")
    return text


def parse_login_url(value: object) -> str:
    """Parse the URL under which browsers reach the login pages. A slash at its end is removed."""
    text = urls.expect_text(value, "a URL such as https://gateway.example.com")
    parts = urls.split_url(text)
    urls.host_name(parts.hostname or "")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise rejected("a URL without user, query and fragment")
    return text.rstrip("/")


OptionalOAuth = Annotated[OAuth | None, BeforeValidator(_switch)]
OptionalLoginUrl = Annotated[
    str | None, PlainValidator(lambda value: None if value is None or value == "" else parse_login_url(value))
]
Keys = Annotated[tuple[SecretStr, ...], PlainValidator(parse_keys)]


def add_key(mcp: Any, environ: Mapping[str, str]) -> None:
    """Take the key from the environment, if a server needs one and the file has none."""
    if isinstance(mcp, dict) and not mcp.get("token_key") and (key := environ.get(KEY_VARIABLE, "").strip()):
        servers = mcp.get("servers")
        if isinstance(servers, dict) and any(_logs_in(entry) for entry in servers.values()):
            mcp["token_key"] = key


def _logs_in(entry: object) -> bool:
    found = entry.get("oauth") if isinstance(entry, dict) else getattr(entry, "oauth", None)
    return found is not None and found is not False


def base_url(login_url: str | None, served_at: str) -> str:
    """Return the URL under which browsers reach the login pages. Empty: they are not served.

    `served_at`: host and port of the listener. A wildcard stands for this machine.
    """
    host, _, port = served_at.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 (nothing listens here)
    return login_url or (f"http://{host}:{port}" if served_at else "")
