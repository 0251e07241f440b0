"""Generated turns as Bedrock gives them: Converse, and Messages in InvokeModel; with a strict client for each.

Streams are framed by AWS's own code.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import botocore.eventstream
import botocore.parsers
import botocore.session
from anthropic.lib.bedrock._stream_decoder import AWSEventStreamDecoder

from aibridge_addon import dialects
from aibridge_addon.dialects.bedrock.converse_inject import ConverseInjection
from aibridge_addon.dialects.bedrock.invoke_inject import InvokeInjection
from aibridge_addon.wire import sse
from tests.support import aws_frames
from tests.support.client_view import CLIENTS, Client, Members, MessagesClient, View
from tests.support.sdk_parsers import BODY_PARSERS, PARSERS
from tests.support.stream_forms import FORMS, MESSAGE_KINDS, Form, messages
from tests.support.streams import INJECTED, Block, Style, Turn, Writer, Written, conversations

PADDING = "abcdefghijklmn"


def converse(turn: Turn, number: int, style: Style) -> Written:
    writer = Writer(style, number, (b": ",))
    said = [block for place, spoken in enumerate(turn.blocks) for block in _blocks(spoken, f"{number}_{place}")]
    usage = {
        "inputTokens": turn.input_tokens,
        "outputTokens": turn.output_tokens,
        "totalTokens": turn.input_tokens + turn.output_tokens,
        "cacheReadInputTokens": turn.cached_tokens,
        "cacheWriteInputTokens": turn.written_tokens,
    }
    metrics = {"latencyMs": 100 + number}
    reason = "tool_use" if turn.has("client", "injected") else "end_turn"

    def event(name: str, members: Members) -> None:
        writer.event(name, members | {"p": PADDING[: number + 1]})

    event("messageStart", {"role": "assistant"})
    for index, block in enumerate(said):
        begun, deltas = _deltas(block, writer)
        if begun:
            event("contentBlockStart", {"start": begun, "contentBlockIndex": index})
        for delta in deltas:
            event("contentBlockDelta", {"delta": delta, "contentBlockIndex": index})
        event("contentBlockStop", {"contentBlockIndex": index})
    event("messageStop", {"stopReason": reason})
    event("metadata", {"usage": usage, "metrics": metrics})
    body = {"output": {"message": {"role": "assistant", "content": said}}, "stopReason": reason}
    stream = b"".join(aws_frames.converse_frames(writer.written()))
    return Written(stream, body | {"usage": usage, "metrics": metrics}, said)


def _blocks(block: Block, id_: str) -> list[Members]:
    match block.kind:
        case "text":
            return [{"text": block.text}]
        case "cited":
            cited: list[Members] = [
                {"title": "a", "location": {"documentChar": {"documentIndex": n, "start": 0, "end": 1}}}
                for n in range(2)
            ]
            return [{"citationsContent": {"content": [{"text": block.text}], "citations": cited}}]
        case "thinking":
            return [{"reasoningContent": {"reasoningText": {"text": block.text, "signature": f"c2ln{id_}"}}}]
        case "redacted":
            return [{"reasoningContent": {"redactedContent": "cmVkYWN0ZWQ="}}]
        case "server":
            use = {"toolUseId": f"srv_{id_}", "name": "nova_grounding", "type": "server_tool_use", "input": {"q": "a"}}
            found = {"toolUseId": f"srv_{id_}", "type": "nova_grounding_result", "status": "success"}
            return [{"toolUse": use}, {"toolResult": found | {"content": [{"json": {"contentBlockIndex": 9}}]}}]
        case "unknown":
            return [{"hologram": {"frames": block.text, "contentBlockIndex": 4}}]
        case _:
            given = json.loads(block.text or "{}")
            return [{"toolUse": {"toolUseId": f"tooluse_{id_}", "name": block.name, "input": given}}]


def _deltas(block: Members, writer: Writer) -> tuple[Members, list[Members]]:
    """How a block begins, and what it grows by."""
    [(kind, content)] = block.items()
    match kind:
        case "text":
            return {}, [{"text": piece} for piece in writer.pieces(content)]
        case "citationsContent":
            texts: list[Members] = [{"text": piece} for piece in writer.pieces(content["content"][0]["text"])]
            return {}, [*texts, *({"citation": citation} for citation in content["citations"])]
        case "reasoningContent" if "redactedContent" in content:
            return {}, [{"reasoningContent": content}]
        case "reasoningContent":
            thought = content["reasoningText"]
            thoughts = [{"reasoningContent": {"text": piece}} for piece in writer.pieces(thought["text"])]
            return {}, [*thoughts, {"reasoningContent": {"signature": thought["signature"]}}]
        case "toolUse":
            begun = {name: value for name, value in content.items() if name != "input"}
            given = writer.pieces(json.dumps(content["input"])) if content["input"] else []
            return {"toolUse": begun}, [{"toolUse": {"input": piece}} for piece in given]
        case "toolResult":
            found = {name: value for name, value in content.items() if name != "content"}
            return {"toolResult": found}, [{"toolResult": content["content"]}]
        case _:
            return block, []


class ConverseClient(Client):
    def stream(self, answer: bytes) -> View:
        return self.events([(frame.kind, frame.payload) for frame in frames(answer)])

    def events(self, events: Sequence[tuple[str, bytes]]) -> View:
        return self.body(self.merged([(name, json.loads(data)) for name, data in events]))

    def merged(self, events: Sequence[tuple[str, Members]]) -> Members:
        """The blocking answer with the content of a stream."""
        names = [name for name, _ in events if name != "ping"]
        assert names[0] == "messageStart" and names.count("messageStart") == 1
        assert names[-2:] == ["messageStop", "metadata"] and names.count("messageStop") == 1
        blocks: list[Members] = []
        is_open = False
        ended: Members = {}
        for name, event in events:
            match name:
                case "contentBlockStart":
                    assert not is_open and event["contentBlockIndex"] == len(blocks)
                    blocks.append(event["start"])
                    is_open = True
                case "contentBlockDelta":
                    if not is_open:
                        blocks.append({})
                        is_open = True
                    assert event["contentBlockIndex"] == len(blocks) - 1
                    blocks[-1] = _grown(blocks[-1], event["delta"])
                case "contentBlockStop":
                    if not is_open:  # an empty text
                        blocks.append({"text": ""})
                    assert event["contentBlockIndex"] == len(blocks) - 1
                    is_open = False
                case "messageStart" | "ping":
                    pass
                case "messageStop" | "metadata":
                    ended |= event
                case _:
                    raise AssertionError(name)
        message = {"role": "assistant", "content": [_whole(block) for block in blocks]}
        return {"output": {"message": message}} | ended

    def body(self, body: Members) -> View:
        usage, message = body["usage"], body["output"]["message"]
        assert message["role"] == "assistant" and body["stopReason"] in ("end_turn", "tool_use")
        assert usage["totalTokens"] == usage["inputTokens"] + usage["outputTokens"]
        assert body["metrics"]["latencyMs"] >= 100
        counts = usage["inputTokens"], usage["cacheReadInputTokens"], usage["outputTokens"]
        calls = body["stopReason"] == "tool_use"
        return View("", message["content"], calls, counts, usage["cacheWriteInputTokens"])

    def expected(self, turns: Sequence[Sequence[Members]]) -> Any:
        return [block for said in turns for block in said if block.get("toolUse", {}).get("name") not in INJECTED]

    def check_history(self, request: Members, said: Sequence[Members], call_ids: Sequence[str]) -> None:
        spoken, answer = request["messages"][-2:]
        assert spoken == {
            "role": "assistant",
            "content": [block for block in said if block.get("text", "a").strip()],
        }
        assert answer["role"] == "user"
        assert [block["toolResult"]["toolUseId"] for block in answer["content"]] == call_ids
        uses = [block["toolUse"] for block in said if "toolUse" in block]
        assert [use["toolUseId"] for use in uses if use.get("type") != "server_tool_use"] == call_ids


def _grown(block: Members, delta: Members) -> Members:
    [(kind, more)] = delta.items()
    match kind:
        case "text":
            return block | {"text": block.get("text", "") + more}
        case "citation":
            return block | {"citations": [*block.get("citations", ()), more]}
        case "toolUse":
            return block | {"json": block.get("json", "") + more["input"]}
        case "toolResult":
            return block | {"content": [*block.get("content", ()), *more]}
        case _:
            thought = block.get("reasoningContent", {})
            return {"reasoningContent": {**thought, **{n: thought.get(n, "") + v for n, v in more.items()}}}


def _whole(block: Members) -> Members:
    if "toolUse" in block:
        return {"toolUse": block["toolUse"] | {"input": json.loads(block.get("json") or "{}")}}
    if "toolResult" in block:
        return {"toolResult": block["toolResult"] | {"content": block["content"]}}
    if "citations" in block:
        said = [{"text": block.get("text", "")}]
        return {"citationsContent": {"content": said, "citations": block["citations"]}}
    if (thought := block.get("reasoningContent")) and "redactedContent" not in thought:
        return {"reasoningContent": {"reasoningText": {"text": "", **thought}}}
    return block


METRICS = "amazon-bedrock-invocationMetrics"


def invoke(turn: Turn, number: int, style: Style) -> Written:
    written = messages(turn, number, style)
    metrics = {
        "inputTokenCount": turn.input_tokens,
        "outputTokenCount": turn.output_tokens,
        "cacheReadInputTokenCount": turn.cached_tokens,
        "invocationLatency": 100 + number,
        "firstByteLatency": 10 + number,
    }
    frames = b"".join(aws_frames.invoke_frames(written.stream, metrics))
    return Written(frames, written.body, written.said)


class InvokeClient(MessagesClient):
    def stream(self, answer: bytes) -> View:
        inner = [json.loads(frame.inner) for frame in frames(answer) if frame.kind != "ping"]
        measured = [event.pop(METRICS) for event in inner if METRICS in event]
        view = self.events([(event["type"], json.dumps(event).encode()) for event in inner])
        assert view.usage is not None and len(measured) <= 1
        for metrics in measured:
            assert metrics["outputTokenCount"] == view.usage[2]
            assert view.usage[0] in (metrics["inputTokenCount"], 0)
        return view


def parsed_invoke(answer: bytes) -> Members:
    """Anthropic's own client decodes AWS's framing."""
    decoder = AWSEventStreamDecoder()
    events = [json.loads(event.data) for event in decoder.iter_bytes(iter([answer]))]
    stream = b"".join(sse.event(event["type"], json.dumps(event).encode()) for event in events)
    return PARSERS["messages"](stream)


def frames(stream: bytes) -> Iterator[aws_frames.Read]:
    """The messages of a whole stream, read by botocore, which checks their checksums."""
    split = aws_frames.split(stream)
    assert b"".join(split) == stream
    return map(aws_frames.read, split)


_bedrock = botocore.session.Session().get_service_model("bedrock-runtime")


class _Raw:
    """A body, as botocore reads it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> Iterator[bytes]:
        yield self._body


