"""The table of dialects: every bridged wire format, with its tool injection and its history.

To add a dialect, add one folder beside this file and one row here.
"""

from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.batches.reader import BatchResults, FileOfResultsReader, MessageBatchReader
from aibridge_addon.dialects.bedrock.converse import Converse
from aibridge_addon.dialects.bedrock.converse_history import ConverseHistory
from aibridge_addon.dialects.bedrock.converse_inject import ConverseInjection
from aibridge_addon.dialects.bedrock.invoke import Invoke
from aibridge_addon.dialects.bedrock.invoke_inject import InvokeInjection
from aibridge_addon.dialects.chat_completions.history import ChatHistory
from aibridge_addon.dialects.chat_completions.inject import ChatInjection
from aibridge_addon.dialects.chat_completions.reader import ChatCompletions
from aibridge_addon.dialects.messages.history import MessagesHistory
from aibridge_addon.dialects.messages.inject import MessagesInjection
from aibridge_addon.dialects.messages.reader import Messages
from aibridge_addon.dialects.responses.history import ResponsesHistory
from aibridge_addon.dialects.responses.inject import ResponsesInjection
from aibridge_addon.dialects.responses.reader import Responses
from aibridge_addon.dialects.usage_only.reader import Completions, Images, Speech, UsageOnly

MESSAGES: Dialect = Messages(injection=MessagesInjection(), history=MessagesHistory())
CHAT_COMPLETIONS: Dialect = ChatCompletions(injection=ChatInjection(), history=ChatHistory())
RESPONSES: Dialect = Responses(injection=ResponsesInjection(), history=ResponsesHistory())
INVOKE: Dialect = Invoke(streaming=False, injection=InvokeInjection(), history=MessagesHistory())
INVOKE_STREAM: Dialect = Invoke(streaming=True, injection=InvokeInjection(), history=MessagesHistory())
CONVERSE: Dialect = Converse(streaming=False, injection=ConverseInjection(streaming=False), history=ConverseHistory())
CONVERSE_STREAM: Dialect = Converse(
    streaming=True, injection=ConverseInjection(streaming=True), history=ConverseHistory()
)
USAGE_ONLY: Dialect = UsageOnly()
COMPACT: Dialect = UsageOnly(side_call=True)
COMPLETIONS: Dialect = Completions()
IMAGES: Dialect = Images()
SPEECH: Dialect = Speech()
MESSAGE_BATCH: Dialect = BatchResults(MESSAGES, MessageBatchReader)
FILE_OF_RESULTS: Dialect = BatchResults(RESPONSES, FileOfResultsReader)
