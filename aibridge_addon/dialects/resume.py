"""How the requests that follow an answer of several turns are completed, by wire format. See `kept`."""

from __future__ import annotations

from collections.abc import Mapping

from aibridge_addon.dialects.chat_completions.history import ChatResumption
from aibridge_addon.dialects.history import Resumption
from aibridge_addon.dialects.messages.history import MessagesResumption
from aibridge_addon.dialects.responses.history import ResponsesResumption

RESUMPTIONS: Mapping[str, Resumption] = {
    "messages": MessagesResumption(),
    "chat_completions": ChatResumption(),
    "responses": ResponsesResumption(),
}
"""By `Dialect.name`."""
