"""What a strict client sees in an answer: it refuses whatever breaks the dialect's rules for a stream."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aibridge_addon.wire import sse
from tests.support.streams import INJECTED

Members = dict[str, Any]


@dataclass
class View:
    id: str
    visible: Any
    """The content, in the dialect's terms."""
    ends_for_calls: bool
    usage: tuple[int, int, int] | None
    """Input, of it cached, and output tokens."""
    written: int = 0
    """Input tokens that went into a cache (Messages)."""
    reasoning: int = 0
    """Output tokens of thoughts (OpenAI's)."""


class Client(ABC):
    def stream(self, answer: bytes) -> View:
        scanner = sse.SSEScanner()
        parsed = [sse.parse(raw) for raw, _ in scanner.feed(answer)]
        assert scanner.finish().strip(b"\r\n") == b""
        return self.events([(name, data) for name, data in parsed if data is not None])

    @abstractmethod
    def events(self, events: Sequence[tuple[str, bytes]]) -> View: ...

    @abstractmethod
    def body(self, body: Members) -> View: ...

    @abstractmethod
    def expected(self, turns: Sequence[Sequence[Members]]) -> Any:
        """The visible content of what was said in these turns."""

    @abstractmethod
    def check_history(self, request: Members, said: Sequence[Members], call_ids: Sequence[str]) -> None:
        """The request carries what was said, verbatim, and then each call's result, in call order."""


class MessagesClient(Client):
    def events(self, events: Sequence[tuple[str, bytes]]) -> View:
        message: Members = {}
        blocks: list[Members] = []
        is_open = False
        delta: Members = {}
        stopped = False
        for name, data in events:
            event = json.loads(data)
            assert event["type"] == name and (name == "ping" or not stopped)
            match name:
                case "ping":
                    pass
                case "message_start":
                    assert not message
                    message = event["message"]
                case "content_block_start":
                    assert message and not delta and not is_open and event["index"] == len(blocks)
                    blocks.append(event["content_block"])
                    is_open = True
                case "content_block_delta":
                    assert is_open and event["index"] == len(blocks) - 1
                    self._grow(blocks[-1], event["delta"])
                case "content_block_stop":
                    assert is_open and event["index"] == len(blocks) - 1
                    is_open = False
                case "message_delta":
                    assert not is_open
                    delta = event
                    message |= event["delta"]
                    message["usage"] |= event["usage"]
                case "message_stop":
                    assert delta
                    stopped = True
                case _:
                    raise AssertionError(name)
        assert stopped
        return self.body(message | {"content": [self._grown(block) for block in blocks]})

    def body(self, body: Members) -> View:
        usage = body["usage"]
        counts = usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]
        assert body["stop_reason"] in ("end_turn", "tool_use")
        written = usage["cache_creation_input_tokens"]
        return View(body["id"], body["content"], body["stop_reason"] == "tool_use", counts, written)

    def expected(self, turns: Sequence[Sequence[Members]]) -> Any:
        return [block for said in turns for block in said if block.get("name") not in INJECTED]

    def check_history(self, request: Members, said: Sequence[Members], call_ids: Sequence[str]) -> None:
        spoken, answer = request["messages"][-2:]
        blank = [block for block in said if block["type"] == "text" and not block["text"].strip()]
        assert spoken == {"role": "assistant", "content": [block for block in said if block not in blank]}
        assert [block["tool_use_id"] for block in answer["content"]] == call_ids
        called = [block["id"] for block in said if block["type"] == "tool_use"]
        assert answer["role"] == "user" and called == call_ids

    @staticmethod
    def _grow(block: Members, delta: Members) -> None:
        match delta["type"]:
            case "citations_delta":
                block["citations"] = [*block["citations"], delta["citation"]]
            case "signature_delta":
                block["signature"] = delta["signature"]
            case "input_json_delta":
                block["json"] = block.get("json", "") + delta["partial_json"]
            case kind:
                name = kind.removesuffix("_delta") if kind != "hologram_delta" else "frames"
                block[name] += delta[name]

    @staticmethod
    def _grown(block: Members) -> Members:
        text = block.pop("json", None)
        return block if text is None else block | {"input": json.loads(text)}


