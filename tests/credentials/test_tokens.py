"""Tokens of the bridge: their form, and where a request has them."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.credentials.redaction import Redactor
from aibridge_addon.credentials.tokens import (
    RANDOM_BYTES,
    Presented,
    find_tokens,
    has_token,
    is_well_formed,
    make_token,
    presented,
    stored_hash,
    token_digest,
    without_tokens,
)

TOKEN = make_token(bytes(range(RANDOM_BYTES)))
OTHER = make_token(b"\xff" * RANDOM_BYTES)
ASCII = TOKEN.encode()


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


# --- the form


@given(st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES))
def test_a_token_has_the_same_form_for_all_random_bytes(random: bytes) -> None:
    token = make_token(random)
    assert len(token) == 53 and token.startswith("aib_") and token[4:].isalnum() and token.isascii()
    assert is_well_formed(token)


@given(st.integers(0, 52), st.characters())
def test_a_token_with_another_character_is_not_well_formed(at: int, character: str) -> None:
    changed = TOKEN[:at] + character + TOKEN[at + 1 :]
    assert is_well_formed(changed) == (changed == TOKEN)


@pytest.mark.parametrize("text", ["", "aib_", TOKEN[:-1], TOKEN + "0", " " + TOKEN, "aib_" + "ü" * 49, "\ud800"])
def test_what_is_shorter_or_longer_is_not_well_formed(text: str) -> None:
    assert not is_well_formed(text)


def test_what_is_stored_depends_on_the_token_and_on_the_databases_key() -> None:
    digests = [token_digest(TOKEN), token_digest(OTHER)]
    hashes = {stored_hash(key, digest) for key in (b"a" * 32, b"b" * 32) for digest in digests}
    assert len(hashes) == 4
    assert not [hash for hash in hashes if hash in digests or TOKEN in hash]


def test_a_token_is_redacted_wherever_it_stands() -> None:
    for text in (f"key={TOKEN}", f"x{TOKEN}", f"a_{TOKEN},", f'{{"k":"{TOKEN}"}}'):
        assert TOKEN not in Redactor([]).text(text)
        assert ASCII not in Redactor([]).encoded(text.encode())


# --- where it stands


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-api-key", ASCII),
        (b"X-Api-Key", b" " + ASCII + b" "),
        (b"api-key", ASCII),
        (b"x-goog-api-key", ASCII),
        (b"Authorization", b"Bearer " + ASCII),
        (b"authorization", b"bearer  " + ASCII),
        (b"authorization", ASCII),
        (b"authorization", basic(TOKEN, "")),
        (b"authorization", basic("any", TOKEN)),
        (b"authorization", b"basic " + basic(TOKEN, "secret")[6:].rstrip(b"=")),
    ],
)
def test_a_token_is_found_in_the_place_of_a_key(name: bytes, value: bytes) -> None:
    found = find_tokens([(b"host", b"h"), (name, value), (b"accept", b"*/*")])
    assert found is not None
    assert found.as_key == presented(TOKEN) == Presented(token_digest(TOKEN), True)
    assert found.as_password is None
    assert found.others == ((b"host", b"h"), (b"accept", b"*/*"))


@pytest.mark.parametrize("value", [basic("any", TOKEN), basic("", TOKEN), basic(TOKEN, ""), b"Bearer " + ASCII])
def test_a_token_is_found_in_the_place_of_a_proxys_password(value: bytes) -> None:
    found = find_tokens([(b"Proxy-Authorization", value), (b"x-api-key", b"sk-own")])
    assert found is not None
    assert (found.as_key, found.as_password) == (None, presented(TOKEN))
    assert found.others == ((b"x-api-key", b"sk-own"),)


def test_of_several_tokens_the_first_header_in_the_order_of_precedence_counts() -> None:
    found = find_tokens([(b"x-api-key", OTHER.encode()), (b"x-api-key", ASCII), (b"authorization", b"Bearer " + ASCII)])
    assert found is not None
    assert (found.as_key, found.others) == (presented(TOKEN), ())


@pytest.mark.parametrize("value", [b"aib_", b"aib_short", ASCII[:-1], b"Bearer aib_\xff"])
def test_what_only_begins_like_a_token_is_one_that_no_bridge_has_made(value: bytes) -> None:
    found = find_tokens([(b"authorization", value)])
    assert found is not None and found.as_key is not None and not found.as_key.well_formed
    assert found.others == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"cookie", b"key=" + ASCII),
        (b"x-custom", ASCII),
        (b"x-custom", ASCII.replace(b"_", b"%5F")),
        (b"user-agent", b"curl " + ASCII + b"/1"),
        (b"sec-websocket-protocol", b"realtime, openai-insecure-api-key." + ASCII),
        (b"authorization", b'Digest username="' + ASCII + b'"'),
        (b"authorization", basic("user", f"Bearer {TOKEN}")),
        (ASCII, b"1"),
    ],
)
def test_a_token_in_another_place_is_removed_and_does_not_count(name: bytes, value: bytes) -> None:
    found = find_tokens([(name, value), (b"accept", b"*/*")])
    assert found is not None
    assert (found.as_key, found.as_password, found.others) == (None, None, ((b"accept", b"*/*"),))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-api-key", b"sk-ant-api03-x"),
        (b"authorization", b"Bearer sk-aib_"),
        (b"authorization", b"Basic nonsense"),
        (b"authorization", b"Basic " + b"=" * 5),
        (b"authorization", basic("ada", "opensesame")),
        (b"authorization", b""),
        (b"x-custom", b"aib_short"),
        (b"x-custom", b"100%"),
        (b"cookie", b"aib_" + b"0" * 49),
    ],
)
def test_other_headers_are_left_alone(name: bytes, value: bytes) -> None:
    assert find_tokens([(name, value)]) is None


names = st.sampled_from([b"authorization", b"proxy-authorization", b"x-api-key", b"x-custom"]) | st.binary(max_size=9)
values = st.lists(st.sampled_from([b"Basic ", b"Bearer ", ASCII, ASCII[:20], b":", b"%", b" "]) | st.binary(max_size=9))


@given(st.lists(st.tuples(names, values.map(b"".join)), max_size=4))
def test_no_head_is_an_error_and_no_token_is_left(fields: list[tuple[bytes, bytes]]) -> None:
    found = find_tokens(fields)
    left = fields if found is None else found.others
    assert not [field for field in left if ASCII in field[0] or ASCII in field[1]]


@pytest.mark.parametrize(
    "target",
    [
        f"/v1/models?key={TOKEN}",
        f"/v1/{TOKEN}/models",
        f"/v1/models?key={TOKEN}{TOKEN}&x={OTHER}",
        f"/v1/models?key={quote(TOKEN).replace('_', '%5f')}",
        f"/v1/models?key={TOKEN}&x={TOKEN.replace('_', '%5F')}",
    ],
)
def test_a_token_in_a_url_is_seen_and_removed(target: str) -> None:
    assert has_token(target.encode())
    clean = without_tokens(target.encode())
    assert clean.startswith(b"/") and not has_token(clean)


@pytest.mark.parametrize("target", ["/v1/models", "/v1/models?aib_x=aib_y", "/aib_" + "0" * 49, "/%", "/%zz?%61ib_"])
def test_other_urls_have_no_token(target: str) -> None:
    assert not has_token(target.encode())
