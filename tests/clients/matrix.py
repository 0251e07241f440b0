"""Every client of the matrix, in the order of the table."""

from __future__ import annotations

from tests.clients.agents import AGENTS
from tests.clients.entry import NotRun
from tests.clients.libraries import LIBRARIES

CLIENTS = (*AGENTS, *LIBRARIES)

NOT_RUN = (
    NotRun("Gemini CLI", "0.61.0", "it speaks only Google's API, which no provider of the bridge has: it is tunnelled"),
)
