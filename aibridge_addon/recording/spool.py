"""Keep records in files while the database is away.

    folder/
        <database>.<owner>.lock           locked while the process that owns the files lives
        <database>.<owner>.00000001.log   one record on each line: checksum, type and members in JSON
        <database>.<owner>.00000002.log

Lines are only appended. A file is removed when all its records are in the database. Until then, a process that starts
anew may write some of them once more, which changes nothing: the ids of rows are in the file.

A file ends in the middle of a line if its process was killed. Such a line, and every line with a wrong checksum, is
left out. Files whose owner has ended are adopted: their lock is free, because the system releases it with the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from aibridge_addon.records import STORED, Record

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 8 * 2**20
"""Bytes from which on a file gets no more records, so that the space of written records is freed in steps."""
LOOK_AGAIN = 1.0
"""Seconds. A full folder is looked at again after this time."""
CHECKSUM = 8
"""Hexadecimal digits of a line's CRC-32."""

_members: Mapping[str, msgspec.json.Decoder[Any]] = MappingProxyType(
    {kind.__name__: msgspec.json.Decoder(kind) for kind in STORED}
)
_line = msgspec.json.Decoder(tuple[str, msgspec.Raw])


@dataclass(slots=True)
class _File:
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records at the front of a backlog, in the order in which they were spooled."""

    records: Sequence[Record]
    damaged: int
    """Number of whole lines that cannot be read."""
    end: int
    """Offset of the next record in the file."""


class Backlog:
    """The files of one owner, read from the oldest record on."""

    def __init__(self, lock: int, lock_path: Path, files: Iterable[_File] = ()) -> None:
        self._lock = lock
        self._lock_path = lock_path
        self._files = deque(files)
        self._done = 0
        """Bytes of the oldest file whose records are in the database."""

    @property
    def size(self) -> int:
        return sum(file.size for file in tuple(self._files))

    def add(self, file: _File) -> None:
        self._files.append(file)

    def read(self, limit: int, max_bytes: int | None = None) -> Chunk | None:
        """Return the oldest records, at most `limit`. None: there are no more. Raises OSError.

        `max_bytes`: bytes from which on a chunk gets no more records.
        """
        while self._files:
            file = self._files[0]
            if self._done < file.size:
                return _read(file, self._done, limit, max_bytes)
            if len(self._files) == 1:  # the owner may append to it
                return None
            self._remove_first()
        return None

    def done(self, chunk: Chunk) -> None:
        """Move on to the records behind this chunk."""
        self._done = chunk.end

    def remove(self) -> None:
        """Remove all files, and release the lock."""
        while self._files:
            self._remove_first()
        self._lock_path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Release the lock. Another process may adopt the files."""
        os.close(self._lock)

    def _remove_first(self) -> None:
        self._files[0].path.unlink(missing_ok=True)
        self._files.popleft()
        self._done = 0


