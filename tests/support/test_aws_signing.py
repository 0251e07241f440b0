"""The check of signatures sees every change that AWS would see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.aws_signing import is_validly_signed, signed_headers
from tests.support.script import Request

HOST = "localhost:1234"
BODY = b'{"messages": []}'


def arrived(target: str, authority: str = HOST, body: bytes = BODY) -> Request:
    headers = tuple((name.encode(), value.encode()) for name, value in signed_headers(f"https://{HOST}{target}", BODY))
    return Request(0, 0, "1.1", "POST", target, authority, headers, body)


@pytest.mark.parametrize("target", ["/model/m-v1:0/invoke", "/model/m-v1%3A0/invoke", "/model/a%2Fb/converse"])
def test_a_request_that_was_not_changed_is_valid(target: str) -> None:
    assert is_validly_signed(arrived(target))


def test_a_change_of_body_path_host_or_signed_header_is_not() -> None:
    request = arrived("/model/m-v1%3A0/invoke")
    headers = tuple((k, b"text/plain" if k == b"content-type" else v) for k, v in request.headers)
    assert not is_validly_signed(replace(request, body=BODY + b" "))
    assert not is_validly_signed(replace(request, target="/model/m-v1:0/invoke"))
    assert not is_validly_signed(replace(request, authority="localhost"))
    assert not is_validly_signed(replace(request, headers=headers))


def test_a_header_that_was_not_signed_may_come_and_go() -> None:
    request = arrived("/model/m/invoke")
    assert is_validly_signed(replace(request, headers=(*request.headers, (b"via", b"1.1 proxy"))))
