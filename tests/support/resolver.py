"""A mitmproxy script that stands in for the system's resolver: scripted names, with answers that may change.

`SCRIPTED_NAMES` in the environment: a JSON object of a name's answers, each a list of addresses; the last one repeats.
Every other name is not known. The servers of a name that begins with `silent` never answer.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import Any

SILENCE = 60.0
"""Seconds. Longer than any test waits."""

_answers: dict[str, list[list[str]]] = json.loads(os.environ.get("SCRIPTED_NAMES", "{}"))
_systems = socket.getaddrinfo


def _getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
    name = host.decode() if isinstance(host, bytes) else host
    if not isinstance(name, str) or name == "localhost" or name[:1].isdigit() or ":" in name:
        return list(_systems(host, port, *args, **options))
    if name.startswith("silent"):
        threading.Event().wait(SILENCE)
    answers = _answers.get(name)
    if not answers:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    addresses = answers.pop(0) if len(answers) > 1 else answers[0]
    return [found for address in addresses for found in _systems(address, port, *args, **options)]


socket.getaddrinfo = _getaddrinfo
