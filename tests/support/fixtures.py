"""The fixtures as cases: one for each answer that a file holds. `fixtures/README.md` describes the format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aibridge_addon import dialects
from aibridge_addon.dialects.base import Dialect
from tests.support import txtar

ROOT = Path(__file__).resolve().parents[2] / "fixtures"
DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect for dialect in (dialects.MESSAGES, dialects.CHAT_COMPLETIONS, dialects.RESPONSES)
}


@dataclass(frozen=True)
class Case:
    dialect: str
    name: str
    streaming: bool
    request: bytes
    request_headers: tuple[tuple[bytes, bytes], ...]
    status: int
    content_type: str
    body: bytes
    expected: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.dialect}/{self.name}/{'streaming' if self.streaming else 'blocking'}"


def cases() -> Iterator[Case]:
    """Every answer of every fixture, in a stable order."""
    for path in sorted(ROOT.glob("*/*.txtar")):
        archive = txtar.load(path)
        for mode in ("streaming", "blocking"):
            if mode in archive.files:
                yield _case(path, archive.files, mode)


def case(name: str) -> Case:
    """The case of this name: `messages/simple/streaming`."""
    return next(found for found in cases() if str(found) == name)


def _case(path: Path, files: dict[str, bytes], mode: str) -> Case:
    streaming = mode == "streaming"
    section = files[mode]
    status, content_type, body = 200, "text/event-stream" if streaming else "application/json", section
    if txtar.is_response(section):
        response = txtar.parse_response(section)
        status, body = response.status, response.body
        content_type = {k.lower(): v for k, v in response.headers}.get(b"content-type", b"").decode()
    return Case(
        dialect=path.parent.name,
        name=path.stem,
        streaming=streaming,
        request=_request(files["request"], streaming=streaming),
        request_headers=tuple(_headers(files.get("headers", b""))),
        status=status,
        content_type=content_type,
        body=body,
        expected=json.loads(files.get(f"expect.{mode}") or files["expect"]),
    )


def _request(section: bytes, *, streaming: bool) -> bytes:
    body = json.loads(section)
    body["stream"] = streaming
    if not streaming:
        del body["stream"]
        body.pop("stream_options", None)
    return json.dumps(body, ensure_ascii=False).encode()


def _headers(section: bytes) -> Iterator[tuple[bytes, bytes]]:
    for line in section.strip().split(b"\n"):
        name, colon, value = line.partition(b":")
        if colon:
            yield name.strip(), value.strip()
