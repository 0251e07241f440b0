"""Write upstream requests and their answers to files for debugging (`dump_dir`).

    event loop: Dump.request(…), answer_head(…), answer_data(…), end(…) ──▶ queue ──▶ one thread: files

Each upstream request is a dump of its own: a `.req.txt` and a `.resp.txt`, or a `.req_error.txt` if there is no answer.
The files grow while the bytes arrive. Dumps never delay the traffic. If the thread is too slow, a dump is cut, and a
note says so. If a file cannot be written, dumping stops.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import unquote_to_bytes

from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.telemetry.dump import text as dump_text
from aibridge_addon.telemetry.dump.text import Body, Fields, Redact

logger = logging.getLogger(__name__)

MAX_QUEUED = 64 * 1024 * 1024
"""Bytes. Maximum size of the queue for the thread."""
PUT_COST = 500
"""Bytes that an item in the queue needs in addition to its data."""
MAX_OPEN = 256
"""Maximum number of dumps at the same time. Each has a file open."""
MAX_NAME = 100
"""Characters. A client may choose names of folders and files; longer ones are cut."""
MAX_PATH = 60
"""Characters. Maximum length of a request's path in the name of a file."""
MAX_REDACTED = 10_000
"""Characters. Maximum length of a name that is searched for secrets. What is behind it is not used."""

CUT = "cut: the disk was too slow for the rest"


def safe_name(text: str, length: int = MAX_NAME) -> str:
    """Make a name for one file or folder out of any text: without separators, `..` or a leading dot."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text[:length]).lstrip(".") or "unknown"


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request or an answer."""

    first_line: bytes
    fields: Fields
    coding: str | None
    """The Content-Encoding."""


