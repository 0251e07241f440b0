"""Routes of which only the model and the usage are recorded: embeddings, legacy completions, images, audio and others.

The upstream receives the client's bytes, and the client the upstream's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import StartProxy
from tests.support.client import gateway_client
from tests.support.database import Row, Table
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

INTERCEPTIONS: Table = "aibridge_interceptions"
TOKENS: Table = "aibridge_token_usages"
TEXTS: tuple[Table, ...] = ("aibridge_user_prompts", "aibridge_answers", "aibridge_tool_usages")
UNCOUNTED = "usage: no token counts"
KEY = "sk-0123456789-abcdefghijkl"
BOUNDARY = "----formdata-7f3a"


def form(*, file: bytes = b"RIFF....WAVE\r\n\r\n--not-a-boundary", **fields: str) -> bytes:
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    parts.insert(0, b'Content-Disposition: form-data; name="file"; filename="model.wav"\r\n\r\n' + file)
    return b"".join(b"--%s\r\n%s\r\n" % (BOUNDARY.encode(), part) for part in parts) + f"--{BOUNDARY}--\r\n".encode()


def events(*datas: object) -> bytes:
    return b"".join(b"data: %s\n\n" % (d if isinstance(d, bytes) else json.dumps(d).encode()) for d in datas)


VECTORS = {"object": "list", "data": [{"embedding": [0.25] * 60_000}] * 2}
IMAGE = {"created": 1, "data": [{"b64_json": "QUJD" * 200_000}], "size": "1024x1536", "quality": "high"}
IMAGE_USAGE = {
    "total_tokens": 4210,
    "input_tokens": 50,
    "output_tokens": 4160,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
}
HEARD = {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59}
CHUNK = {"id": "cmpl-1", "object": "text_completion", "model": "gpt-3.5-turbo-instruct", "choices": [{"text": "a"}]}


@dataclass(frozen=True)
class Case:
    path: str
    request: object
    answer: object
    counts: tuple[int, int]
    """Input and output tokens."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """A part of the token row's metadata."""
    model: str = "gpt-image-1"
    content_type: str = "application/json"
    unpriced: str | None = None

    @property
    def body(self) -> bytes:
        return self.request if isinstance(self.request, bytes) else json.dumps(self.request).encode()

    @property
    def answer_body(self) -> bytes:
        return self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()


