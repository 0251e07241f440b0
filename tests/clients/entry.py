"""One client of the matrix, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Template
from typing import Any

from tests.clients.cases import TOOL_OUTPUT, WAYS, Way
from tests.clients.installs import Install

WEATHER = "get_weather"


@dataclass(frozen=True)
class Call:
    """The client's own tool that the model calls."""

    name: str = WEATHER
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"city": "Lisbon"})

    @property
    def text(self) -> str:
        return json.dumps(self.arguments)


def shell(name: str, **more: Any) -> Call:
    """An agent's tool that runs a command."""
    return Call(name, {"command": f"echo {TOOL_OUTPUT}"} | more)


@dataclass(frozen=True)
class Client:
    """How a client is installed and run.

    Texts are templates: `$bin` is the folder of its programs, `$installed` that of the installation, `$programs` that
    of our own, `$url` the bridge's address, `$ca` and `$bundle` the CA alone and with the system's roots, `$home` the
    run's own folder, `$prompt` and `$case` what is to be done.
    """

    name: str
    install: Install
    command: tuple[str, ...]
    dialect: str
    recorded_as: str = "Unknown"
    """The column `client`."""
    tool: Call | None = Call()
    model: str = ""
    """How requests name the model, of a client without tools; calls for itself name another."""
    env: Mapping[str, str] = field(default_factory=dict)
    programs: tuple[str, ...] = ()
    """Programs of ours that have to be beside the installed packages: they are copied into the run's folder."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Written into the run's folder, by their path there."""
    proxy: Mapping[str, str] = field(default_factory=dict)
    """Environment variables as a client of the proxy, besides HTTPS_PROXY; such as the one for the CA."""
    gateway: Mapping[str, str] = field(default_factory=dict)
    """Environment variables as a client of the gateway."""
    proxy_arguments: tuple[str, ...] = ()
    gateway_arguments: tuple[str, ...] = ()
    ways: tuple[Way, ...] = WAYS
    without_way: str = ""
    """Why it cannot be run the other way."""
    websockets: bool = False
    """Whether it speaks the Responses API over a WebSocket, where nothing is injected."""
    signed: bool = False
    """Whether its requests are signed, so that nothing is injected."""
    interrupted: bool = False
    """Whether it is cancelled by a signal; else it leaves by itself in the middle of the stream."""
    time_limit: float = 60.0

    @property
    def version(self) -> str:
        return next(iter(self.install.versions.values()))


@dataclass(frozen=True)
class NotRun:
    """A client that is no part of the runs, and why."""

    name: str
    version: str
    reason: str


def filled(text: str, places: Mapping[str, str]) -> str:
    return Template(text).substitute(places)
