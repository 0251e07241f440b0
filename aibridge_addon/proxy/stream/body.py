"""The bytes of an upstream answer, changed on their way: a pipe of stages. Sans-io.

    upstream ─▶ transcoder, decoder ─▶ Tapped or Spliced ─▶ usage filter ─▶ client
               └──── incoming ─────┘                       └─ outgoing ─┘

Most answers have no stage: their bytes pass as they come.
"""

from __future__ import annotations

from typing import Protocol

from aibridge_addon.messages_on_bedrock.answer import Transcoder, TranscodingError
from aibridge_addon.proxy.flow.state import Bridged
from aibridge_addon.wire.codings import CodingError, Decoder


class BodyError(Exception):
    """The body cannot be given to the client in the form that it needs."""

    def __init__(self, error_type: str, reason: str) -> None:
        super().__init__(reason)
        self.error_type = error_type


class Stage(Protocol):
    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; returns those that they add on the other side. May raise BodyError."""

    def finish(self) -> bytes:
        """The body has ended; returns what its end adds. May raise BodyError."""


class Pipe:
    """Stages in a row; itself a stage."""

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
    """An answer in Bedrock's form, as Anthropic would give it."""

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
    """An answer without its content coding."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def feed(self, data: bytes) -> bytes:
        try:
            return b"".join(self._decoder.feed(data))
        except CodingError as e:
            raise BodyError("undecodable_answer", str(e)) from e

    def finish(self) -> bytes:
        return b""  # a coding that is cut lacks the answer's end, which its reader notices


def incoming(state: Bridged) -> Pipe:
    """What changes the bytes of the answer whose head has arrived before anything reads them."""
    stages: list[Stage] = []
    translation = state.head.dispatch.translation
    if translation is not None and translation.transcoder is not None:
        stages.append(Transcoded(translation.transcoder))
    if state.usage is not None and state.usage.decoder is not None:
        stages.append(Decoded(state.usage.decoder))
    return Pipe(*stages)


def outgoing(state: Bridged) -> Pipe:
    """What changes the bytes that the client is to see."""
    return Pipe() if state.usage is None else Pipe(state.usage.filter)