STREAM, AUDIO = "text/event-stream", "audio/mpeg"
ASKED = {"model": "gpt-image-1", "prompt": "a cat", "n": 2, "size": "auto", "quality": "low"}
CASES = {
    "embeddings": Case(
        "/embeddings",
        {"model": "text-embedding-3-small", "input": ["a", "b"]},
        VECTORS | {"model": "text-embedding-3-small", "usage": {"prompt_tokens": 8, "total_tokens": 8}},
        (8, 0),
        model="text-embedding-3-small",
    ),
    "completions": Case(
        "/completions",
        {"model": "gpt-3.5-turbo-instruct", "prompt": "Say a"},
        CHUNK | {"usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}},
        (5, 7),
        model="gpt-3.5-turbo-instruct",
    ),
    "streamed completions": Case(
        "/completions",
        {"model": "gpt-3.5-turbo-instruct", "stream": True, "stream_options": {"include_usage": True}},
        events(
            CHUNK | {"usage": None},
            CHUNK | {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}},
            b"[DONE]",
        ),
        (5, 7),
        model="gpt-3.5-turbo-instruct",
        content_type=STREAM,
    ),
    "images": Case(
        "/images/generations",
        ASKED,
        IMAGE | {"usage": IMAGE_USAGE},
        (50, 4160),
        {"images": 2, "size": "1024x1536", "quality": "high", "input_tokens_details.image_tokens": 40},
    ),
    "images of a model that counts no tokens": Case(
        "/images/generations",
        ASKED | {"model": "dall-e-3", "size": "1024x1024", "quality": "hd"},
        {"created": 1, "data": [{"url": "https://images.example/1"}]},
        (0, 0),
        {"images": 2, "size": "1024x1024", "quality": "hd"},
        model="dall-e-3",
        unpriced=UNCOUNTED,
    ),
    "streamed images": Case(
        "/images/generations",
        ASKED | {"stream": True},
        events(
            {"type": "image_generation.partial_image", "b64_json": "QUJD" * 1000},
            {"type": "image_generation.completed", "b64_json": "QUJD", "quality": "low", "usage": IMAGE_USAGE},
        ),
        (50, 4160),
        content_type=STREAM,
    ),
    "edited images": Case(
        "/images/edits", form(model="gpt-image-1", n="3"), IMAGE | {"usage": IMAGE_USAGE}, (50, 4160), {"images": 3}
    ),
    "varied images": Case(
        "/images/variations", form(model="dall-e-2"), {"data": []}, (0, 0), model="dall-e-2", unpriced=UNCOUNTED
    ),
    "speech": Case(
        "/audio/speech",
        {"model": "tts-1", "input": "héllo", "voice": "alloy"},
        b"ID3\x04" + bytes(range(256)) * 3000,
        (0, 0),
        {"input_characters": 5},
        model="tts-1",
        content_type=AUDIO,
        unpriced=UNCOUNTED,
    ),
    "streamed speech": Case(
        "/audio/speech",
        {"model": "gpt-4o-mini-tts", "input": "hello", "stream_format": "sse"},
        events(
            {"type": "speech.audio.delta", "audio": "QUJD"},
            {"type": "speech.audio.done", "usage": {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}},
        ),
        (14, 101),
        {"input_characters": 5},
        model="gpt-4o-mini-tts",
        content_type=STREAM,
    ),
    "transcription": Case(
        "/audio/transcriptions",
        form(model="gpt-4o-transcribe", language="en"),
        {"text": 'the \\"usage\\": {', "usage": HEARD},
        (14, 45),
        model="gpt-4o-transcribe",
    ),
    "a large upload": Case(
        "/audio/transcriptions",
        form(model="gpt-4o-transcribe", file=bytes(range(256)) * 4000),
        {"text": "hi", "usage": HEARD},
        (14, 45),
        model="gpt-4o-transcribe",
    ),
    "transcription by duration": Case(
        "/audio/transcriptions",
        form(model="whisper-1"),
        {"text": "hi", "usage": {"type": "duration", "seconds": 12.5}},
        (0, 0),
        {"seconds": 12.5},
        model="whisper-1",
        unpriced="usage: seconds",
    ),
    "subtitles": Case(
        "/audio/translations",
        form(model="whisper-1", response_format="srt"),
        b"1\n00:00:00,000 --> 00:00:01,000\nhi\n",
        (0, 0),
        model="whisper-1",
        content_type="text/plain; charset=utf-8",
        unpriced=UNCOUNTED,
    ),
    "streamed transcription": Case(
        "/audio/transcriptions",
        form(model="gpt-4o-transcribe", stream="true"),
        events(
            {"type": "transcript.text.delta", "delta": 'say "usage"'},
            {"type": "transcript.text.done", "text": "hi", "usage": HEARD},
        ),
        (14, 45),
        model="gpt-4o-transcribe",
        content_type=STREAM,
    ),
    "compaction": Case(
        "/responses/compact",
        {"model": "gpt-5.1", "input": [{"role": "user", "content": "hello"}]},
        {
            "id": "resp_1",
            "object": "response.compaction",
            "output": [{"type": "message", "content": "hello"}, {"type": "compaction", "encrypted_content": "QUJD"}],
            "usage": {
                "input_tokens": 139,
                "input_tokens_details": {"cached_tokens": 100},
                "output_tokens": 438,
                "total_tokens": 577,
            },
        },
        (39, 438),
        model="gpt-5.1",
    ),
}