class Dumper:
    """Creates dumps. Its methods are called on the event loop. Only `close` blocks."""

    def __init__(
        self,
        folder: Path,
        *,
        redact: Redact,
        limit: int,
        max_queued: int = MAX_QUEUED,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`limit`: maximum bytes of a decoded body. `now`: returns seconds since 1970."""
        self._folder = folder
        self._redact = redact
        self._limit = limit
        self._max_queued = max_queued
        self._now = now
        self._queue: SimpleQueue[tuple[int, Callable[..., None], tuple[Any, ...]] | None] = SimpleQueue()
        self._queued = 0
        self._open: set[_Files] = set()
        self._lock = threading.Lock()
        self._failed = False
        self._has_skipped = False
        self._thread = threading.Thread(target=self._work, name="aibridge-dump", daemon=True)

    def start(self) -> None:
        """Create the folder. Raises ConfigError if it cannot be created or written to."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise PermissionError(f"no permission to write to {self._folder}")
        except OSError as e:
            raise ConfigError([Problem("dump_dir", str(e), "a folder that can be written to, or null")]) from e

    def open(self, provider: str, group: str, name: str, *, path: str = "") -> Dump | None:
        """Start the dump `<provider>/<group>/<milliseconds since 1970>-<path>-<name>`.

        A client may choose the group and the path. None: this request is not dumped.
        """
        if self._failed:
            return None
        if self._thread.ident is None:
            self._thread.start()
        of_provider = self._folder / safe_name(provider)
        folders = (self._folder, of_provider, of_provider / safe_name(self._redacted(group)))
        begin = f"{int(self._now() * 1000)}-"
        if path:
            begin += f"{safe_name(self._redacted(path), MAX_PATH)}-"
        files = _Files(folders, begin + safe_name(name), self._redact, self._limit)
        with self._lock:
            if len(self._open) < MAX_OPEN:
                self._open.add(files)
                return Dump(self, files)
        if not self._has_skipped:
            self._has_skipped = True
            logger.warning("dump_dir: more than %d requests at the same time, further ones are not dumped", MAX_OPEN)
        return None

    def _redacted(self, name: str) -> str:
        """Redact a name that a client chose, which may be percent-encoded, before it is cut."""
        data = unquote_to_bytes(name[:MAX_REDACTED].encode("utf-8", "replace"))
        return self._redact(data).decode("utf-8", "replace")

    def put(self, size: int, write: Callable[..., None], *args: Any, always: bool = False) -> bool:
        """Queue a call of `write` for the thread. Returns False if the queue is full."""
        size += PUT_COST
        with self._lock:
            if self._queued + size > self._max_queued and not always:
                return False
            self._queued += size
        self._queue.put((size, write, args))
        return True

    def ended(self, files: _Files) -> None:
        """Report that a dump is completely written. Called on the thread."""
        with self._lock:
            self._open.discard(files)

    def close(self, timeout: float | None) -> None:
        """Write the queue, for at most `timeout` seconds. None: in the background. May be called twice."""
        self._queue.put(None)
        if timeout and self._thread.ident is not None:
            self._thread.join(timeout)

    # --- on the thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            size, write, args = item
            if not self._failed:
                self._write(write, args)
            with self._lock:
                self._queued -= size
        for files in set(self._open):
            self._write(files.end, ("the bridge was stopped",))
        self._close_all()

    def _write(self, write: Callable[..., None], args: tuple[Any, ...]) -> None:
        try:
            write(*args)
        except OSError as e:
            logger.error("dump_dir: no more dumps, a file cannot be written: %s", e)
        except Exception:
            logger.exception("dump_dir: no more dumps, an unexpected error occurred")
        else:
            return
        self._failed = True
        self._close_all()

    def _close_all(self) -> None:
        with self._lock:
            left, self._open = self._open, set()
        for files in left:
            files.close()


class Dump:
    """The dump of one upstream request and its answer."""

    def __init__(self, dumper: Dumper, files: _Files) -> None:
        self._dumper = dumper
        self._files = files
        self._cut = False
        self._ended = False
        self._is_whole = False

    def request(self, head: Head, body: bytes | None) -> None:
        """Write the request's head and its body. None: the body follows in pieces."""
        self._is_whole = body is not None
        self._put(len(body or b""), self._files.request, head, body)

    def request_data(self, data: bytes) -> None:
        if not self._is_whole:
            self._put(len(data), self._files.request_data, data)

    def request_ended(self) -> None:
        self._put(0, self._files.request_ended)

    def answer_head(self, head: Head) -> None:
        self._put(0, self._files.answer_head, head)

    def answer_data(self, data: bytes) -> None:
        self._put(len(data), self._files.answer_data, data)

    def end(self, broken_off: str | None = None) -> None:
        """End the dump. `broken_off`: why it is incomplete, if it is. Only the first call has an effect."""
        if not self._ended:
            self._ended = True
            self._dumper.put(0, self._end, CUT if self._cut else broken_off, always=True)

    def _end(self, why: str | None) -> None:
        self._files.end(why)
        self._dumper.ended(self._files)

    def _put(self, size: int, write: Callable[..., None], *args: Any) -> None:
        if not self._cut and not self._ended:
            self._cut = not self._dumper.put(size, write, *args)


class _Files:
    """The files of one dump. Used on the thread."""

    def __init__(self, folders: tuple[Path, ...], name: str, redact: Redact, limit: int) -> None:
        self._folders = folders
        self._name = name
        self._redact = redact
        self._limit = limit
        self._request: _Message | None = None
        self._answer: _Message | None = None

    def request(self, head: Head, body: bytes | None) -> None:
        self._request = _Message(self._create(".req.txt"), head, self._redact, self._limit)
        if body is None:
            self._request.begin()
        else:
            self._request.write_whole(body)

    def request_data(self, data: bytes) -> None:
        if self._request is not None:
            self._request.feed(data)

    def request_ended(self) -> None:
        if self._request is not None:
            self._request.end(None)

    def answer_head(self, head: Head) -> None:
        self._answer = _Message(self._create(".resp.txt"), head, self._redact, self._limit)
        self._answer.begin()

    def answer_data(self, data: bytes) -> None:
        if self._answer is not None:
            self._answer.feed(data)

    def end(self, why: str | None) -> None:
        if self._request is not None:
            self._request.end(None)
        if self._answer is not None:
            self._answer.end(why)
        elif why is not None:
            with self._create(".req_error.txt") as file:
                file.write(self._redact(why.encode("utf-8", "replace")) + b"\n")

    def close(self) -> None:
        for message in (self._request, self._answer):
            if message is not None:
                message.close()

    def _create(self, suffix: str) -> BufferedWriter:
        for folder in self._folders:
            folder.mkdir(mode=0o700, exist_ok=True)
        # Mode "x" fails if the name exists, so the dump never writes through a link.
        return open(self._folders[-1] / (self._name + suffix), "xb", opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _Message:
    """One file that is being written."""

    def __init__(self, file: BufferedWriter, head: Head, redact: Redact, limit: int) -> None:
        self._file = file
        self._head = head
        self._redact = redact
        self._limit = limit
        self._body = Body(head.coding, redact, limit)

    def begin(self) -> None:
        self._write(self._head_text(None))

    def feed(self, data: bytes) -> None:
        self._write(self._body.feed(data))

    def write_whole(self, body: bytes) -> None:
        text = dump_text.whole(body, self._head.coding, self._redact, self._limit)
        self._write(self._head_text(len(text)) + text)
        self._file.close()

    def end(self, why: str | None) -> None:
        if not self._file.closed:
            self._write(self._body.finish() + (dump_text.note(why) if why is not None else b""))
            self._file.close()

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:
            logger.debug("dump_dir: the end of %s is lost", self._file.name)  # the cause was logged before

    def _head_text(self, length: int | None) -> bytes:
        first_line = dump_text.line(self._head.first_line, self._redact)
        return self._redact(dump_text.head(first_line, self._head.fields, length=length))

    def _write(self, text: bytes) -> None:
        self._file.write(text)
        self._file.flush()
