"""Generated turns in the words of each dialect, streamed and as one body."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from aibridge_addon import dialects
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.chat_completions.inject import ChatInjection
from aibridge_addon.dialects.messages.inject import MessagesInjection
from aibridge_addon.dialects.responses.inject import ResponsesInjection
from aibridge_addon.dialects.turns import Injection
from tests.support.streams import INJECTED, Block, Conversation, Style, Turn, Writer, Written, conversations

COMMENTS = (b": keep-alive", b":")
PING = b'event: ping\ndata: {"type": "ping"}'


@dataclass(frozen=True)
class Form:
    """A dialect, and how its turns are written."""

    dialect: Dialect
    injection: Injection
    write: Callable[[Turn, int, Style], Written]
    conversations: st.SearchStrategy[Conversation]

    def written(self, conversation: Conversation) -> list[Written]:
        return [self.write(turn, number, conversation.style) for number, turn in enumerate(conversation.turns)]


# --- Messages ---------------------------------------------------------------------------------------------------


def messages(turn: Turn, number: int, style: Style) -> Written:
    writer = Writer(style, number, (PING, *COMMENTS))
    said = [block for place, spoken in enumerate(turn.blocks) for block in _blocks(spoken, f"{number}_{place}")]
    usage: dict[str, Any] = {
        "input_tokens": turn.input_tokens,
        "cache_creation_input_tokens": turn.written_tokens,
        "cache_read_input_tokens": turn.cached_tokens,
        "output_tokens": 1,
        "service_tier": "standard",
    }
    final = {"output_tokens": turn.output_tokens}
    told = {
        "plain": final,
        "repeated": usage | final,
        "zeros": dict.fromkeys(("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"), 0) | final,
        "searched": final | {"server_tool_use": {"web_search_requests": number + 1}},
    }.get(style.usage, final)
    message = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": "claude-1", "content": said}
    ending = {"stop_reason": "tool_use" if turn.has("client", "injected") else "end_turn", "stop_sequence": None}
    start = message | {"content": [], "usage": usage} | dict.fromkeys(ending)
    writer.event("message_start", {"type": "message_start", "message": start})
    for index, block in enumerate(said):
        begun, deltas = _deltas(block, writer)
        writer.event("content_block_start", {"type": "content_block_start", "index": index, "content_block": begun})
        for delta in deltas:
            writer.event("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta})
        writer.event("content_block_stop", {"type": "content_block_stop", "index": index})
    if style.usage == "twice":
        early = {"type": "message_delta", "delta": dict.fromkeys(ending), "usage": {"output_tokens": 1}}
        writer.event("message_delta", early)
    writer.event("message_delta", {"type": "message_delta", "delta": ending, "usage": told})
    writer.event("message_stop", {"type": "message_stop"})
    whole = usage | {name: count for name, count in told.items() if count}
    return Written(writer.written(), message | ending | {"usage": whole}, said)


def _blocks(block: Block, id_: str) -> list[dict[str, Any]]:
    match block.kind:
        case "text":
            return [{"type": "text", "text": block.text}]
        case "cited":
            place = {"type": "char_location", "cited_text": "a", "document_index": 0}
            return [{"type": "text", "text": block.text, "citations": [place, place | {"document_index": 1}]}]
        case "thinking":
            return [{"type": "thinking", "thinking": block.text, "signature": f"c2ln{id_}"}]
        case "redacted":
            return [{"type": "redacted_thinking", "data": f"cmVk{id_}"}]
        case "server":
            found = {"type": "web_search_result", "url": "https://a", "title": block.text, "index": 7, "rank": 1e-07}
            return [
                {"type": "server_tool_use", "id": f"srvtoolu_{id_}", "name": "web_search", "input": {"query": "q"}},
                {"type": "web_search_tool_result", "tool_use_id": f"srvtoolu_{id_}", "content": [found]},
            ]
        case "unknown":
            return [{"type": "hologram", "id": id_, "frames": block.text, "index": 4}]
        case _:
            return [{"type": "tool_use", "id": f"toolu_{id_}", "name": block.name, "input": _input(block.text)}]


def _input(text: str) -> Any:
    """The input of a call. A text that is no JSON stays a text."""
    try:
        return json.loads(text or "{}")
    except json.JSONDecodeError:
        return text


def _deltas(block: dict[str, Any], writer: Writer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How a block begins, and what it grows by."""
    match block["type"]:
        case "text":
            deltas = [{"type": "text_delta", "text": piece} for piece in writer.pieces(block["text"])]
            cited = [{"type": "citations_delta", "citation": citation} for citation in block.get("citations", ())]
            return block | {"text": ""} | ({"citations": []} if cited else {}), deltas + cited
        case "thinking":
            thoughts = [{"type": "thinking_delta", "thinking": piece} for piece in writer.pieces(block["thinking"])]
            signature = {"type": "signature_delta", "signature": block["signature"]}
            return block | {"thinking": "", "signature": ""}, [*thoughts, signature]
        case "tool_use" | "server_tool_use":
            given = block["input"]
            pieces = writer.pieces(given if isinstance(given, str) else json.dumps(given)) if given else []
            return block | {"input": {}}, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        case "hologram":
            frames = [{"type": "hologram_delta", "frames": piece} for piece in writer.pieces(block["frames"])]
            return block | {"frames": ""}, frames
        case _:
            return block, []


