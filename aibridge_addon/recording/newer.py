"""Notice a database whose schema a newer version has changed. An older one might damage what it does not know."""

from __future__ import annotations

from collections.abc import Iterable

from aibridge_addon.records import DatabaseUnavailable


class NewerSchema(DatabaseUnavailable):
    """The database is there, and this version must not write to it."""


def check_steps(applied: Iterable[str], known: Iterable[str]) -> None:
    """Raises NewerSchema if a step was applied that this version does not know."""
    if unknown := sorted(set(applied) - set(known)):
        raise NewerSchema(
            f"a newer version of aibridge has changed the database (step {', '.join(unknown)}). Install that version,"
            " or use another database"
        )
