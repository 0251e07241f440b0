"""Heads are read as mitmproxy reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.net.http import http1

from aibridge_addon.proxy.stream.parsed_heads import request_of, response_of

REQUESTS = [
    b"POST /v1/messages?beta=true HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3",
    b"GET http://a.example:8080/x HTTP/1.0\r\nX: 1\r\nx: 2",
    b"GET https://a.example HTTP/1.1",
    b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443",
    b"OPTIONS * HTTP/1.1\r\nX:\r\n y",
    b"GET /",
    b"GET  / HTTP/x",
    b"CONNECT a.example HTTP/1.1",
    b"GET / HTTP/1.1\r\nno colon",
    b"GET / HTTP/1.1\r\n first: continued",
]
RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nSet-Cookie: a\r\nset-cookie: b",
    b"HTTP/1.1 200",
    b"HTTP/1.0 404 Not Found at all",
    b"HTTP/1.1 two OK",
    b"HTTP 200 OK",
    b"HTTP/1.1 200 OK\r\n: no name",
]


def read(how: Callable[[list[bytes]], http.Message], head: bytes) -> Any:
    """Return the type and all members of the message, or the error."""
    try:
        message = how(head.split(b"\r\n"))
    except ValueError as e:
        return str(e)
    return type(message), type(message.data), {**message.get_state(), "timestamp_start": None}


@pytest.mark.parametrize("head", REQUESTS)
def test_a_request_has_the_same_members_or_the_same_error(head: bytes) -> None:
    assert read(request_of, head) == read(http1.read_request_head, head)


@pytest.mark.parametrize("head", RESPONSES)
def test_a_response_has_the_same_members_or_the_same_error(head: bytes) -> None:
    assert read(response_of, head) == read(http1.read_response_head, head)


def test_messages_have_the_attributes_that_mitmproxys_have() -> None:
    lines = REQUESTS[0].split(b"\r\n"), RESPONSES[0].split(b"\r\n")
    made = request_of(lines[0]), response_of(lines[1])
    others = http1.read_request_head(lines[0]), http1.read_response_head(lines[1])
    assert [vars(message).keys() for message in made] == [vars(message).keys() for message in others]
    assert [vars(message.data).keys() for message in made] == [vars(message.data).keys() for message in others]
    assert all(message.timestamp_start > 0 for message in made)