@pytest.fixture
def process(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(
        config="providers:\n"
        f"  - {{name: openai, type: openai, base_url: '{upstream.url}/v1', price_as: openai}}\n"
        f"  - {{name: my-azure, type: azure, base_url: '{upstream.url}'}}\n"
        f"  - {{name: copilot, type: copilot, base_url: '{upstream.url}'}}\n"
        "limits: {request_body: 2MiB}\n"
    )


def send(process: RunningProxy, upstream: ScriptedUpstream, case: Case, path: str, status: int = 200) -> list[Row]:
    """Let the case happen, and return the interceptions that it adds."""
    headers = [("content-type", case.content_type)]
    upstream.answer(Answer(status, headers, case.answer_body, framing="chunked" if status == 200 else "length"))
    before = len(process.rows(INTERCEPTIONS))
    is_form = isinstance(case.request, bytes)
    content_type = f"multipart/form-data; boundary={BOUNDARY}" if is_form else "application/json"
    with gateway_client(process) as client:
        sent = {"authorization": f"Bearer {KEY}", "content-type": content_type}
        answer = client.post(path, content=case.body, headers=sent)
    assert (answer.status_code, answer.content) == (status, case.answer_body)
    assert upstream.requests[-1].body == case.body
    return process.rows(INTERCEPTIONS)[before:]


def test_each_route_leaves_its_model_its_tokens_and_no_texts(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    for name, case in CASES.items():
        [row] = send(process, upstream, case, f"/openai/v1{case.path}")
        assert (row["status"], row["route"], row["model"]) == ("completed", f"/v1{case.path}", case.model), name
        assert row["streaming"] == (case.content_type == STREAM), name
        [tokens] = [found for found in process.rows(TOKENS) if found["interception_id"] == row["id"]]
        assert (tokens["input_tokens"], tokens["output_tokens"]) == case.counts, name
        assert tokens["completeness"] == "complete", name
        assert tokens["metadata"].items() >= case.metadata.items(), name
        assert tokens["model"] == case.model, name
        if case.unpriced is not None:
            assert (tokens["cost_usd"], tokens["unpriced"]) == (None, case.unpriced), name
    assert [process.rows(table) for table in TEXTS] == [[], [], []]


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/my-azure/openai/deployments/ada/embeddings", "/openai/deployments/{id}/embeddings"),
        ("/my-azure/openai/v1/embeddings", "/openai/v1/embeddings"),
        ("/copilot/embeddings", "/embeddings"),
    ],
)
def test_other_types_of_providers_have_these_routes_too(
    process: RunningProxy, upstream: ScriptedUpstream, path: str, template: str
) -> None:
    [row] = send(process, upstream, CASES["embeddings"], path)
    assert row["route"] == template
    assert [found["input_tokens"] for found in process.rows(TOKENS)] == [8]


def test_a_deployment_stands_for_the_model_where_no_answer_names_one(
    process: RunningProxy, upstream: ScriptedUpstream
) -> None:
    [row] = send(process, upstream, CASES["speech"], "/my-azure/openai/deployments/our-voice/audio/speech")
    assert row["model"] == "our-voice"


def test_a_moderation_is_free_and_recorded(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    answer = {"id": "modr-1", "model": "omni-moderation-latest", "results": [{"flagged": False}]}
    case = Case("", {"model": "omni-moderation-latest", "input": "a"}, answer, (0, 0))
    [row] = send(process, upstream, case, "/openai/v1/moderations")
    [tokens] = process.rows(TOKENS)
    assert (row["status"], tokens["cost_usd"], tokens["cost_source"]) == ("completed", 0, "price_list")


def test_an_error_is_recorded_without_tokens(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    error = {"error": {"type": "invalid_request_error", "message": "no such model"}}
    [row] = send(process, upstream, Case("", {"model": "a"}, error, (0, 0)), "/openai/v1/embeddings", status=404)
    assert (row["status"], row["error_type"]) == ("failed", "invalid_request_error")
    assert process.rows(TOKENS) == []


def test_an_upload_larger_than_the_limit_passes_unread(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    case = Case("", form(model="gpt-image-1", file=bytes(3 * 2**20)), {"data": []}, (0, 0))
    assert send(process, upstream, case, "/openai/v1/images/edits") == []


def test_a_body_that_is_neither_a_form_nor_json_passes(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    case = Case("", b"\x00\x01", {"data": []}, (0, 0))
    [row] = send(process, upstream, case, "/openai/v1/audio/transcriptions")
    assert (row["status"], row["model"]) == ("completed", "")
