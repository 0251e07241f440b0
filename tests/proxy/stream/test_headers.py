"""Headers of messages behave as mitmproxy's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy import http

from aibridge_addon.proxy.stream.headers import Headers
from aibridge_addon.proxy.stream.parsed_heads import request_of, response_of

FIELDS = (
    (b"Host", b"a.example"),
    (b"Set-Cookie", b"a=1"),
    (b"set-cookie", b"b=2"),
    (b"X-Empty", b""),
    ("X-\u00c4".encode(), "\u00e4".encode()),
    (b"X-\xff", b"\xff"),
)
NAMES: list[Any] = [
    *("host", "HOST", b"Host", "set-cookie", "x-empty", "x-\u00c4", "x-\u00e4", "X-\udcff", b"x-\xff", "absent", ""),
    *(b"", None, 1, "\ud800"),
]
USES: dict[str, Callable[[http.Headers, Any], object]] = {
    "[]": lambda headers, name: headers[name],
    "get": lambda headers, name: headers.get(name),
    "get with default": lambda headers, name: headers.get(name, b"default"),
    "get_all": lambda headers, name: headers.get_all(name),
    "in": lambda headers, name: name in headers,
    "in keys": lambda headers, name: name in list(headers.keys()),
    "pop": lambda headers, name: headers.pop(name, None),
    "setdefault": lambda headers, name: headers.setdefault(name, "new"),
    "set": lambda headers, name: headers.__setitem__(name, "new"),
    "add": lambda headers, name: headers.add(name, "new"),
    "delete": lambda headers, name: headers.__delitem__(name),
    "insert": lambda headers, name: headers.insert(0, name, "new"),
    "items": lambda headers, name: list(headers.items()),
}


def used(headers: http.Headers, use: str, name: object) -> tuple[object, ...]:
    """Return what a use returns or raises, and the headers after it."""
    try:
        result: object = USES[use](headers, name)
    except Exception as e:  # noqa: BLE001 (whatever mitmproxy's class raises)
        result = type(e), str(e)
    return result, headers.fields, repr(headers)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", NAMES)
def test_headers_are_looked_up_and_changed_as_in_mitmproxys_class(use: str, name: object) -> None:
    assert used(Headers(FIELDS), use, name) == used(http.Headers(FIELDS), use, name)


def test_copies_of_headers_are_equal_to_them() -> None:
    headers = Headers(FIELDS)
    for copied in (headers.copy(), copy.deepcopy(headers), pickle.loads(pickle.dumps(headers))):
        assert copied == headers == http.Headers(FIELDS)
        assert copied is not headers


def test_heads_of_messages_have_these_headers() -> None:
    request, response = request_of([b"GET / HTTP/1.1", b"Host: a"]), response_of([b"HTTP/1.1 200 OK", b"A: b"])
    assert type(request.headers) is type(response.headers) is Headers
    assert request.copy().headers == request.headers
