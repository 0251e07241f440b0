"""Read one upstream answer as it passes, without changing a byte. Sans-io.

The tap receives the bytes that go to the client. It decodes a copy (content coding, then events or a body) and passes
it to the dialect's reader. It reports where the answer's terminal event begins, so that the caller can hold those
bytes until the rows are committed.

An error here (a compression bomb, broken JSON, an oversized event) ends the reading, never the traffic.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects.base import AnswerError, AnswerReader, decode_event
from aibridge_addon.dialects.errors import error_of_body
from aibridge_addon.dialects.excerpt import SIZE, Excerpt, excerpt
from aibridge_addon.dialects.room import Room
from aibridge_addon.interception.buffers import LIMIT as BUFFERED
from aibridge_addon.interception.buffers import Share
from aibridge_addon.wire import codings
from aibridge_addon.wire.aws_eventstream import CorruptEventStream, CutEventStream
from aibridge_addon.wire.charset import to_utf8
from aibridge_addon.wire.framing import SSE, Form, Framing, form_of, framing_of
from aibridge_addon.wire.json_object import NotJSON, Unreadable, decode_tolerantly
from aibridge_addon.wire.json_structure import has_more_values
from aibridge_addon.wire.sse import Piece

OnEvent = Callable[[bytes, str, Any], None]
"""Takes an event: its verbatim bytes, its name, and its decoded data; None if the event was not decoded."""
OnPartial = Callable[[str, Exception | None], None]
"""Takes the reason why an answer cannot be read in full, and the exception if it is an error of ours."""
OnPiece = Callable[[Piece, Excerpt | None], None]
"""Takes a piece of an event that is too large, and with the last piece its excerpt."""
OVERSIZED = "an event is larger than limits.sse_event"
INTERNAL_ERROR = "an internal error"


def ignore(_reason: str, _error: Exception | None) -> None:
    """Do nothing about a partial answer."""


class Tap:
    def __init__(
        self,
        reader: AnswerReader,
        *,
        status: int,
        content_type: str,
        content_encoding: str,
        limits: Limits,
        streaming: bool = False,
        on_event: OnEvent | None = None,
        on_piece: OnPiece | None = None,
        on_partial: OnPartial = ignore,
        on_first: Callable[[], None] | None = None,
        share: Share | None = None,
    ) -> None:
        """Begin to read an answer.

        `streaming` says whether a stream was requested. `on_event` is called for each event of a stream, in order,
        after it has been read, and `on_piece` for each piece of an event that is too large. `on_partial` is called once
        when something cannot be read, and for each internal error. `on_first` is called when the first bytes arrive.
        `share` counts the bytes that are kept. None: only this answer's own limits apply.
        """
        self.reader = reader
        self.message: dict[str, Any] | None = None
        """The whole blocking answer, if it succeeded."""
        self.partial_reason: str | None = None
        """Why the answer could not be read in full; None: everything was read so far."""
        self.misread = False
        """Whether the event that `on_event` gets could not be read, so that nothing is known about it."""
        self._on_event = on_event
        self._on_piece = on_piece
        self._on_partial = on_partial
        self._on_first = on_first
        self.readable = True
        """False: nothing more can be read, so the end of the answer is unknown."""
        self._label = framing_of(content_type, reader.framings, streaming=streaming) if status < 400 else None
        self.streaming = self._label is not None
        """Whether the answer is a stream of events. Before its first bytes, this is a guess by its head."""
        self._status = status
        self._content_type = content_type
        self._limit = limits.decoded_body
        self._most_values = limits.json_values
        self._share = share
        self._counted = 0
        """Bytes of `_body` that `share` counts."""
        self.beyond: str = ""
        """The limit because of which something of the answer was not read. Empty: none."""
        reader.room = Room(limits.answer, share.add) if share is not None else Room(limits.answer)
        self._event_limit = limits.sse_event
        self._dropped = False
        self._beginning: bytes | None = None
        """The beginning of the event that is too large, until its end."""
        self._ending = b""
        self._body = bytearray()
        self._use(self._label or SSE)
        self._skip = reader.skip
        self._in_pieces = reader.in_pieces and status < 400
        self._take: Callable[[bytes], int | None] = self._take_first if status < 400 else self._take_body
        self._decoder: codings.Decoder | None = None
        # A body that is read in pieces is not kept, so only the limit of each feed applies to it.
        most = sys.maxsize if self._in_pieces else limits.decoded_body
        try:
            self._decoder = codings.decoder_for(content_encoding, most)
        except codings.CodingError as e:
            self._give_up(e)

    @property
    def complete(self) -> bool:
        """Whether everything that has passed so far could be read."""
        return self.partial_reason is None

    @property
    def at_event_boundary(self) -> bool:
        """Whether an event of our own may be inserted here: the stream has no coding, and no event is half sent."""
        between = self._scanner.at_boundary and not self._body.strip(b"\r\n")
        return self.streaming and self._decoder is None and between

    @property
    def dropped(self) -> bool:
        """Whether an event was too large to be read."""
        return self._dropped or self.lost

    @property
    def lost(self) -> bool:
        """Whether an event was so large that `on_event` has got nothing of it."""
        return self._scanner.oversized > 0

    def feed(self, data: bytes) -> int | None:
        """Read the next bytes.

        Returns:
            The offset in `data` at which the terminal event begins, or 0 if it is unknown. None for all other data.
        """
        if not self.readable:
            return None
        try:
            return self._take(data) if self._decoder is None else self._decode(data)
        except CorruptEventStream as e:
            self._corrupt(e)
            return None
        except Exception as e:  # noqa: BLE001 (an error of ours must not stop the traffic)
            self._fail(e)
            return None

    def event(self, data: bytes) -> bool:
        """Read an unframed event that came as a message of its own. Return whether it was the last one."""
        if not self.readable:
            return False
        reading = self.reader.reading
        try:
            if len(data) > self._event_limit:
                self._read_excerpt(data[:SIZE], data[-SIZE:])
            elif not self._skip(data):
                self.reader.event("", data)
        except (NotJSON, Unreadable) as e:
            self._miss(e)
        except Exception as e:  # noqa: BLE001 (as in `feed`)
            self._fail(e)
        if reading.ended and self._dropped:
            self._miss(OVERSIZED)
        return reading.ended

    def _decode(self, data: bytes) -> int | None:
        ended = self.reader.reading.ended
        try:
            for piece in self._decoder.feed(data) if self._decoder else ():
                if self.readable:
                    self._take(piece)
        except codings.CodingError as e:
            self._give_up(e)
        return 0 if self.reader.reading.ended and not ended else None

    def finish(self, *, cut: bool = False) -> None:
        """Read what is left. Call this when no more bytes will come. `cut`: the answer ended before its end."""
        try:
            self._finish(cut=cut)
        except Exception as e:  # noqa: BLE001 (as in `feed`)
            self._fail(e)
        self._clear_body()
        if self.reader.room.exceeded:
            self.beyond = self.beyond or "limits.answer"
            self._miss("more was to be kept of the answer than limits.answer or limits.buffered allows")

    def _clear_body(self) -> None:
        self._body.clear()
        if self._share is not None:
            self._share.give_back(self._counted)
        self._counted = 0

    def _finish(self, *, cut: bool) -> None:
        if self._take == self._take_first and self.readable:
            try:
                self._decide(Form.UNKNOWN, 0)
            except CorruptEventStream as e:
                self._corrupt(e)
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
            if self._beginning is not None:
                self._read_excerpt(self._beginning, self._ending)
            self.reader.stream_ended()
            if self.dropped:
                self._miss(OVERSIZED)
                self.readable = self.readable and self.reader.reading.ended  # the terminal event may have been dropped
        elif self._in_pieces:
            self.reader.body_ended(cut=cut or not self.readable)
        elif self.readable:
            self._whole_body(bytes(self._body))

    def _take_first(self, data: bytes) -> int | None:
        """Take the first bytes of a body, until they show its form."""
        if self._on_first is not None and not self._body:
            self._on_first()
        self._body += data
        form = form_of(bytes(self._body))
        return None if form is Form.OPEN else self._decide(form, len(data))

    def _decide(self, form: Form, size: int) -> int | None:
        """Read the body in this form from now on. `size`: bytes of the current feed. Returns as `feed` does."""
        framing = self._label if form is Form.UNKNOWN else form.framing
        if framing is not None and framing not in self.reader.framings.values():
            framing = self._label
        self.streaming = framing is not None
        held, self._body = bytes(self._body), bytearray()
        if framing is None:
            self._take = self._take_pieces if self._in_pieces else self._take_body
            return self._take(held)
        self._use(framing)
        self._take = self._take_events
        end = self._take(held)
        return None if end is None else max(0, end - len(held) + size)

    def _use(self, framing: Framing) -> None:
        self._scanner = framing.scanner(self._event_limit)
        self._scan = self._scanner.feed
        self._parse = framing.parse

    def _take_events(self, data: bytes) -> int | None:
        return self._events(self._scan(data))

    def _take_pieces(self, data: bytes) -> int | None:
        self.reader.piece(data)
        return None

    def _take_body(self, data: bytes) -> int | None:
        if len(self._body) + len(data) > self._limit:
            self.beyond = "limits.decoded_body"
            self._give_up(codings.OutputLimitExceeded(self._limit))
        elif self._share is not None and not self._share.add(len(data)):
            self.beyond = BUFFERED
            self._give_up(f"{BUFFERED} is used up")
        else:
            self._counted += len(data)
            self._body += data
        return None

    def _events(self, events: Iterable[tuple[bytes, int]]) -> int | None:
        terminal: int | None = None
        reading = self.reader.reading
        for raw, start in events:
            if isinstance(raw, Piece):
                ended = reading.ended
                self._take_piece(raw)
                if reading.ended and not ended:
                    terminal = start
                continue
            if self._skip(raw):
                if self._on_event is not None:
                    self._on_event(raw, "", None)
                continue
            ended = reading.ended
            name, event = "", None
            try:
                name, data = self._parse(raw)
                if data is not None:
                    if len(data) > self._most_values and has_more_values(data, self._most_values):
                        raise Unreadable("an event has more values than limits.json_values")
                    event = decode_event(data)
                    self.reader.read(name, event)
            except (NotJSON, Unreadable) as e:
                self.misread = True
                self._miss(e)
            except CorruptEventStream as e:
                self._corrupt(e)
                break
            if self._on_event is not None:
                self._on_event(raw, name, event)
            self.misread = False
            if reading.ended and not ended:
                terminal = start
                if self._scanner.oversized:
                    self._miss(OVERSIZED)
        return terminal

    def _take_piece(self, piece: Piece) -> None:
        """Read the next piece of an event that is too large. Only its beginning and its end are kept."""
        if piece.first:
            self._beginning, self._ending = piece[:SIZE], b""
        self._ending = (self._ending + piece)[-SIZE:]
        found = None
        if piece.last and self._beginning is not None:
            found = self._read_excerpt(self._beginning, self._ending)
            self._beginning = None
        if self._on_piece is not None:
            self._on_piece(piece, found)

    def _read_excerpt(self, beginning: bytes, ending: bytes) -> Excerpt | None:
        data = beginning.find(b"data:") + len(b"data:") if not beginning.lstrip().startswith(b"{") else 0
        found = excerpt(beginning[data:], ending, beginning[:data])
        if found is None:
            self._dropped = True
        else:
            self.reader.read(found.name, found.event)
        if found is None or not found.complete:
            self._miss(OVERSIZED)
        return found

    def _whole_body(self, body: bytes) -> None:
        body = to_utf8(body, self._content_type)
        if self._status >= 400:
            self._failure(body)
            return
        try:
            if has_more_values(body, self._most_values):
                self.beyond = "limits.json_values"
                raise Unreadable("the answer has more values than limits.json_values")
            message = decode_tolerantly(body)
        except Unreadable as e:
            self._give_up(e)
            return
        except NotJSON:
            message = None
        if isinstance(message, dict):
            self.message = message
            self.reader.message(message)
        else:
            error = error_of_body(body, default_type="unreadable_answer")
            error.message = error.message or "the answer is not a JSON object"
            self.reader.reading.error = error

    def _failure(self, body: bytes) -> None:
        """Read the body of an error. Some servers send it as the error event of a stream."""
        framing = form_of(body).framing
        if framing is not None and framing in self.reader.framings.values():
            self._use(framing)
            with contextlib.suppress(CorruptEventStream):
                self._events(self._scan(body))
                self._events([(self._scanner.finish() or b"", 0)])
        if self.reader.reading.error is None:
            self.reader.failure(self._status, body)

    def _corrupt(self, reason: CorruptEventStream) -> None:
        """Stop reading, and report the corrupt stream as the answer's error: the client cannot read it either."""
        if self.readable and not self.reader.reading.ended:
            self.reader.reading.error = AnswerError("corrupt_event_stream", str(reason))
        self._give_up(reason)

    def _fail(self, error: Exception) -> None:
        """Stop reading because of an error of ours."""
        self._on_partial(INTERNAL_ERROR, error)
        self.partial_reason = self.partial_reason or INTERNAL_ERROR
        self._give_up(INTERNAL_ERROR)

    def _give_up(self, reason: object) -> None:
        self.readable = False
        self._clear_body()
        self._miss(reason)

    def _miss(self, reason: object) -> None:
        """Mark the answer as partial. Report it once, since an answer may have a million unreadable events."""
        if self.partial_reason is None:
            self.partial_reason = str(reason)
            self._on_partial(self.partial_reason, None)
