"""The wire formats that are bridged, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.bedrock_converse import Converse
from aibridge_addon.dialects.bedrock_invoke import Invoke
from aibridge_addon.dialects.chat_completions import ChatCompletions
from aibridge_addon.dialects.chat_inject import ChatInjection
from aibridge_addon.dialects.messages import Messages
from aibridge_addon.dialects.messages_inject import MessagesInjection
from aibridge_addon.dialects.responses import Responses
from aibridge_addon.dialects.responses_inject import ResponsesInjection
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