def parsed_converse(answer: bytes) -> Members:
    """The blocking answer with the content of a stream, whose events botocore has parsed."""
    shape = _bedrock.operation_model("ConverseStream").get_event_stream_output()
    parser = botocore.parsers.EventStreamJSONParser()
    stream = botocore.eventstream.EventStream(_Raw(answer), shape, parser, "ConverseStream")
    return ConverseClient().merged([next(iter(_plain(event).items())) for event in stream])


def parsed_converse_body(answer: bytes) -> Members:
    response = {"body": answer, "headers": {}, "status_code": 200}
    shape = _bedrock.operation_model("Converse").output_shape
    body = _plain(botocore.parsers.create_parser("rest-json").parse(response, shape))
    assert isinstance(body, dict)
    return body


def _plain(value: Any) -> Any:
    """A parsed value with its bytes in base64 again."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return {name: _plain(member) for name, member in value.items()} if isinstance(value, dict) else value


CONVERSE_KINDS: Sequence[str] = ("text", "text", "cited", "thinking", "redacted", "server", "unknown")
BEDROCK_FORMS: Mapping[str, Form] = {
    "converse": Form(
        dialects.CONVERSE_STREAM,
        ConverseInjection(streaming=True),
        converse,
        conversations(CONVERSE_KINDS, ("plain",)),
    ),
    "invoke": Form(
        dialects.INVOKE_STREAM,
        InvokeInjection(),
        invoke,
        conversations(MESSAGE_KINDS, ("plain", "repeated", "zeros", "searched", "twice")),
    ),
}
ALL_FORMS: Mapping[str, Form] = {**FORMS, **BEDROCK_FORMS}
ALL_CLIENTS: Mapping[str, Client] = {**CLIENTS, "converse": ConverseClient(), "invoke": InvokeClient()}
ALL_PARSERS: Mapping[str, Callable[[bytes], Members]] = {
    **PARSERS,
    "converse": parsed_converse,
    "invoke": parsed_invoke,
}
ALL_BODY_PARSERS: Mapping[str, Callable[[bytes], Members]] = {
    **BODY_PARSERS,
    "converse": parsed_converse_body,
    "invoke": BODY_PARSERS["messages"],
}