class ChatClient(Client):
    def events(self, events: Sequence[tuple[str, bytes]]) -> View:
        assert [data for _, data in events].count(b"[DONE]") == (events[-1][1] == b"[DONE]")
        chunks = [json.loads(data) for _, data in events if data != b"[DONE]"]
        assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
        message: Members = {"content": None, "tool_calls": []}
        reasons: list[str] = []
        indexes: dict[int, Members] = {}
        roles = 0
        usage = None
        for chunk in chunks:
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                assert not reasons and choice["index"] == 0
                reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
                roles += "role" in choice["delta"]
                for name in ("content", "reasoning_content"):
                    if choice["delta"].get(name):
                        message[name] = (message.get(name) or "") + choice["delta"][name]
                for delta in choice["delta"].get("tool_calls", ()):
                    self._called(indexes, delta)
        assert len(reasons) == 1 and roles == 1
        numbers = sorted(indexes)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        message["tool_calls"] = [indexes[number] for number in numbers]
        ended = {"message": message, "finish_reason": reasons[0]}
        return self.body({"id": chunks[0]["id"], "choices": [ended], "usage": usage})

    @staticmethod
    def _called(indexes: dict[int, Members], delta: Members) -> None:
        call = indexes.setdefault(delta["index"], {"function": {"name": "", "arguments": ""}})
        call |= {name: delta[name] for name in ("id", "type") if name in delta}
        for name in ("name", "arguments"):
            call["function"][name] += delta["function"].get(name, "")

    def body(self, body: Members) -> View:
        (choice,) = body["choices"]
        told, usage = choice["message"], body.get("usage")
        assert choice["finish_reason"] in ("stop", "tool_calls")
        counts, reasoning = None, 0
        if usage:
            counts = (
                usage["prompt_tokens"],
                usage["prompt_tokens_details"]["cached_tokens"],
                usage["completion_tokens"],
            )
            reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
            assert usage["total_tokens"] == counts[0] + counts[2]
        ends_for_calls = choice["finish_reason"] == "tool_calls"
        return View(body["id"], self._told([told]), ends_for_calls, counts, reasoning=reasoning)

    @staticmethod
    def _told(messages: Sequence[Members]) -> Members:
        texts = {n: "".join(m.get(n) or "" for m in messages) for n in ("content", "reasoning_content")}
        calls = [call for message in messages for call in message.get("tool_calls") or ()]
        return texts | {"tool_calls": [call for call in calls if call["function"]["name"] not in INJECTED]}

    def expected(self, turns: Sequence[Sequence[Members]]) -> Any:
        return self._told([message for said in turns for message in said])

    def check_history(self, request: Members, said: Sequence[Members], call_ids: Sequence[str]) -> None:
        spoken, *answers = request["messages"][-1 - len(call_ids) :]
        calls = [
            call | {"function": call["function"] | {"arguments": call["function"]["arguments"] or "{}"}}
            for call in said[0]["tool_calls"]
        ]
        assert spoken == said[0] | {"tool_calls": calls}
        assert [(answer["role"], answer["tool_call_id"]) for answer in answers] == [("tool", id_) for id_ in call_ids]
        assert [call["id"] for call in calls] == call_ids


class ResponsesClient(Client):
    def events(self, events: Sequence[tuple[str, bytes]]) -> View:
        told = [json.loads(data) for _, data in events]
        assert all(name in ("", event["type"]) for (name, _), event in zip(events, told, strict=True))
        numbers = [event["sequence_number"] for event in told if "sequence_number" in event]
        assert numbers in ([], list(range(len(told))))
        kinds = [event["type"] for event in told]
        assert kinds[:2] == ["response.created", "response.in_progress"] and kinds.count("response.created") == 1
        assert kinds[-1] == "response.completed" and kinds.count("response.completed") == 1
        assert len({event["response"]["id"] for event in told if "response" in event}) == 1
        added: list[Members] = []
        done: list[Members] = []
        grown = ""
        for event in told[2:-1]:
            match event["type"]:
                case "response.output_item.added":
                    assert event["output_index"] == len(added) == len(done)
                    added.append(event["item"])
                    grown = ""
                case "response.output_item.done":
                    assert event["output_index"] == len(done) == len(added) - 1
                    assert event["item"]["id"] == added[-1]["id"]
                    assert grown == self._said(event["item"])
                    done.append(event["item"])
                case _:
                    delta = event.get("delta", "")
                    grown += delta if isinstance(delta, str) else delta["frames"]
                    assert event["output_index"] == len(done) == len(added) - 1
                    assert event["item_id"] == added[-1]["id"]
        whole = told[-1]["response"]
        assert whole["output"] in (done, [])
        return self.body(whole | {"output": done})

    @staticmethod
    def _said(item: Members) -> str:
        """What an item's deltas add up to."""
        match item["type"]:
            case "message":
                return "".join(part["text"] for part in item["content"])
            case "reasoning":
                return "".join(part["text"] for part in item["summary"])
            case kind:
                growing = {"function_call": "arguments", "custom_tool_call": "input", "hologram": "frames"}
                return str(item[growing[kind]]) if kind in growing else ""

    def body(self, body: Members) -> View:
        usage = body["usage"]
        counts = usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"], usage["output_tokens"]
        assert usage["total_tokens"] == counts[0] + counts[2]
        assert body["status"] == "completed"
        assert (body["tool_choice"], body["previous_response_id"]) == ("required", None)
        assert [tool["name"] for tool in body["tools"]] == ["Read", "functions"]
        calls = any(item["type"] in ("function_call", "custom_tool_call") for item in body["output"])
        reasoning = usage["output_tokens_details"]["reasoning_tokens"]
        return View(body["id"], body["output"], calls, counts, reasoning=reasoning)

    def expected(self, turns: Sequence[Sequence[Members]]) -> Any:
        return [item for said in turns for item in said if item.get("name") not in INJECTED]

    def check_history(self, request: Members, said: Sequence[Members], call_ids: Sequence[str]) -> None:
        _, *items = request["input"]
        assert items[: len(said)] == [
            item | {"arguments": item["arguments"] or "{}"} if item["type"] == "function_call" else item
            for item in said
        ]
        outputs = items[len(said) :]
        assert [(item["type"], item["call_id"]) for item in outputs] == [
            ("function_call_output", id_) for id_ in call_ids
        ]
        assert [item["call_id"] for item in said if item["type"] == "function_call"] == call_ids


CLIENTS: Mapping[str, Client] = {
    "messages": MessagesClient(),
    "chat_completions": ChatClient(),
    "responses": ResponsesClient(),
}
