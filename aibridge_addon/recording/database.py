"""Create what writes to and reads from the configured database."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.config.schema import Settings
from aibridge_addon.recording.budgets import BudgetStore
from aibridge_addon.recording.export import Importer
from aibridge_addon.recording.instances import Instance
from aibridge_addon.recording.mcp_logins import McpLogins
from aibridge_addon.recording.pruning import Prunable
from aibridge_addon.recording.queries import Queries
from aibridge_addon.recording.reader import AsyncLedger, AsyncReader, BlockingLedger, BlockingReader
from aibridge_addon.recording.recorder import Recorder, Store
from aibridge_addon.recording.retention import Pruner
from aibridge_addon.recording.spool import Spool, remove_old
from aibridge_addon.recording.tokens import TokenCache, TokenStore
from aibridge_addon.recording.tool_pins import ToolPins, ToolPinStore
from aibridge_addon.records import Ask, Sink, utc_now
from aibridge_addon.records.mcp_logins import McpLoginStore

if TYPE_CHECKING:
    from aibridge_addon.recording.repricing import Prices

INSTALL = "pip install 'aibridge-mitmproxy[postgres]'"
COMMAND_TIMEOUT = 10.0
"""Seconds that a command waits for the lock of an SQLite file."""


def database_sink(settings: Settings, _whole: Ask) -> Sink:
    """Create the sink that writes rows. Raises ConfigError."""
    recording = settings.recording
    return Recorder(
        _store(settings),
        _spool(settings),
        Instance.of_this_process(utc_now()),
        required=recording.on_failure == "closed",
        needed_at_start=settings.database.sqlite_path is not None,  # a path that cannot be used is a mistake
        spool_needed=recording.spool.path is not None,
    )


def continuation_reader(settings: Settings) -> AsyncReader:
    """Create the reader of continuations. Raises ConfigError."""
    return AsyncReader(_reader(settings))


def result_ledger(settings: Settings) -> AsyncLedger:
    """Create what shows whether a result was recorded before. Raises ConfigError."""
    return AsyncLedger(_ledger(settings))


def budget_store(settings: Settings, instance_id: str) -> BudgetStore:
    """Create what budgets read and publish. Raises ConfigError."""
    if isinstance(target := _file_or_url(settings), Path):
        from aibridge_addon.recording.sqlite.budgets import SqliteBudgets

        return SqliteBudgets(target, instance_id)
    from aibridge_addon.recording.postgres.budgets import PostgresBudgets

    return PostgresBudgets(target, instance_id)


def token_cache(settings: Settings) -> TokenCache:
    """Create what checks tokens of the bridge. Raises ConfigError."""
    return TokenCache(_tokens(settings))


def token_store(settings: Settings) -> TokenStore:
    """Open the tokens of a database, which is created if there is none. Raises ConfigError and DatabaseUnavailable."""
    store = _store(settings)
    store.open()
    store.close()
    return _tokens(settings, timeout=COMMAND_TIMEOUT)


def tool_pins(settings: Settings) -> ToolPins:
    """Create what pins tools of MCP servers. Raises ConfigError."""
    return ToolPins(_tool_pins(settings))


def tool_pin_store(settings: Settings) -> ToolPinStore:
    """Open the pins of a database, which is created if there is none. Raises ConfigError and DatabaseUnavailable."""
    store = _store(settings)
    store.open()
    store.close()
    return _tool_pins(settings, timeout=COMMAND_TIMEOUT)


def mcp_logins(settings: Settings) -> McpLogins:
    """Create what keeps the tokens of people who log in at MCP servers. Raises ConfigError."""
    return McpLogins(_mcp_logins(settings))


def mcp_login_store(settings: Settings) -> McpLoginStore:
    """Open those tokens of a database, which is created if there is none.

    Raises ConfigError and DatabaseUnavailable.
    """
    store = _store(settings)
    store.open()
    store.close()
    return _mcp_logins(settings, timeout=COMMAND_TIMEOUT)


def queries(settings: Settings) -> Queries:
    """Open the database to read rows. Raises ConfigError and DatabaseUnavailable."""
    if isinstance(target := _file_or_url(settings), Path):
        from aibridge_addon.recording.sqlite.queries import SqliteQueries

        return SqliteQueries(target)
    from aibridge_addon.recording.postgres.queries import PostgresQueries

    return PostgresQueries(target)


def importer(settings: Settings) -> Importer:
    """Create what imports rows. Raises ConfigError."""
    if isinstance(target := _file_or_url(settings), Path):
        from aibridge_addon.recording.sqlite.importer import SqliteImporter

        return SqliteImporter(target, durable=True)
    from aibridge_addon.recording.postgres.importer import PostgresImporter

    return PostgresImporter(target, durable=True)


def prices(settings: Settings) -> Prices:
    """Open the database to change prices. Raises ConfigError and DatabaseUnavailable."""
    if isinstance(target := _file_or_url(settings), Path):
        from aibridge_addon.recording.sqlite.repricing import SqlitePrices

        return SqlitePrices(target)
    from aibridge_addon.recording.postgres.repricing import PostgresPrices

    return PostgresPrices(target)


def prunable(settings: Settings) -> Prunable:
    """Open the database to delete rows. Raises ConfigError and DatabaseUnavailable."""
    if isinstance(target := _file_or_url(settings), Path):
        from aibridge_addon.recording.sqlite.pruning import SqlitePrunable

        return SqlitePrunable(target)
    from aibridge_addon.recording.postgres.pruning import PostgresPrunable

    return PostgresPrunable(target)


def pruner(settings: Settings) -> Pruner:
    """Create what deletes expired rows in the background. Raises ConfigError."""
    remove_old_spools = partial(remove_old, spool_folder(settings), settings.database.place)
    return Pruner(settings.recording.retention, partial(prunable, settings), remove_old_spools)


def _spool(settings: Settings) -> Spool:
    recording = settings.recording
    return Spool(
        spool_folder(settings),
        settings.database.place,
        max_bytes=recording.spool.max_bytes,
        durable=recording.durable,
    )


def spool_folder(settings: Settings) -> Path:
    """Return the folder of the spool. Raises ConfigError."""
    file = settings.database.sqlite_path
    if settings.recording.spool.path is not None:
        return settings.recording.spool.path
    return _state_folder() if file is None else file.with_name("aibridge-spool")


def _state_folder() -> Path:
    """Return the folder for data that a program keeps between two runs (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        return (Path(state) if os.path.isabs(state) else Path.home() / ".local/state") / "aibridge"
    except RuntimeError:
        found, allowed = "null, and no home folder is known", "a folder that can be written to"
        raise ConfigError([Problem("recording.spool.path", found, allowed)]) from None


# The driver and the SQLite library are imported only where they are used.


def _store(settings: Settings) -> Store:
    durable = settings.recording.durable
    if isinstance(target := _file_or_url(settings), Path):
        from aibridge_addon.recording.sqlite.store import SqliteStore

        return SqliteStore(target, durable=durable)
    from aibridge_addon.recording.postgres.store import PostgresStore

    return PostgresStore(target, durable=durable)


def _reader(settings: Settings) -> BlockingReader:
    if isinstance(target := _file_or_url(settings), Path):
        from aibridge_addon.recording.sqlite.reader import SqliteReader

        return SqliteReader(target)
    from aibridge_addon.recording.postgres.reader import PostgresReader

    return PostgresReader(target)


def _ledger(settings: Settings) -> BlockingLedger:
    if isinstance(target := _file_or_url(settings), Path):
        from aibridge_addon.recording.sqlite.claims import SqliteLedger

        return SqliteLedger(target)
    from aibridge_addon.recording.postgres.claims import PostgresLedger

    return PostgresLedger(target)


def _tokens(settings: Settings, *, timeout: float | None = None) -> TokenStore:
    if isinstance(target := _file_or_url(settings), Path):
        from aibridge_addon.recording.sqlite.tokens import SqliteTokens

        return SqliteTokens(target, timeout=timeout)
    from aibridge_addon.recording.postgres.tokens import PostgresTokens

    return PostgresTokens(target)


def _tool_pins(settings: Settings, *, timeout: float | None = None) -> ToolPinStore:
    if isinstance(target := _file_or_url(settings), Path):
        from aibridge_addon.recording.sqlite.tool_pins import SqliteToolPins

        return SqliteToolPins(target, timeout=timeout)
    from aibridge_addon.recording.postgres.tool_pins import PostgresToolPins

    return PostgresToolPins(target)


def _mcp_logins(settings: Settings, *, timeout: float | None = None) -> McpLoginStore:
    if isinstance(target := _file_or_url(settings), Path):
        from aibridge_addon.recording.sqlite.mcp_logins import SqliteMcpLogins

        return SqliteMcpLogins(target, timeout=timeout)
    from aibridge_addon.recording.postgres.mcp_logins import PostgresMcpLogins

    return PostgresMcpLogins(target)


def _file_or_url(settings: Settings) -> Path | str:
    """Return the file of SQLite, or the URL of PostgreSQL.

    Raises ConfigError if psycopg is not installed or does not accept the URL.
    """
    if (file := settings.database.sqlite_path) is not None:
        return file
    url = settings.database.get_secret_value()
    try:
        import psycopg

        from aibridge_addon.recording.postgres.connection import parse
    except ImportError as e:
        raise ConfigError([Problem("database", "psycopg is not installed", f"what needs it: {INSTALL}")]) from e
    try:
        parse(url)
    except psycopg.ProgrammingError:  # its message may contain the password
        expected = "a URL that libpq accepts: postgresql://user:password@host:port/name?sslmode=verify-full"
        raise ConfigError([Problem("database", str(settings.database), expected)]) from None
    return url
