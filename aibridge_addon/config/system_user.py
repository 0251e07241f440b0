"""The operating system's user, which is the actor if the configuration names none."""

from __future__ import annotations

import getpass


def operating_system_user() -> str:
    """Return the user name of this process, or `unknown` if the user id has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
