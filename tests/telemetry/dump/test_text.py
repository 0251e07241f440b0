"""What a dump shows of a message, and what it does not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aibridge_addon.credentials.redaction import Redactor
from aibridge_addon.telemetry.dump import text as dump_text
from aibridge_addon.telemetry.dump.text import Body
from tests.support.codings import CODINGS, Coding, encode, encode_stream

PRIVATE_END = b"-----END RSA PRIVATE KEY-----"
KEY = b"sk-ant-api03-abcdefghijklmnopqrstuvwxyz"
REDACT = Redactor([]).encoded
LIMIT = 1024 * 1024


def shown(pieces: list[bytes], coding: Coding | None = None, limit: int = LIMIT) -> bytes:
    body = Body(coding, REDACT, limit)
    return b"".join(body.feed(piece) for piece in pieces) + body.finish()


# --- heads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "masked"),
    [
        (b"Authorization", b"Bearer sk-secret-key-12345", b"Bear...2345"),
        (
            b"authorization",
            b"AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7/x, Signature=0123456789ab",
            b"AWS4...89ab",
        ),
        (b"Proxy-Authorization", b"Basic dXNlcjpwYXNzd29yZA==", b"Basi...ZA=="),
        (b"X-Api-Key", b"sk-ant-api03-abcdefgh", b"sk-a...efgh"),
        (b"api-key", b"0123456789abcdef0123", b"0123...0123"),
        (b"x-goog-api-key", b"short", b"s...t"),
        (b"x-functions-key", b"abcd", b"..."),
        (b"X-Auth-Token", b"thisisquitelong", b"th...ng"),
        (b"X-Amz-Security-Token", b"IQoJb3JpZ2luX2VjEJr//////////", b"IQoJ...////"),
        (b"x-coder-ai-governance-token", b"veryshort", b"v...t"),
        (b"CF-Access-Client-Secret", b"0123456789", b"01...89"),
        (b"Cookie", b"session=abc123", b"se...23"),
        (b"Set-Cookie", b"session=abc123; Path=/; HttpOnly", b"sess...Only"),
        (b"WWW-Authenticate", b'Basic realm="aibridge"', b'Basi...dge"'),
        (b"Proxy-Authenticate", b"Negotiate oYG2MIGzoAMK", b"Nego...oAMK"),
        (b"x-api-key", "hélloworld🌍!".encode(), "hé...🌍!".encode()),
        (b"x-api-key", b"", b""),
        # What a debugger needs is left alone.
        (b"anthropic-ratelimit-tokens-remaining", b"39000", b"39000"),
        (b"x-ratelimit-remaining-tokens", b"149984", b"149984"),
        (b"anthropic-beta", b"interleaved-thinking-2025-05-14", b"interleaved-thinking-2025-05-14"),
        (b"x-request-id", b"req_0123456789abcdef", b"req_0123456789abcdef"),
    ],
)
def test_credentials_in_headers_are_masked(name: bytes, value: bytes, masked: bytes) -> None:
    assert dump_text.head(b"POST / HTTP/1.1", [(name, value)]) == b"POST / HTTP/1.1\r\n%s: %s\r\n\r\n" % (name, masked)


@pytest.mark.parametrize(
    ("path", "masked"),
    [
        (b"/v1/messages", b"/v1/messages"),
        (b"/v1/messages?beta=true", b"/v1/messages?beta=true"),
        (b"/v1/models?key=0123456789abcdefghij&pageSize=2", b"/v1/models?key=0123...ghij&pageSize=2"),
        (b"/m?API%5FKEY=0123456789&a", b"/m?API%5FKEY=01...89&a"),
        (b"/m?X-Amz-Signature=0123456789&X-Amz-Date=20260101", b"/m?X-Amz-Signature=01...89&X-Amz-Date=20260101"),
        (b"/m?token=a=b=c&&=&x=%zz\xff", b"/m?token=a...c&&=&x=%zz\xff"),
        (b"/m?", b"/m?"),
    ],
)
def test_credentials_in_a_query_are_masked(path: bytes, masked: bytes) -> None:
    assert dump_text.target(path) == masked


def test_a_repeated_header_keeps_a_line_for_each_value_in_the_order_that_it_was_sent() -> None:
    fields = [(b"Set-Cookie", b"a=1"), (b"x", b"1"), (b"set-cookie", b"b=2")]
    lines = dump_text.head(b"HTTP/1.1 200 OK", fields).split(b"\r\n")
    assert lines == [b"HTTP/1.1 200 OK", b"Set-Cookie: ...", b"x: 1", b"set-cookie: ...", b"", b""]


def test_what_framed_the_body_on_the_wire_is_shown_but_does_not_frame_the_file() -> None:
    fields = [(b"Content-Length", b"999"), (b"Content-Encoding", b"zstd"), (b"Transfer-Encoding", b"chunked")]
    lines = dump_text.head(b"POST / HTTP/1.1", fields, length=7).split(b"\r\n")
    assert lines[1:-2] == [
        b"x-aibridge-wire-content-length: 999",
        b"x-aibridge-wire-content-encoding: zstd",
        b"x-aibridge-wire-transfer-encoding: chunked",
        b"content-length: 7",
    ]


# --- bodies that are there at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", CODINGS)
def test_a_json_body_is_decoded_and_indented_in_its_own_order_and_numbers(coding: Coding) -> None:
    body = b'{"z":1.0,"a":[18446744073709551617,"\\u00e9\xc3\xa9"],"z":null}'
    text = dump_text.whole(encode(body, coding), coding, REDACT, LIMIT)
    assert text == (
        b'{\n  "z": 1.0,\n  "a": [\n    18446744073709551617,\n    "\\u00e9\xc3\xa9"\n  ],\n  "z": null\n}\n'
    )


def test_what_is_no_json_or_too_much_of_it_stays_as_it_is() -> None:
    large = json.dumps({"text": "a b " * (dump_text.INDENTED // 4)}).encode()
    for body in (b"", b"{", b"--x\r\nname\r\n\xff\x00", large):
        assert dump_text.whole(body, None, REDACT, LIMIT) == body


@pytest.mark.parametrize("before", [b'"', b"\\n", b"\\\\n", b"\\t", b"\\u003e", b"=", b" "])
def test_a_secret_in_json_is_found_whatever_is_before_it(before: bytes) -> None:
    start = b"" if before == b'"' else b'"a'
    text = dump_text.whole(b'{"text":' + start + before + KEY + b'"}', None, REDACT, LIMIT)
    assert text == b'{\n  "text": ' + start + before + b'[redacted]"\n}\n'


def test_a_secret_is_found_where_a_large_body_is_looked_through_piece_by_piece() -> None:
    for shift in range(0, 60, 7):
        words = b"word " * ((dump_text.SLICE - 50) // 5) + b"x" * shift
        body = b'{"a":"' + words + b" " + KEY + b' after","b":"' + b"y " * dump_text.INDENTED + b'"}'
        assert dump_text.whole(body, None, REDACT, LIMIT) == body.replace(KEY, b"[redacted]")


@pytest.mark.parametrize("name", [b"Authorization: Bearer ", b'\\"api_key\\": \\"', b"aws_secret_access_key = "])
def test_a_long_line_is_not_divided_between_a_name_and_its_secret(name: bytes) -> None:
    secret = name + b"wJalrXUtnFEMI0K7MDENG0bPxRfiCYEXAMPLEKEY"
    for shift in range(0, 60, 7):
        words = b"word " * ((dump_text.SLICE - dump_text.BEHIND - 90) // 5) + b"x" * shift
        body = b'{"a":"' + words + b" " + secret + b' after","b":"' + b"y " * dump_text.INDENTED + b'"}'
        assert dump_text.whole(body, None, REDACT, LIMIT) == body.replace(secret, name + b"[redacted]")


@pytest.mark.parametrize("newline", [b"\n", b"\\n"])
def test_a_private_key_is_redacted_wherever_a_large_body_is_divided(newline: bytes) -> None:
    key = b"-----BEGIN RSA PRIVATE KEY-----" + newline + (b"Zq7Xw2Lk" * 8 + newline) * 25 + PRIVATE_END
    for shift in range(0, 2000, 300):
        words = b"word " * ((dump_text.SLICE - 2100) // 5) + b"x" * shift
        body = words + b" " + key + newline + b"after " + b"y " * dump_text.INDENTED
        assert dump_text.whole(body, None, REDACT, LIMIT) == body.replace(key, b"[redacted]")


def test_a_private_key_is_redacted_if_its_lines_come_one_by_one() -> None:
    lines = [b"-----BEGIN PRIVATE KEY-----\n", *[b"Zq7Xw2Lk" * 8 + b"\n"] * 5, PRIVATE_END + b"\n", b"after\n"]
    assert shown([b"before\n", *lines]) == b"before\n[redacted]\nafter\n"
    assert shown([b"before\n", *lines[:4]]) == b"before\n[redacted]\n"


def test_a_private_key_without_an_end_is_waited_for_up_to_a_limit() -> None:
    body = Body(None, REDACT, LIMIT)
    assert body.feed(b"-----BEGIN PRIVATE KEY-----\n") == b""
    assert body.feed(b"word\n" * (dump_text.MAX_KEY // 5 - 10)) == b""
    assert len(body.feed(b"word\n" * 10)) > dump_text.MAX_KEY - 100
    assert body.feed(b"word\n") == b"word\n"


def test_what_the_operator_names_is_redacted_too() -> None:
    redact = Redactor(["Projekt Ü\\w+"]).encoded
    body = '{"a":"Projekt Übermut, Projekt X"}'.encode()
    assert dump_text.whole(body, None, redact, LIMIT) == b'{\n  "a": "[redacted], Projekt X"\n}\n'


def test_a_body_that_decodes_to_more_than_the_limit_is_cut_and_says_so() -> None:
    text = dump_text.whole(encode(b"a" * 5_000_000, "gzip"), "gzip", REDACT, LIMIT)
    assert text.startswith(b"aaa") and len(text) <= LIMIT + 200
    assert text.endswith(b"\n[aibridge: the rest cannot be decoded: decoded body exceeds its limit of 1048576 bytes]\n")


def test_a_coding_that_is_not_known_is_told() -> None:
    text = dump_text.whole(b"\x00\x01", "snappy", REDACT, LIMIT)
    assert text == b"\n[aibridge: the rest cannot be decoded: unsupported content coding: 'snappy']\n"


# --- bodies that come in pieces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", CODINGS)
def test_whole_lines_are_shown_as_soon_as_they_have_come(coding: Coding) -> None:
    body = Body(coding, REDACT, LIMIT)
    first, second, third = encode_stream([b"data: 1\n\nda", b"ta: 2\n", b"\n"], coding)
    assert body.feed(first) == b"data: 1\n\n"
    assert body.feed(second) == b"data: 2\n"
    assert body.feed(third) + body.finish() == b"\n"


def test_a_secret_is_redacted_wherever_the_pieces_were_cut() -> None:
    text = b'data: {"a":"' + KEY + b'"}\n\ndata: [DONE]\n\n'
    for cut in range(len(text)):
        assert shown([text[:cut], text[cut:]]) == text.replace(KEY, b"[redacted]")
    assert shown([text[n : n + 1] for n in range(len(text))]) == text.replace(KEY, b"[redacted]")


def test_bytes_that_are_no_text_pass_unchanged() -> None:
    binary = bytes(range(256)) * 2_000
    assert shown([binary[:1000], binary[1000:]]) == binary


def test_a_line_without_an_end_does_not_pile_up() -> None:
    body = Body(None, REDACT, LIMIT)
    for piece in (b"x" * 10_000, b'"y" ' * 2_500):
        given = taken = 0
        for _ in range(100):
            given += len(piece)
            taken += len(body.feed(piece))
            assert given - taken <= 2 * dump_text.SLICE


def test_a_broken_coding_shows_what_came_before() -> None:
    good = encode_stream([b"data: 1\n", b"data: 2\n"], "gzip")[0]
    text = shown([good, b"\xff" * 100], "gzip")
    assert text.startswith(b"data: 1\n") and b"[aibridge: the rest cannot be decoded: " in text


def test_a_note_is_one_line_of_plain_text() -> None:
    assert dump_text.note("broke\noff: é") == b"\n[aibridge: broke?off: ?]\n"


# --- the document -------------------------------------------------------------------------------------------------


def test_the_document_names_all_that_is_masked() -> None:
    page = (Path(__file__).parents[3] / "docs" / "dumps.md").read_text()
    lists = re.findall(r"^\*\*(?:Headers|Query)\*\*:(.*?)(?=^\*\*)", page, re.MULTILINE | re.DOTALL)
    headers, query = (re.findall(r"`([^`]+)`", names) for names in lists)
    masked = [name.decode() for name in (*dump_text.MASKED_HEADERS, *dump_text.MASKED_ENDINGS)]
    assert sorted(headers) == sorted(masked)
    assert sorted(query) == sorted(dump_text.MASKED_PARAMETERS)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"GET /v1/models?a=b%20c&d HTTP/1.1", b"GET /v1/models?a=b%20c&d HTTP/1.1"),
        (b"GET /v1/Bearer%2Babcd%ZZ HTTP/2", b"GET /v1/Bearer%2Babcd%ZZ HTTP/2"),
        (b"GET /a/sk%2Dant-api03-0123456789abcdefghij/b HTTP/1.1", b"GET /a/[redacted]/b HTTP/1.1"),
        (b"GET /a?x=redis%3A%2F%2Fu%3Ahunter2%40h&y=1 HTTP/1.1", b"GET /a?x=[redacted]&y=1 HTTP/1.1"),
        (b"GET /a?x=redis%3A//u%3Ahunter2%40h&y=1 HTTP/1.1", b"GET [redacted] HTTP/1.1"),
        (b"GET /" + b"%20/" * 200 + b"sk%2Dant-api03-0123456789abcdefghij HTTP/1.1", b"GET [redacted] HTTP/1.1"),
    ],
)
def test_percent_encoded_secrets_in_a_first_line_are_redacted(line: bytes, shown: bytes) -> None:
    assert dump_text.line(line, Redactor().encoded) == shown
