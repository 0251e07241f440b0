"""The dialects that take tools of ours, with what each of them does for that, by their names."""

from __future__ import annotations

from collections.abc import Mapping

from aibridge_addon.dialects import CHAT_COMPLETIONS, CONVERSE, MESSAGES, RESPONSES
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.history import History
from aibridge_addon.dialects.turns import Injection

DIALECTS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in (MESSAGES, CHAT_COMPLETIONS, RESPONSES)}
INJECTIONS: Mapping[str, Injection] = {n: d.injection for n, d in DIALECTS.items() if d.injection is not None}
HISTORIES: dict[str, History] = {n: d.history for n, d in DIALECTS.items() if d.history is not None}
ALL_HISTORIES: Mapping[str, History] = HISTORIES | ({CONVERSE.name: CONVERSE.history} if CONVERSE.history else {})
"""Also Converse's. InvokeModel has the history of Messages."""
