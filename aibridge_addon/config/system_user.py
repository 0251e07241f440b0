"""The operating system's user: the actor where the configuration names none."""

from __future__ import annotations

import getpass


def operating_system_user() -> str:
    """Return the user that this process runs as; in a container it may have a number without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