# --- Chat Completions -------------------------------------------------------------------------------------------


def chat(turn: Turn, number: int, style: Style) -> Written:
    writer = Writer(style, number, COMMENTS)
    members = {"thinking": "reasoning_content", "text": "content"}
    texts = {name: "".join(block.text for block in turn.blocks if block.kind == kind) for kind, name in members.items()}
    spoken = [block for block in turn.blocks if block.name]
    calls: list[dict[str, Any]] = [
        {"id": f"call_{number}_{n}", "type": "function", "function": {"name": block.name, "arguments": block.text}}
        for n, block in enumerate(spoken)
    ]
    usage = {
        "prompt_tokens": turn.input_tokens,
        "completion_tokens": turn.output_tokens,
        "total_tokens": turn.input_tokens + turn.output_tokens,
        "prompt_tokens_details": {"cached_tokens": turn.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": turn.reasoning_tokens},
    }
    head = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1767225600 + number}
    head |= {"model": "gpt-1"}
    message: dict[str, Any] = {"role": "assistant", "content": texts["content"] or None}
    message |= {"reasoning_content": texts["reasoning_content"]} if texts["reasoning_content"] else {}
    message |= {"tool_calls": calls} if calls else {}
    reason = "tool_calls" if calls else "stop"

    said: list[dict[str, Any]] = [
        {members[block.kind]: piece}
        for block in turn.blocks
        if block.kind in members
        for piece in writer.pieces(block.text)
    ]
    called: list[list[dict[str, Any]]] = [
        [{"tool_calls": [delta]} for delta in _call_deltas(call, style.first_index + n, writer)]
        for n, call in enumerate(calls)
    ]
    deltas = [{"role": "assistant", "content": ""}, *writer.shuffled([said, *called])]
    riding = [] if style.whole_output or len(deltas) < 2 else [deltas.pop()]
    finish = {"index": 0, "delta": riding[0] if riding else {}, "finish_reason": reason}
    chunks: list[dict[str, Any]] = [
        head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    chunks.append(head | {"choices": [finish]})
    if style.usage == "every":
        chunks = [chunk | {"usage": usage | {"completion_tokens": n + 1}} for n, chunk in enumerate(chunks)]
    if style.usage == "separate":
        chunks = [chunk | {"usage": None} for chunk in chunks] + [head | {"choices": [], "usage": usage}]
    elif style.usage != "none":
        chunks[-1] |= {"usage": usage}
    for chunk in chunks:
        writer.event("", chunk)
    if style.done:
        writer.event("", "[DONE]")
    choice = {"index": 0, "message": message, "finish_reason": reason}
    body = head | {"object": "chat.completion", "choices": [choice]}
    return Written(writer.written(), body | ({"usage": usage} if style.usage != "none" else {}), [message])


def _call_deltas(call: dict[str, Any], index: int, writer: Writer) -> list[dict[str, Any]]:
    name, *names = writer.pieces(call["function"]["name"])
    arguments = call["function"]["arguments"]
    first = call | {"index": index, "function": {"name": name, "arguments": ""}}
    named = [{"index": index, "function": {"name": piece}} for piece in names]
    pieces = writer.pieces(arguments) if arguments else []
    return [first, *named, *({"index": index, "function": {"arguments": piece}} for piece in pieces)]


# --- Responses --------------------------------------------------------------------------------------------------

_OWN_TOOLS = [
    {"type": "function", "name": "Read", "parameters": {"type": "object", "properties": {}}, "strict": True},
    {"type": "namespace", "name": "functions", "tools": [{"type": "function", "name": "exec_command"}]},
]


def responses(turn: Turn, number: int, style: Style) -> Written:
    writer = Writer(style, number, COMMENTS)
    items = [_item(block, f"{number}_{place}") for place, block in enumerate(turn.blocks)]
    usage = {
        "input_tokens": turn.input_tokens,
        "input_tokens_details": {"cached_tokens": turn.cached_tokens},
        "output_tokens": turn.output_tokens,
        "output_tokens_details": {"reasoning_tokens": turn.reasoning_tokens},
        "total_tokens": turn.input_tokens + turn.output_tokens,
    }
    echoed = [{"type": "function", "name": name} for name in INJECTED] if style.usage == "ours echoed" else []
    response = {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1767225600 + number,
        "status": "in_progress",
        "model": "gpt-1",
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": f"resp_{number - 1}" if number else None,
        "tool_choice": "auto" if number else "required",
        "tools": [*_OWN_TOOLS, *echoed],
        "usage": None,
        "metadata": {},
    }
    sequence = iter(range(10_000))

    def event(kind: str, **members: Any) -> None:
        numbers = {"sequence_number": next(sequence)} if style.numbered else {}
        writer.event(f"response.{kind}" if style.named else "", {"type": f"response.{kind}"} | numbers | members)

    event("created", response=response)
    event("in_progress", response=response)
    for index, item in enumerate(items):
        _tell(item, index, event, writer)
    whole = response | {"status": "completed", "output": items, "usage": usage}
    event("completed", response=whole if style.whole_output else whole | {"output": []})
    return Written(writer.written(), whole, items)


def _item(block: Block, id_: str) -> dict[str, Any]:
    match block.kind:
        case "text":
            part = {"type": "output_text", "annotations": [], "logprobs": [], "text": block.text}
            return {"id": f"m_{id_}", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
        case "thinking":
            summary = [{"type": "summary_text", "text": block.text}]
            return {"id": f"rs_{id_}", "type": "reasoning", "summary": summary, "encrypted_content": f"enc{id_}"}
        case "server":
            action = {"type": "search", "query": block.text, "output_index": 8}
            return {"id": f"ws_{id_}", "type": "web_search_call", "status": "completed", "action": action}
        case "unknown":
            return {"id": f"h_{id_}", "type": "hologram", "frames": block.text, "sequence_number": 1e-07}
        case "custom":
            call = {"id": f"ctc_{id_}", "type": "custom_tool_call", "call_id": f"call_{id_}"}
            return call | {"name": "exec", "input": block.text}
        case _:
            call = {"id": f"fc_{id_}", "type": "function_call", "status": "completed", "call_id": f"call_{id_}"}
            return call | {"name": block.name, "arguments": block.text}


def _tell(item: dict[str, Any], index: int, event: Callable[..., None], writer: Writer) -> None:
    place = {"item_id": item["id"], "output_index": index}
    kind = item["type"]
    growing = {"message": "content", "function_call": "arguments", "custom_tool_call": "input", "hologram": "frames"}
    empty: dict[str, Any] = {growing[kind]: [] if kind == "message" else ""} if kind in growing else {}
    event("output_item.added", output_index=index, item=item | {"status": "in_progress"} | empty)
    match kind:
        case "message":
            part = item["content"][0]
            within = place | {"content_index": 0}
            event("content_part.added", **within, part=part | {"text": ""})
            for piece in writer.pieces(part["text"]):
                event("output_text.delta", **within, delta=piece, logprobs=[])
            event("output_text.done", **within, text=part["text"], logprobs=[])
            event("content_part.done", **within, part=part)
        case "reasoning":
            for piece in writer.pieces(item["summary"][0]["text"]):
                event("reasoning_summary_text.delta", **place, summary_index=0, delta=piece)
        case "function_call":
            for piece in writer.pieces(item["arguments"]):
                event("function_call_arguments.delta", **place, delta=piece)
            event("function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"])
        case "custom_tool_call":
            for piece in writer.pieces(item["input"]):
                event("custom_tool_call_input.delta", **place, delta=piece)
        case "hologram":
            for piece in writer.pieces(item["frames"]):
                event("hologram.delta", **place, delta={"frames": piece, "output_index": 6})
        case _:
            event("web_search_call.searching", **place)
    event("output_item.done", output_index=index, item=item)


MESSAGE_KINDS: Sequence[str] = ("text", "text", "cited", "thinking", "redacted", "server", "unknown")
FORMS: Mapping[str, Form] = {
    "messages": Form(
        dialects.MESSAGES,
        MessagesInjection(),
        messages,
        conversations(MESSAGE_KINDS, ("plain", "repeated", "zeros", "searched", "twice")),
    ),
    "chat_completions": Form(
        dialects.CHAT_COMPLETIONS,
        ChatInjection(),
        chat,
        conversations(("text", "text", "thinking"), ("none", "finish", "separate", "every")),
    ),
    "responses": Form(
        dialects.RESPONSES,
        ResponsesInjection(),
        responses,
        conversations(("text", "text", "thinking", "server", "unknown"), ("ours echoed", "not echoed"), custom=True),
    ),
}
