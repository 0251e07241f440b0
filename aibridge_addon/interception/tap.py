"""Read one upstream answer as it passes, and change not one byte of it.

The tap is given the bytes that go to the client. It decodes a copy (content coding, then events or a body), lets the
dialect read it, and says where in the bytes just given the answer's terminal event begins: what must be true before
the client sees its end must be true before those bytes are passed on.

Whatever goes wrong here (a bomb, broken JSON, an event too large) ends the reading, never the traffic.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects.base import AnswerError, AnswerReader, decode_event
from aibridge_addon.wire import codings
from aibridge_addon.wire.aws_eventstream import CorruptEventStream, CutEventStream
from aibridge_addon.wire.framing import SSE, framing_of
from aibridge_addon.wire.json_object import NotJSON, Unreadable, decode

logger = logging.getLogger(__name__)

OnEvent = Callable[[bytes, str, Any], None]
"""Takes an event: its verbatim bytes, its name, and its decoded data, None where it was not worth decoding."""
OVERSIZED = "an event is larger than limits.sse_event"


class Tap:
    def __init__(
        self,
        reader: AnswerReader,
        *,
        status: int,
        content_type: str,
        content_encoding: str,
        limits: Limits,
        on_event: OnEvent | None = None,
    ) -> None:
        """`on_event` is called with each event of a stream, in order, once it has been read."""
        self.reader = reader
        self.message: dict[str, Any] | None = None
        """A blocking answer that succeeded, whole."""
        self._on_event = on_event
        self.complete = True
        """Whether everything that passed so far could be read."""
        self.readable = True
        """False: nothing more can be read, so it is not known how the answer ends."""
        framing = framing_of(status, content_type, reader.framings)
        self.streaming = framing is not None
        self._status = status
        self._limit = limits.decoded_body
        self._event_limit = limits.sse_event
        self._dropped = False
        self._body = bytearray()
        self._scanner = (framing or SSE).scanner(limits.sse_event)
        self._scan = self._scanner.feed
        self._parse = (framing or SSE).parse
        self._skip = reader.skip
        self._decoder: codings.Decoder | None = None
        try:
            self._decoder = codings.decoder_for(content_encoding, limits.decoded_body)
        except codings.CodingError as e:
            self._give_up(e)

    @property
    def at_event_boundary(self) -> bool:
        """Whether an event of our own may be put into the stream here: uncoded, and nothing half sent."""
        return self.streaming and self._decoder is None and self._scanner.at_boundary

    @property
    def dropped(self) -> bool:
        """Whether an event was too large to be kept."""
        return self._dropped or self._scanner.oversized > 0

    def feed(self, data: bytes) -> int | None:
        """Read the next bytes.

        Returns:
            The offset in `data` at which the terminal event begins (0 if that is not known), once; else None.
        """
        if not self.readable:
            return None
        try:
            if self._decoder is None and self.streaming:
                return self._events(self._scan(data))
            return self._decode(data)
        except CorruptEventStream as e:
            self._corrupt(e)
            return None
        except Exception:  # the last line of defence: whatever we do wrong, the traffic goes on
            logger.exception("aibridge: reading an answer failed")
            self._give_up("an internal error")
            return None

    def event(self, data: bytes) -> bool:
        """Read one event of a stream that came as a message of its own, not framed; says whether it was the last."""
        if not self.readable:
            return False
        reading = self.reader.reading
        try:
            if len(data) > self._event_limit:
                self._dropped = True
            elif not self._skip(data):
                self.reader.event("", data)
        except (NotJSON, Unreadable) as e:
            self._miss(e)
        except Exception:  # as in `feed`
            logger.exception("aibridge: reading an answer failed")
            self._give_up("an internal error")
        if reading.ended and self._dropped:
            self._miss(OVERSIZED)
        return reading.ended

    def _decode(self, data: bytes) -> int | None:
        ended = self.reader.reading.ended
        try:
            for piece in self._decoder.feed(data) if self._decoder else (data,):
                self._decoded(piece)
        except codings.CodingError as e:
            self._give_up(e)
        return 0 if self.reader.reading.ended and not ended else None

    def finish(self) -> None:
        """The upstream has ended the answer, or will never: read what is left."""
        try:
            self._finish()
        except Exception:  # as in `feed`
            logger.exception("aibridge: reading an answer failed")
            self._give_up("an internal error")
        self._body.clear()

    def _finish(self) -> None:
        if self.streaming:
            try:
                rest = self._scanner.finish()
            except CutEventStream:
                rest = None
            except CorruptEventStream as e:
                self._corrupt(e)
                rest = None
            if rest and self.readable:
                self._events([(rest, 0)])
            self.reader.stream_ended()
            if self.dropped:
                self._miss(OVERSIZED)
                self.readable = self.readable and self.reader.reading.ended  # the end may have been what was dropped
        elif self.readable:
            self._whole_body(bytes(self._body))

    def _decoded(self, piece: bytes) -> None:
        if self.streaming:
            self._events(self._scan(piece))
        elif len(self._body) + len(piece) > self._limit:
            raise codings.OutputLimitExceeded(self._limit)
        else:
            self._body += piece

    def _events(self, events: Iterable[tuple[bytes, int]]) -> int | None:
        terminal: int | None = None
        reading = self.reader.reading
        for raw, start in events:
            if self._skip(raw):
                if self._on_event is not None:
                    self._on_event(raw, "", None)
                continue
            ended = reading.ended
            name, event = "", None
            try:
                name, data = self._parse(raw)
                if data is not None:
                    event = decode_event(data)
                    self.reader.read(name, event)
            except (NotJSON, Unreadable) as e:
                self._miss(e)
            except CorruptEventStream as e:
                self._corrupt(e)
                break
            if self._on_event is not None:
                self._on_event(raw, name, event)
            if reading.ended and not ended:
                terminal = start
                if self._scanner.oversized:
                    self._miss(OVERSIZED)
        return terminal

    def _whole_body(self, body: bytes) -> None:
        if self._status >= 400:
            self.reader.failure(self._status, body)
            return
        try:
            message = decode(body)
        except Unreadable as e:
            self._give_up(e)
            return
        except NotJSON:
            message = None
        if isinstance(message, dict):
            self.message = message
            self.reader.message(message)
        else:
            self.reader.reading.error = AnswerError("unreadable_answer", "the answer is no JSON object")

    def _corrupt(self, reason: CorruptEventStream) -> None:
        """What came is wrong, for the client too."""
        if self.readable and not self.reader.reading.ended:
            self.reader.reading.error = AnswerError("corrupt_event_stream", str(reason))
        self._give_up(reason)

    def _give_up(self, reason: object) -> None:
        self.readable = False
        self._body.clear()
        self._miss(reason)

    def _miss(self, reason: object) -> None:
        """Something passed unread. Said once for each answer: a provider may send a million of them."""
        if self.complete:
            logger.warning("an answer cannot be read in full, its record is partial: %s", reason)
        self.complete = False