class Spool:
    """The files of this process, and those of processes that have ended.

    One thread at a time may append. Another may read meanwhile.
    """

    def __init__(
        self,
        folder: Path,
        database: str,
        *,
        max_bytes: int,
        durable: bool = True,
        segment_bytes: int = SEGMENT_BYTES,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`database` identifies the database, because several may have the same folder.

        `durable`: `sync` waits for the disk.
        """
        self.folder = folder
        self.max_bytes = max_bytes
        self._prefix = _prefix(database)
        self._durable = durable
        self._segment_bytes = segment_bytes
        self._owner: str | None = None
        self._own: Backlog | None = None
        self._adopted: Backlog | None = None
        self._now = now
        self._elsewhere = 0
        """Bytes of all other files in the folder, when this process last looked."""
        self._looked_at = 0.0
        self._number = 0
        self._file: _File | None = None
        self._fd = -1
        self._unsynced = False

    @property
    def size(self) -> int:
        """Bytes of the files that this process has written or adopted."""
        return sum(backlog.size for backlog in (self._own, self._adopted) if backlog is not None)

    # --- writing ----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Create the folder. Raises OSError if files cannot be created there."""
        if not self.folder.is_dir():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._durable:
                _sync_folder(self.folder.parent)
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable", str(self.folder))

    def append(self, records: Iterable[Record]) -> int:
        """Append records, and return how many are left out: there is no room, or they cannot be encoded.

        Raises:
            OSError: No record was appended.
        """
        if self._file is None or self._file.size >= self._segment_bytes:
            self._begin_file()
        assert self._file is not None and self._own is not None
        room = self._room()
        lines = list[bytes]()
        dropped = 0
        for record in records:
            line = _encoded(record)
            if line is not None and len(line) > room and self._now() - self._looked_at >= LOOK_AGAIN:
                self._look_elsewhere()  # another process may have emptied its files
                room = self._room() - sum(len(waiting) for waiting in lines)
            if line is None or len(line) > room:
                dropped += 1
            else:
                room -= len(line)
                lines.append(line)
        self._write(b"".join(lines))
        return dropped

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            try:
                os.ftruncate(self._fd, self._file.size)
            except OSError:
                self._end_file()  # a reader leaves out the piece of a line at the end
            raise
        self._file.size += len(data)
        self._unsynced = True

    def sync(self) -> None:
        """Wait until what was appended survives a power failure. Raises OSError."""
        if self._unsynced and self._durable:
            os.fsync(self._fd)
        self._unsynced = False

    def _begin_file(self) -> None:
        if self._own is None:
            self._own = self._claim()
        self.sync()
        self._end_file()
        self._look_elsewhere()
        self._number += 1
        path = self.folder / f"{self._prefix}.{self._owner}.{self._number:08}.log"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            if self._durable:
                _sync_folder(self.folder)
        except OSError:  # after a power failure, the file might not be there
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self._fd, self._file = fd, _File(path, 0)
        self._own.add(self._file)

    def _look_elsewhere(self) -> None:
        assert self._own is not None
        self._elsewhere = sum(file.size for file in _files(self.folder, "*.log")) - self._own.size
        self._looked_at = self._now()

    def _room(self) -> int:
        """Return the bytes that may still be written."""
        assert self._own is not None
        return self.max_bytes - self._elsewhere - self._own.size

    def _end_file(self) -> None:
        if self._file is not None:
            os.close(self._fd)
            self._file = None
            self._unsynced = False

    def _claim(self) -> Backlog:
        """Create the lock of this process under a new name."""
        self.prepare()
        while True:
            self._owner = uuid.uuid4().hex
            lock_path = self.folder / f"{self._prefix}.{self._owner}.lock"
            lock = _locked(lock_path)
            if lock is not None:
                return Backlog(lock, lock_path)

    # --- reading ----------------------------------------------------------------------------------------------

    def read(self, limit: int, max_bytes: int | None = None) -> Chunk | None:
        """Do the same as `Backlog.read` for the records of this process."""
        return None if self._own is None else self._own.read(limit, max_bytes)

    def done(self, chunk: Chunk) -> None:
        """Move on to the records behind this chunk."""
        assert self._own is not None
        self._own.done(chunk)

    def clear(self) -> None:
        """Remove the files of this process, whose records are all in the database. Nothing may append meanwhile."""
        self._end_file()
        if self._own is not None:
            own, self._own = self._own, None
            own.remove()

    def adopt(self) -> Backlog | None:
        """Return files of a process that has ended. None: there are none."""
        if self._adopted is None:
            self._adopted = self._abandoned()
        return self._adopted

    def drop_adopted(self) -> None:
        """Remove the adopted files, whose records are all in the database."""
        adopted, self._adopted = self._adopted, None
        if adopted is not None:
            adopted.remove()

    def _abandoned(self) -> Backlog | None:
        # A file without a lock has lost it. It is adopted, too.
        owners = {path.stem for path in self.folder.glob(f"{self._prefix}.*.lock")}
        owners |= {path.stem.rpartition(".")[0] for path in self.folder.glob(f"{self._prefix}.*.*.log")}
        for lock_path in sorted(self.folder / f"{owner}.lock" for owner in owners):
            with suppress(OSError):
                lock = _locked(lock_path)
                if lock is None:
                    continue
                backlog = Backlog(lock, lock_path, _files(self.folder, f"{lock_path.stem}.*.log"))
                if backlog.size:
                    return backlog
                backlog.remove()
        return None

    def close(self) -> None:
        """Release the files. The next process adopts those that remain."""
        with suppress(OSError):
            self.sync()
        self._end_file()
        own, adopted, self._own, self._adopted = self._own, self._adopted, None, None
        for backlog in (own, adopted):
            if backlog is not None:
                backlog.release()


def remove_old(folder: Path, database: str, before: datetime) -> int:
    """Remove files of other databases that no process has used since a time, and return their number.

    Files of this database are adopted instead.
    """
    removed = 0
    for owner in sorted({path.stem.rpartition(".")[0] for path in folder.glob("*.*.*.log")}):
        if owner.startswith(_prefix(database)):
            continue
        with suppress(OSError):
            if max(file.path.stat().st_mtime for file in _files(folder, f"{owner}.*.log")) >= before.timestamp():
                continue
            lock_path = folder / f"{owner}.lock"
            lock = _locked(lock_path)
            if lock is not None:
                files = _files(folder, f"{owner}.*.log")
                removed += len(files)
                Backlog(lock, lock_path, files).remove()
    return removed


def _prefix(database: str) -> str:
    return hashlib.sha256(database.encode()).hexdigest()[:16]


def _encoded(record: Record) -> bytes | None:
    """Return the line of a record. None: JSON cannot express it, and neither can a row."""
    try:
        payload = msgspec.json.encode((type(record).__name__, record))
    except Exception:
        logger.exception("aibridge: a %s cannot be spooled and is lost", type(record).__name__)
        return None
    return f"{zlib.crc32(payload):0{CHECKSUM}x} ".encode() + payload + b"\n"


def _decoded(line: bytes) -> Record | None:
    """Return the record of a line. None: the line is damaged."""
    payload = line[CHECKSUM + 1 : -1]
    try:
        if int(line[:CHECKSUM], 16) != zlib.crc32(payload):
            return None
        name, members = _line.decode(payload)
        record: Record = _members[name].decode(members)
    except (ValueError, KeyError, RecursionError, msgspec.MsgspecError):
        return None
    return record


def _read(file: _File, start: int, limit: int, max_bytes: int | None) -> Chunk:
    records: list[Record] = []
    damaged, end = 0, start
    try:
        lines = file.path.open("rb")
    except FileNotFoundError:
        logger.warning("aibridge: a file of the spool was removed, its records are lost: %s", file.path)
        return Chunk((), 1, file.size)
    with lines:
        lines.seek(start)
        stop = file.size if max_bytes is None else min(file.size, start + max_bytes)
        while end < stop and len(records) < limit:
            line = lines.readline()
            end += len(line)
            if not line.endswith(b"\n"):
                end = file.size  # torn: it was never reported as written
            elif (record := _decoded(line)) is not None:
                records.append(record)
            else:
                damaged += 1
    return Chunk(records, damaged, end)


def _files(folder: Path, names: str) -> list[_File]:
    found = []
    for path in sorted(folder.glob(names)):
        with suppress(FileNotFoundError):
            found.append(_File(path, path.stat().st_size))
    return found


def _locked(path: Path) -> int | None:
    """Open and lock a file, which is created if it is missing. None: another process has the lock. Raises OSError."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        os.close(lock)
        raise
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    os.close(lock)  # its last owner has just removed it
    return None


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
