"""The wire formats that are bridged, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.bedrock.converse import Converse
from aibridge_addon.dialects.bedrock.invoke import Invoke
from aibridge_addon.dialects.chat_completions.inject import ChatInjection
from aibridge_addon.dialects.chat_completions.reader import ChatCompletions
from aibridge_addon.dialects.messages.inject import MessagesInjection
from aibridge_addon.dialects.messages.reader import Messages
from aibridge_addon.dialects.responses.inject import ResponsesInjection
from aibridge_addon.dialects.responses.reader import Responses
from aibridge_addon.dialects.turns import Injection

MESSAGES: Dialect = Messages()
CHAT_COMPLETIONS: Dialect = ChatCompletions()
RESPONSES: Dialect = Responses()
INVOKE: Dialect = Invoke(streaming=False)
INVOKE_STREAM: Dialect = Invoke(streaming=True)
CONVERSE: Dialect = Converse(streaming=False)
CONVERSE_STREAM: Dialect = Converse(streaming=True)

INJECTIONS: Mapping[str, Injection] = MappingProxyType(
    {
        Messages.name: MessagesInjection(),
        ChatCompletions.name: ChatInjection(),
        Responses.name: ResponsesInjection(),
    }
)
"""How tools are injected, by the dialect's name; nothing is injected into any other."""
