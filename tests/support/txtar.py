"""Read txtar archives: a comment, then sections that each begin with a line ``-- name --``.

The bytes of a section are exact: everything after its marker line, up to the line of the next marker.
A section whose bytes begin with ``HTTP/`` is a full raw response: status line, headers, blank line, body.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_MARKER = re.compile(rb"^-- (?P<name>\S.*?) --\r?(?:\n|\Z)", re.MULTILINE)
_HEAD_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True)
class Archive:
    comment: str
    files: dict[str, bytes]


@dataclass(frozen=True)
class RawResponse:
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def parse(data: bytes) -> Archive:
    markers = list(_MARKER.finditer(data))
    comment = data[: markers[0].start()] if markers else data
    files: dict[str, bytes] = {}
    ends = [*(marker.start() for marker in markers[1:]), len(data)]
    for marker, end in zip(markers, ends, strict=False):
        name = marker["name"].decode()
        if name in files:
            raise ValueError(f"section {name!r} appears twice")
        files[name] = data[marker.end() : end]
    return Archive(comment.decode(), files)


def load(path: Path | str) -> Archive:
    return parse(Path(path).read_bytes())


def is_response(section: bytes) -> bool:
    return section.startswith(b"HTTP/")


def parse_response(section: bytes) -> RawResponse:
    """Take a full raw response apart; the body keeps its exact bytes, the head's lines may end in LF."""
    end = _HEAD_END.search(section)
    if not is_response(section) or end is None:
        raise ValueError(f"not a full raw response: {section[:40]!r}")
    status_line, *lines = section[: end.start()].replace(b"\r\n", b"\n").split(b"\n")
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise ValueError(f"not a header line: {line!r}")
        headers.append((name, value.strip()))
    return RawResponse(int(status_line.split()[1]), tuple(headers), section[end.end() :])
