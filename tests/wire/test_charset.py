"""Bodies in other charsets, and JSON that breaks the rules."""

from __future__ import annotations

import pytest

from aibridge_addon.wire.charset import to_utf8
from aibridge_addon.wire.json_object import NotJSON, decode, decode_tolerantly
from aibridge_addon.wire.json_values import as_count, maybe_count

TEXT = '{"name":"Grüße"}'


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (TEXT.encode(), ""),
        (TEXT.encode(), "application/json; charset=latin-1"),
        (TEXT.encode("utf-8-sig"), "application/json"),
        (TEXT.encode("utf-16"), "application/json; charset=utf-16"),
        (TEXT.encode("utf-16-le"), "application/json"),
        (TEXT.encode("utf-16-be"), 'application/json; charset="UTF-16"'),
        (TEXT.encode("latin-1"), "application/json; charset=ISO-8859-1"),
        (TEXT.encode("cp1252"), "application/json;charset=windows-1252"),
    ],
)
def test_a_body_becomes_utf_8(body: bytes, content_type: str) -> None:
    assert to_utf8(body, content_type) == TEXT.encode()


@pytest.mark.parametrize("charset", ["", "punycode", "unicode_escape", "rot13", "no-such", "utf-no"])
def test_a_charset_that_is_not_known_changes_nothing(charset: str) -> None:
    body = TEXT.encode("latin-1")
    assert to_utf8(body, f"application/json; charset={charset}") == body


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a":NaN,"b":1.5}', {"a": "NaN", "b": 1.5}),
        (b'{"a":-Infinity,"b":2}', {"a": "-Infinity", "b": 2}),
        (b'{"a":1e999}', {"a": "1e999"}),
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
    ],
)
def test_what_is_plain_in_odd_json_is_read(data: bytes, value: object) -> None:
    assert decode_tolerantly(data) == value


@pytest.mark.parametrize("data", [b"{", b"\xff", b'{"a":1}x', b""])
def test_what_is_no_json_is_refused_by_both(data: bytes) -> None:
    for reads in (decode, decode_tolerantly):
        with pytest.raises(NotJSON):
            reads(data)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        *((7, 7), (7.0, 7), ("7", 7), (" 7 ", 7), ("7.0", 7), (0, 0), ("0", 0), (2**63 - 1, 2**63 - 1)),
        *((None, None), (True, None), (-1, None), (1.5, None), ("", None), ("x", None), ("-1", None), ("²", None)),
        *((2**63, None), (1e30, None), ("9" * 30, None), ([], None), ({}, None)),
    ],
)
def test_a_count_is_read_in_every_plain_form(value: object, count: int | None) -> None:
    assert maybe_count(value) == count
    assert as_count(value) == (count or 0)
