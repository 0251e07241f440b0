"""The credential that a client brings, and what of it may be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.credentials.client import client_credential, mask, signs_request
from aibridge_addon.records import Headers

BOTH = (b"x-api-key", b"authorization")
SIGNATURE = (
    b"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/us-east-1/bedrock/aws4_request, "
    b"SignedHeaders=content-type;host;x-amz-date, Signature=9a9c0f"
)


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("", ""),
        ("a", "..."),
        ("abcd", "..."),
        ("abcde", "a...e"),
        ("abcdefghi", "a...i"),
        ("abcdefghij", "ab...ij"),
        ("a" * 19, "aa...aa"),
        ("sk-a0123456789aaefgh", "sk-a...efgh"),
    ],
)
def test_a_secret_shows_just_enough_to_tell_it_from_another(secret: str, shown: str) -> None:
    assert mask(secret) == shown


@given(secret=st.text(min_size=1, max_size=200))
def test_most_of_a_secret_is_never_shown(secret: str) -> None:
    shown = mask(secret).replace("...", "", 1)
    assert len(shown) <= min(8, len(secret) / 2)


@pytest.mark.parametrize(
    ("headers", "credential"),
    [
        ({}, None),
        ({b"x-api-key": b""}, None),
        ({b"x-api-key": b" key "}, "key"),
        ({b"authorization": b"Bearer token"}, "token"),
        ({b"authorization": b"bearer  token "}, "token"),
        ({b"authorization": b"Bearer"}, None),
        ({b"authorization": b"Bearer two words"}, None),
        ({b"authorization": b"Basic dXNlcjpwYXNz"}, None),
        ({b"x-api-key": b"key", b"authorization": b"Bearer token"}, "key"),
        ({b"x-api-key": b" ", b"authorization": b"Bearer token"}, "token"),
        ({b"api-key": b"key"}, None),
        ({b"x-api-key": b"\xff\xfe"}, "ÿþ"),
        ({b"authorization": SIGNATURE}, "AKIDEXAMPLE"),
        ({b"authorization": b"AWS4-HMAC-SHA256 SignedHeaders=host"}, None),
        ({b"authorization": b"AWS4-HMAC-SHA256 Signature=0,Credential=AKID/x"}, "AKID"),
        ({b"authorization": b"AWS4-HMAC-SHA256 NotCredential=AKID/x"}, None),
        ({b"authorization": b"AWS4-HMAC-SHA256 Credential=a b/x"}, None),
        ({b"authorization": b"AWS4-HMAC-SHA256 Credential=a,b/x"}, None),
        ({b"authorization": b"AWS4-HMAC-SHA256 Credential=/x"}, None),
        ({b"authorization": b"AWS4-HMAC-SHA256 " + b"Credential=" * 6000}, None),
    ],
)
def test_the_first_header_that_holds_a_credential_counts(headers: Headers, credential: str | None) -> None:
    assert client_credential(headers, BOTH) == credential


@pytest.mark.parametrize(
    ("authorization", "signs"),
    [
        (SIGNATURE, True),
        (b"AWS4-ECDSA-P256-SHA256 Credential=a/b", True),
        (b" aws4-hmac-sha256 Credential=a/b", True),
        (b"Bearer AWS4-HMAC-SHA256", False),
        (b"", False),
    ],
)
def test_a_request_that_aws_has_to_find_unchanged_says_so(authorization: bytes, signs: bool) -> None:
    assert signs_request({b"authorization": authorization}) is signs


@given(value=st.binary(max_size=40))
def test_no_header_makes_it_fail(value: bytes) -> None:
    client_credential({b"authorization": value, b"x-api-key": value}, BOTH)
