"""Create the sink and the reader of the configured database."""

from __future__ import annotations

from pathlib import Path

from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.config.schema import Settings
from aibridge_addon.recording.recorder import Recorder
from aibridge_addon.recording.sqlite.claims import SqliteLedger
from aibridge_addon.recording.sqlite.reader import AsyncReader, SqliteReader
from aibridge_addon.recording.sqlite.store import SqliteStore
from aibridge_addon.records import Ask, Sink


def database_sink(settings: Settings, _whole: Ask) -> Sink:
    """Create the sink that writes rows. Raises ConfigError."""
    recording = settings.recording
    store = SqliteStore(_path(settings), durable=recording.durable)
    return Recorder(store, required=recording.on_failure == "closed")


def continuation_reader(settings: Settings) -> AsyncReader:
    """Create the reader of continuations. Raises ConfigError."""
    return AsyncReader(SqliteReader(_path(settings)))


def result_ledger(settings: Settings) -> SqliteLedger:
    """Create what shows whether a result was recorded before. Raises ConfigError."""
    return SqliteLedger(_path(settings))


def _path(settings: Settings) -> Path:
    path = settings.database.sqlite_path
    if path is None:
        raise ConfigError([Problem("database", str(settings.database), "sqlite:///file in this version")])
    return path
