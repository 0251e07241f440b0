"""Ways in which a PostgreSQL database is away for a while, and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType

from tests.support.databases import PostgresDatabase


@contextmanager
def stopped(postgres: PostgresDatabase) -> Iterator[None]:
    postgres.server.stop()
    try:
        yield
    finally:
        postgres.server.start()


@contextmanager
def crashed(postgres: PostgresDatabase) -> Iterator[None]:
    postgres.server.crash()
    try:
        yield
    finally:
        postgres.server.start()


@contextmanager
def out_of_connections(postgres: PostgresDatabase) -> Iterator[None]:
    server, name = postgres.server, postgres.name
    server.administrate(f"alter database {name} connection limit 0")
    server.disconnect(name)
    try:
        yield
    finally:
        server.administrate(f"alter database {name} connection limit -1")


@contextmanager
def read_only(postgres: PostgresDatabase) -> Iterator[None]:
    server, name = postgres.server, postgres.name
    server.administrate(f"alter database {name} set default_transaction_read_only = on")
    server.disconnect(name)
    try:
        yield
    finally:
        server.administrate(f"alter database {name} reset default_transaction_read_only")


def hanging(postgres: PostgresDatabase) -> AbstractContextManager[None]:
    return postgres.server.hanging()


Outage = Callable[[PostgresDatabase], AbstractContextManager[None]]
OUTAGES: Mapping[str, Outage] = MappingProxyType(
    {
        "stopped": stopped,
        "crashed": crashed,
        "out of connections": out_of_connections,
        "read-only": read_only,
        "hanging": hanging,
    }
)
