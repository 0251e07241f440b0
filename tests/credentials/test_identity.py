"""Which credentials count as the same one: renewed tokens of a login do, all others only if they are equal."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.credentials.identity import MAX_TOKEN, credential_identity
from aibridge_addon.providers import TYPES

KEY = "sk-ant-REAL-key-0123456789"


def jwt(number: int, **claims: Any) -> str:
    parts = ({"alg": "RS256"}, {"exp": number} | claims)
    return ".".join(urlsafe_b64encode(msgspec.json.encode(part)).decode().rstrip("=") for part in parts) + f".s{number}"


def chatgpt(number: int, sub: str = "auth0|1", account: str = "acc-1", iss: str = "https://auth.openai.com") -> str:
    return jwt(number, iss=iss, sub=sub, **{"https://api.openai.com/auth": {"chatgpt_account_id": account}})


def entra(number: int, oid: str = "o1", iss: str = "https://sts.windows.net/t1/") -> str:
    return jwt(number, iss=iss, tid="t1", oid=oid)


def copilot(number: int, tid: str = "u1") -> str:
    return f"tid={tid};exp={number};sku=x;st=dotcom:mac{number}"


def identity(kind: str, token: str, host: str) -> str:
    type_ = TYPES[kind]
    return credential_identity(
        {b"authorization": f"Bearer {token}".encode()}, type_.credential_headers, type_.logins, host
    )


LOGINS: dict[str, tuple[Callable[[int], str], str]] = {
    "openai": (chatgpt, "chatgpt.com"),
    "azure": (entra, "mine.openai.azure.com"),
    "copilot": (copilot, "api.business.githubcopilot.com"),
}


@pytest.mark.parametrize("kind", LOGINS)
def test_a_renewed_token_is_the_same_login_where_the_provider_verifies_it(kind: str) -> None:
    make, host = LOGINS[kind]
    assert identity(kind, make(1), host) == identity(kind, make(2), host)
    for elsewhere in ("", "localhost", f"{host}.example.org", f"evil-{host}.org", "api.openai.com"):
        assert identity(kind, make(1), elsewhere) != identity(kind, make(2), elsewhere)
        assert identity(kind, make(1), elsewhere) != identity(kind, make(1), host)


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("openai", chatgpt(1), chatgpt(1, sub="auth0|2")),
        ("openai", chatgpt(1), chatgpt(1, account="acc-2")),
        ("openai", chatgpt(1, account=""), chatgpt(2, account="")),
        ("openai", chatgpt(1, iss="https://evil"), chatgpt(2, iss="https://evil")),
        ("openai", "a.b.c", "a.b.d"),
        ("openai", jwt(1, iss=1, sub=["x"]), jwt(2, iss=1, sub=["x"])),
        ("azure", entra(1), entra(1, oid="o2")),
        ("azure", entra(1, iss="https://evil/t1/"), entra(2, iss="https://evil/t1/")),
        ("copilot", copilot(1), copilot(1, tid="u2")),
        ("copilot", "tid=u1;exp=1", "tid=u1;exp=2"),
        ("copilot", f"tid=u1;x={'x' * MAX_TOKEN}:1", f"tid=u1;x={'x' * MAX_TOKEN}:2"),
        ("anthropic", "sk-ant-oat01-one", "sk-ant-oat01-two"),
    ],
)
def test_other_tokens_count_as_they_were_sent(kind: str, one: str, other: str) -> None:
    host = LOGINS[kind][1] if kind in LOGINS else "api.anthropic.com"
    assert identity(kind, one, host) == identity(kind, one, host) != identity(kind, other, host)


@pytest.mark.parametrize("kind", list(TYPES))
def test_a_credential_in_an_unknown_form_counts_too(kind: str) -> None:
    names = TYPES[kind].credential_headers
    sent = [{}, *({b"authorization": value} for value in (b"Token one", b"Token two", b"Basic b25l"))]
    sent += [{name: b"one"} for name in (b"x-goog-api-key", b"ocp-apim-subscription-key")]
    assert len({credential_identity(headers, names, (), "") for headers in sent}) == len(sent)


@given(st.text(), st.sampled_from(sorted(LOGINS)))
def test_no_token_makes_it_fail_or_is_revealed(token: str, kind: str) -> None:
    headers = {b"authorization": b"Bearer " + token.encode("utf-8", "replace")}
    type_ = TYPES[kind]
    found = credential_identity(headers, type_.credential_headers, type_.logins, LOGINS[kind][1])
    assert len(found) == 64 and KEY not in found
