"""Txtar archives: bytes are exact, and a full response comes apart."""

from pathlib import Path

import pytest

from tests.support import txtar


def test_sections_keep_their_exact_bytes() -> None:
    archive = txtar.parse(b"a case\n-- request --\n{}\n-- streaming/turn-2 --\nHTTP/1.1 200 OK\r\n\r\n\x00\xff\n\n")
    assert archive.comment == "a case\n"
    assert archive.files == {"request": b"{}\n", "streaming/turn-2": b"HTTP/1.1 200 OK\r\n\r\n\x00\xff\n\n"}


@pytest.mark.parametrize(
    ("data", "files"),
    [
        (b"", {}),
        (b"only a comment\n", {}),
        (b"-- a --\n-- b --\n", {"a": b"", "b": b""}),
        (b"-- a --", {"a": b""}),
        (b"-- a --\nx -- b --\n--b--\n", {"a": b"x -- b --\n--b--\n"}),
        (b"-- a --\r\nx\r\n", {"a": b"x\r\n"}),
    ],
)
def test_only_whole_lines_are_markers(data: bytes, files: dict[str, bytes]) -> None:
    assert txtar.parse(data).files == files


def test_the_same_name_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="twice"):
        txtar.parse(b"-- a --\n-- a --\n")


def test_an_archive_is_loaded_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "case.txtar").write_bytes(b"-- a --\r\n1\r\n")
    assert txtar.load(tmp_path / "case.txtar").files == {"a": b"1\r\n"}


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_full_response_comes_apart(line_end: bytes) -> None:
    lines = [b"HTTP/1.1 529 Overloaded", b"Content-Type: text/plain", b"x:", b"", b"a\r\n\r\nb\n"]
    section = line_end.join(lines)
    assert txtar.is_response(section)
    response = txtar.parse_response(section)
    assert response.status == 529
    assert response.headers == ((b"Content-Type", b"text/plain"), (b"x", b""))
    assert response.body == b"a\r\n\r\nb\n"


@pytest.mark.parametrize("section", [b"{}", b"HTTP/1.1 200 OK\n", b"HTTP/1.1 200 OK\nnonsense\n\n"])
def test_what_is_no_response_is_an_error(section: bytes) -> None:
    with pytest.raises(ValueError, match="not a"):
        txtar.parse_response(section)
