"""Short text fields of forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.wire.multipart import MAX_VALUE, WINDOW, form_fields

TYPE = "multipart/form-data; boundary=b"


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


END = b"--b--\r\n"


def test_fields_before_and_after_a_large_file_are_read() -> None:
    file = part("file", b"\x00\xff" * WINDOW * 2, '; filename="a.wav"')
    body = part("model", b"whisper-1") + file + part("n", b"2") + END
    assert form_fields(TYPE, body) == {"model": "whisper-1", "n": "2"}


def test_files_and_long_values_are_not_read() -> None:
    body = part("file", b"a", '; filename="a"') + part("prompt", b"x" * (MAX_VALUE + 1)) + part("n", b"1") + END
    assert form_fields(TYPE, body) == {"n": "1"}


@pytest.mark.parametrize(
    "content_type", ["application/json", "", "text/plain; boundary=b", "multipart/mixed; boundary=b"]
)
def test_another_content_type_is_no_form(content_type: str) -> None:
    assert form_fields(content_type, part("n", b"1") + END) is None


@pytest.mark.parametrize("content_type", ["Multipart/Form-Data; Boundary=b", 'multipart/form-data; boundary="b"'])
def test_the_boundary_may_be_quoted_and_names_have_any_case(content_type: str) -> None:
    assert form_fields(content_type, part("n", b"1") + END) == {"n": "1"}


def test_a_form_without_a_boundary_has_no_fields() -> None:
    assert form_fields("multipart/form-data", part("n", b"1") + END) == {}


@given(st.text(max_size=60), st.binary(max_size=300))
def test_no_body_makes_the_reading_fail(parameters: str, body: bytes) -> None:
    form_fields(f"multipart/form-data; boundary={parameters}", body)
