"""The fixtures as cases: one for each answer that a file holds. `fixtures/README.md` describes the format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from aibridge_addon import dialects
from aibridge_addon.dialects.base import Dialect
from tests.support import aws_frames, txtar

ROOT = Path(__file__).resolve().parents[2] / "fixtures"
DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect for dialect in (dialects.MESSAGES, dialects.CHAT_COMPLETIONS, dialects.RESPONSES)
}
OF_BEDROCK: dict[str, tuple[Dialect, Dialect]] = {
    "invoke": (dialects.INVOKE, dialects.INVOKE_STREAM),
    "converse": (dialects.CONVERSE, dialects.CONVERSE_STREAM),
}
"""For blocking answers, and for streams."""
BEDROCK_MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
"""Whom requests to Bedrock ask for, in their path."""


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
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    """By lower-case name; those of a full response only."""
    cost: tuple[str, ...] = ()
    """Lines of a number and its price, and the sum. Empty: not checked."""

    @property
    def wire_format(self) -> Dialect:
        pair = OF_BEDROCK.get(self.dialect)
        return DIALECTS[self.dialect] if pair is None else pair[self.streaming]

    @property
    def is_event_stream(self) -> bool:
        return self.content_type.startswith(("text/event-stream", aws_frames.CONTENT_TYPE))

    def __str__(self) -> str:
        return f"{self.dialect}/{self.name}/{'streaming' if self.streaming else 'blocking'}"


def cases() -> Iterator[Case]:
    """Every answer of every fixture, in a stable order."""
    for path in sorted(ROOT.glob("*/*.txtar")):
        archive = txtar.load(path)
        for mode in ("streaming", "blocking"):
            if mode in archive.files:
                yield _case(path, archive.files, mode)


def invoke_cases() -> Iterator[Case]:
    """Every Messages fixture as Bedrock's InvokeModel has it: neither model nor `stream` in the body, framed by AWS."""
    for found in cases():
        if found.dialect == "messages":
            yield _as_invoke(found)


def cost_usd(case: Case) -> float | None:
    """What a case costs by its own lines; None: they leave it open."""
    if not case.cost:
        return None
    *lines, total = case.cost
    terms = (Decimal(number) * Decimal(price) for number, price in map(str.split, lines))
    assert sum(terms) / 1_000_000 == Decimal(total.removeprefix("= ")), f"{case}: the lines add up to something else"
    return float(total.removeprefix("= "))


def case(name: str) -> Case:
    """The case of this name: `messages/simple/streaming`."""
    every = invoke_cases() if name.startswith("invoke/") else cases()
    return next(found for found in every if str(found) == name)


def _as_invoke(messages: Case) -> Case:
    request = json.loads(messages.request)
    del request["model"]
    request.pop("stream", None)
    request["anthropic_version"] = "bedrock-2023-05-31"
    case = replace(
        messages,
        dialect="invoke",
        request=json.dumps(request, ensure_ascii=False).encode(),
        expected=_of_bedrock_model(messages.expected),
        cost=(),  # AWS has prices of its own
    )
    if not messages.is_event_stream:
        return case
    metrics = {"inputTokenCount": 1, "outputTokenCount": 1, "invocationLatency": 912, "firstByteLatency": 88}
    body = b"".join(aws_frames.invoke_frames(messages.body, metrics))
    return replace(case, content_type=aws_frames.CONTENT_TYPE, body=body)


def _of_bedrock_model(expected: dict[str, Any]) -> dict[str, Any]:
    changed = {**expected, "model": BEDROCK_MODEL}
    if "iterations" in expected:
        models = {expected["model"]: BEDROCK_MODEL}
        changed["iterations"] = [
            row | {"model": models.get(row["model"], row["model"])} for row in expected["iterations"]
        ]
    return changed


def _case(path: Path, files: dict[str, bytes], mode: str) -> Case:
    streaming = mode == "streaming"
    section = files[mode]
    headers: dict[str, str] = {}
    status, content_type, body = 200, "text/event-stream" if streaming else "application/json", section
    if txtar.is_response(section):
        response = txtar.parse_response(section)
        status, body = response.status, response.body
        headers = {name.decode().lower(): value.decode() for name, value in response.headers}
        content_type = headers.get("content-type", "")
    if content_type == aws_frames.CONTENT_TYPE:
        body = b"".join(aws_frames.converse_frames(body))
    return Case(
        dialect=path.parent.name,
        name=path.stem,
        streaming=streaming,
        request=files["request"] if path.parent.name in OF_BEDROCK else _request(files["request"], streaming),
        request_headers=tuple(_headers(files.get("headers", b""))),
        status=status,
        content_type=content_type,
        body=body,
        expected=json.loads(files.get(f"expect.{mode}") or files["expect"]),
        answer_headers=headers,
        cost=tuple(files.get("cost", b"").decode().splitlines()),
    )


def _request(section: bytes, streaming: bool) -> bytes:
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
