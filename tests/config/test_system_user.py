"""The operating system's user, by name where it has one."""

from __future__ import annotations

import getpass
import os
import pwd

import pytest

from aibridge_addon.config.system_user import operating_system_user


def test_a_process_whose_user_has_no_name_still_has_an_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the user may be a number only."""

    def nobody(_uid: int) -> pwd.struct_passwd:
        raise KeyError

    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert operating_system_user() == "unknown"
    monkeypatch.undo()
    assert operating_system_user() == (os.environ.get("LOGNAME") or getpass.getuser())
