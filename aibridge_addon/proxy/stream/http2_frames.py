"""Bound the HTTP/2 frames of a client that cost much and carry nothing (RFC 9113, section 10.5).

- Streams that are reset: each has cost a request. A client that resets them at once is under no limit of concurrent
  streams (CVE-2023-44487). Streams that we reset for a client's error count, too.
- Frames that h2 answers or only reads: PING, SETTINGS, PRIORITY, DATA without content, frames of unknown types.
- WINDOW_UPDATE: usual while an answer is streamed, but not for ever.
- Header blocks: h2 bounds those that are complete, by the setting `max_header_list_size`, and only the number of the
  frames of an incomplete one.
"""

from __future__ import annotations

import time
from collections.abc import Buffer, Callable

import h2.config
import h2.events
from h2.exceptions import DenialOfServiceError
from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame, WindowUpdateFrame
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from aibridge_addon.config.schema import Limits

Clock = Callable[[], float]

BURST = 10
"""Seconds. As many frames as are allowed in this time may come at once."""
UPDATES, UPDATES_A_SECOND = 10_000, 2_000
"""WINDOW_UPDATE frames. One takes about 20 µs."""


class FloodError(DenialOfServiceError):
    """The client has sent too many frames of a kind."""


class Allowance:
    """A number of frames at once, and further ones at a rate."""

    def __init__(self, burst: int, rate: float, clock: Clock) -> None:
        """`rate`: a second."""
        self._left = float(burst)
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._since = clock()

    def take(self, kind: str) -> None:
        """Raise FloodError if nothing is left."""
        self._left -= 1
        if self._left >= 0:
            return
        now = self._clock()
        self._left = min(float(self._burst), self._left + 1 + (now - self._since) * self._rate) - 1
        self._since = now
        if self._left < 0:
            raise FloodError(f"too many {kind}")


class BoundedH2Connection(BufferedH2Connection):
    """mitmproxy's HTTP/2 connection, for that of a client."""

    def __init__(self, config: h2.config.H2Configuration, limits: Limits, clock: Clock = time.monotonic) -> None:
        """Each field of a request's head counts 32 bytes more for `header_bytes` (RFC 9113, section 10.5.1)."""
        super().__init__(config)
        header_bytes = limits.header_bytes
        self.local_settings.max_header_list_size = header_bytes
        self.local_settings.acknowledge()
        self.decoder.max_header_list_size = header_bytes
        self._header_bytes = header_bytes
        self._resets = Allowance(BURST * limits.http2_resets, limits.http2_resets, clock)
        self._frames = Allowance(BURST * limits.http2_empty_frames, limits.http2_empty_frames, clock)
        self._updates = Allowance(UPDATES, UPDATES_A_SECOND, clock)

    def receive_data(self, data: Buffer) -> list[h2.events.Event]:
        events: list[h2.events.Event] = super().receive_data(data)
        if (block := self.incoming_buffer._headers_buffer) and sum(len(f.data) for f in block) > self._header_bytes:
            raise DenialOfServiceError("oversized header block")
        return events

    def _receive_frame(self, frame: Frame) -> list[h2.events.Event]:
        match frame:
            case DataFrame():
                if not frame.data and "END_STREAM" not in frame.flags:
                    self._frames.take("frames without content")
            case WindowUpdateFrame():
                self._updates.take("window updates")
            case RstStreamFrame():
                self._resets.take("streams that were reset")
                return super()._receive_frame(frame)
            case HeadersFrame():
                pass
            case _:
                self._frames.take("frames without content")
        events = super()._receive_frame(frame)
        for event in events:
            if type(event) is h2.events.StreamReset:
                self._resets.take("streams that were reset")
        return events
