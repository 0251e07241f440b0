"""The provider of the matrix: it answers each request by the case that runs, over HTTP and over WebSockets."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as UpgradeRequest
from websockets.http11 import Response
from websockets.sync.server import ServerConnection, serve

from tests.clients import cases, github
from tests.clients.cases import CaseName
from tests.support import aws_frames
from tests.support.script import Answer, Gate, Pause, Request
from tests.support.stream_forms import FORMS
from tests.support.streams import Style, Turn, Written

USAGE = {"messages": "plain", "chat_completions": "separate", "responses": "not echoed"}
ENDINGS = {"/messages": "messages", "/chat/completions": "chat_completions", "/responses": "responses"}
HELD_BACK = 3
"""Events at an answer's end that a cancelled client does not get."""
HELD_AT_MOST = 120.0


class Provider:
    """What the model says. The requests of a case are answered by their contents, in whatever order they come."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1000)
        self._lock = threading.Lock()
        self.begin("hello", "", "{}")

    def begin(self, case: CaseName, tool: str, arguments: str) -> None:
        """Answer by this case from now on. `tool` is the client's own; a client without one has its model here."""
        self.case = case
        self.gate = Gate()
        self.asked = 0
        """Turns that the model was asked for, each of which must be recorded."""
        self._tool, self._arguments = tool, arguments
        self._called: set[str] = set()
        """The ids of calls that were made: a request that contains one brings its result."""

    # --- over HTTP ------------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        """Answer a request; to be used as the handler of a scripted upstream."""
        path = request.path
        if request.method == "POST":
            for ending, dialect in ENDINGS.items():
                if path.endswith(ending):
                    return self._speak(dialect, request.body)
            if path.endswith(("/converse", "/converse-stream")):
                return self._converse(request.body, streaming=path.endswith("-stream"))
        if (said := github.answer(path)) is not None:
            return Answer.json(said)
        if path.endswith("/models"):
            return Answer.json({"object": "list", "data": [], "models": []})
        return Answer.json({"type": "error", "error": {"type": "not_found_error", "message": "not scripted"}}, 404)

    def _speak(self, dialect: str, body: bytes) -> Answer:
        written = self._written(dialect, body)
        if not json.loads(body).get("stream"):
            return Answer.json(written.body)
        events = [event + b"\n\n" for event in written.stream.split(b"\n\n") if event]
        return Answer.event_stream(*self._maybe_held(events, body))

    def _maybe_held(self, events: list[bytes], body: bytes) -> list[bytes | Pause]:
        """Stop before the end of an answer that will be cancelled; not of one to a client's call for itself."""
        if self.case != "cancelled" or f'"{self._tool}"'.encode() not in body:
            return [*events]
        return [*events[:-HELD_BACK], Pause(self.gate), *events[-HELD_BACK:]]

    def _written(self, dialect: str, body: bytes) -> Written:
        turn, number = self._next(body)
        # No provider sends a call's name in pieces, and not every client puts them together.
        pieces = 3 if turn.has("text") else 1
        return FORMS[dialect].write(turn, number, Style(usage=USAGE[dialect], pieces=pieces))

    def _next(self, body: bytes) -> tuple[Turn, int]:
        """What to say to this request, and a number for its ids."""
        with self._lock:
            self.asked += 1
            number = next(self._numbers)
            name = {"tool": self._tool, "injected": cases.INJECTED_NAME}.get(self.case, "")
            has_result = any(f"_{known}_0".encode() in body for known in self._called)
            if not name or f'"{name}"'.encode() not in body or has_result:
                return cases.answer(), number
            self._called.add(str(number))
        if self.case == "injected":
            return cases.call(name, json.dumps({"text": cases.INJECTED_OUTPUT}), "injected"), number
        return cases.call(name, self._arguments), number

    # --- Bedrock's Converse -----------------------------------------------------------------------------------------

    def _converse(self, body: bytes, *, streaming: bool) -> Answer:
        turn, number = self._next(body)
        [block] = turn.blocks
        calls = block.kind != "text"
        usage = {
            "inputTokens": turn.input_tokens,
            "outputTokens": turn.output_tokens,
            "totalTokens": turn.input_tokens + turn.output_tokens,
            "cacheReadInputTokens": turn.cached_tokens,
            "cacheWriteInputTokens": turn.written_tokens,
        }
        named = {"toolUseId": f"tooluse_{number}_0", "name": block.name}
        reason = "tool_use" if calls else "end_turn"
        request_id = [("x-amzn-requestid", f"6513270e-269e-4d37-b2a7-{number:012}")]
        if not streaming:
            said = {"toolUse": named | {"input": json.loads(block.text)}} if calls else {"text": block.text}
            message = {"role": "assistant", "content": [said]}
            whole = {"output": {"message": message}, "stopReason": reason, "usage": usage, "metrics": {"latencyMs": 9}}
            return Answer.json(whole, headers=request_id)
        delta = {"toolUse": {"input": block.text}} if calls else {"text": block.text}
        events: list[tuple[str, dict[str, Any]]] = [("messageStart", {"role": "assistant"})]
        if calls:
            events.append(("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": named}}))
        events += [
            ("contentBlockDelta", {"contentBlockIndex": 0, "delta": delta}),
            ("contentBlockStop", {"contentBlockIndex": 0}),
            ("messageStop", {"stopReason": reason}),
            ("metadata", {"usage": usage, "metrics": {"latencyMs": 9}}),
        ]
        frames = [aws_frames.event(kind, json.dumps(members).encode()) for kind, members in events]
        return Answer(200, [("content-type", aws_frames.CONTENT_TYPE), *request_id], self._maybe_held(frames, body))

    # --- over WebSockets --------------------------------------------------------------------------------------------

    @contextmanager
    def websockets(self) -> Iterator[int]:
        """Serve the Responses API over WebSockets on a free port; everything else there is 404."""
        with serve(self._socket, "127.0.0.1", 0, max_size=None, process_request=_only_upgrades) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield server.socket.getsockname()[1]
            finally:
                server.shutdown()
                thread.join()

    def _socket(self, connection: ServerConnection) -> None:
        try:
            for message in connection:
                data = message.encode() if isinstance(message, str) else message
                steps: list[bytes | Pause]
                if json.loads(data).get("generate") is False:  # Codex's prewarm: an answer without output
                    self.asked += 1
                    steps = [*_events(FORMS["responses"].write(Turn(()), next(self._numbers), Style(usage="")))]
                else:
                    steps = self._maybe_held(_events(self._written("responses", data)), data)
                for event in steps:
                    if isinstance(event, Pause):
                        asyncio.run(asyncio.wait_for(event.gate.passed(), HELD_AT_MOST))
                    else:
                        connection.send(event.decode())
        except ConnectionClosed:
            pass


def _events(written: Written) -> list[bytes]:
    """The data of a stream's events, one message each."""
    lines = written.stream.split(b"\n")
    return [line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:")]


def _only_upgrades(connection: ServerConnection, request: UpgradeRequest) -> Response | None:
    if request.headers.get("upgrade", "").lower() == "websocket":
        return None
    body = b'{"object": "list", "data": [], "models": []}'
    headers = Headers([("content-type", "application/json"), ("content-length", str(len(body)))])
    return Response(HTTPStatus.OK, HTTPStatus.OK.phrase, headers, body)
