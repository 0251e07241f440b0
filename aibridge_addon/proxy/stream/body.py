"""Change the bytes of an upstream answer in a pipe of stages. Sans-io.

    upstream ─▶ transcoder, decoder ─▶ Tapped or Spliced ─▶ usage filter ─▶ client
               └──── incoming ─────┘                       └─ outgoing ─┘

Most answers have no stages, and their bytes are forwarded unchanged.
"""

from __future__ import annotations

from typing import Protocol

from aibridge_addon.messages_on_bedrock.answer import Transcoder, TranscodingError
from aibridge_addon.proxy.flow.state import Bridged
from aibridge_addon.wire.codings import CodingError, Decoder


class BodyError(Exception):
    """The body cannot be converted into the form that the client needs."""

    def __init__(self, error_type: str, reason: str) -> None:
        super().__init__(reason)
        self.error_type = error_type


class Stage(Protocol):
    def feed(self, data: bytes) -> bytes:
        """Process the next bytes, and return the resulting ones. May raise BodyError."""

    def finish(self) -> bytes:
        """Process the end of the body, and return the remaining bytes. May raise BodyError."""


class Pipe:
    """A sequence of stages. It is a stage itself."""

    def __init__(self, *stages: Stage) -> None:
        self._stages = stages

    def __bool__(self) -> bool:
        return bool(self._stages)

    def feed(self, data: bytes) -> bytes:
        for stage in self._stages:
            data = stage.feed(data)
        return data

    def finish(self) -> bytes:
        rest = b""
        for stage in self._stages:
            rest = (stage.feed(rest) if rest else b"") + stage.finish()
        return rest


class Transcoded:
    """Converts an answer of Bedrock into the form of Anthropic's API."""

    def __init__(self, transcoder: Transcoder) -> None:
        self._transcoder = transcoder

    def feed(self, data: bytes) -> bytes:
        try:
            return self._transcoder.feed(data)
        except TranscodingError as e:
            raise BodyError("corrupt_event_stream", str(e)) from e

    def finish(self) -> bytes:
        try:
            return self._transcoder.finish()
        except TranscodingError as e:
            raise BodyError("corrupt_event_stream", str(e)) from e


class Decoded:
    """Removes the content coding of an answer."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def feed(self, data: bytes) -> bytes:
        try:
            return b"".join(self._decoder.feed(data))
        except CodingError as e:
            raise BodyError("undecodable_answer", str(e)) from e

    def finish(self) -> bytes:
        return b""  # a truncated body lacks the terminal event, which the reader reports


def incoming(state: Bridged) -> Pipe:
    """Return the stages between the upstream and the reader, for an answer whose head has arrived."""
    stages: list[Stage] = []
    translation = state.head.dispatch.translation
    if translation is not None and translation.transcoder is not None:
        stages.append(Transcoded(translation.transcoder))
    if state.usage is not None and state.usage.decoder is not None:
        stages.append(Decoded(state.usage.decoder))
    return Pipe(*stages)


def outgoing(state: Bridged) -> Pipe:
    """Return the stages between the reader and the client."""
    return Pipe() if state.usage is None else Pipe(state.usage.filter)
