"""A content view of mitmproxy that shows an AI request or answer as a conversation."""

from __future__ import annotations

import re
from types import MappingProxyType

from mitmproxy import http
from mitmproxy.contentviews import Contentview, Metadata

from aibridge_addon import dialects
from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.interception.tap import Tap
from aibridge_addon.proxy.flow.state import Bridged, state_of
from aibridge_addon.proxy.interactive import conversation
from aibridge_addon.proxy.interactive.kept_bodies import CUT
from aibridge_addon.wire.json_object import NotJSON, Unreadable, decode
from aibridge_addon.wire.json_values import as_dict, as_text
from aibridge_addon.wire.printable import printable

BY_PATH = (
    (re.compile(r"/messages$"), dialects.MESSAGES),
    (re.compile(r"/chat/completions$"), dialects.CHAT_COMPLETIONS),
    (re.compile(r"/responses(/[^/]+)?$"), dialects.RESPONSES),
    (re.compile(r"/model/[^/]+/invoke$"), dialects.INVOKE),
    (re.compile(r"/model/[^/]+/invoke-with-response-stream$"), dialects.INVOKE_STREAM),
    (re.compile(r"/model/[^/]+/converse$"), dialects.CONVERSE),
    (re.compile(r"/model/[^/]+/converse-stream$"), dialects.CONVERSE_STREAM),
)
"""The dialect of a flow that was loaded from a file, by its path."""
LIMITS = Limits()
RESPONSE_EVENTS = MappingProxyType({"response.completed": "response", "response.failed": "response"})


class ConversationView(Contentview):
    @property
    def name(self) -> str:
        return "AI conversation"

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        """Raises ValueError: this is no AI request and no answer."""
        dialect = _dialect(metadata)
        text = ""
        if dialect is not None and metadata.websocket_message is not None:
            text = _message(data)
        elif dialect is not None and isinstance(metadata.http_message, http.Response):
            text = _answer(data, dialect, metadata.http_message, metadata.flow)
        elif dialect is not None:
            text = conversation.request(_object(data))
        if not text:
            raise ValueError("not an AI request or answer")
        return text

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        return 2 if data and _dialect(metadata) is not None else -1


def _dialect(metadata: Metadata) -> Dialect | None:
    flow = metadata.flow
    if not isinstance(flow, http.HTTPFlow) or (metadata.http_message is None and metadata.websocket_message is None):
        return None
    state = state_of(flow)
    if isinstance(state, Bridged):
        return state.head.route.dialect
    path = flow.request.path.partition("?")[0]
    return next((dialect for pattern, dialect in BY_PATH if pattern.search(path)), None)


def _answer(data: bytes, dialect: Dialect, response: http.Response, flow: object) -> str:
    tap = Tap(
        dialect.answer_reader(texts=True),
        status=response.status_code,
        content_type=response.headers.get("content-type", ""),
        content_encoding="",  # mitmproxy has decoded it
        limits=LIMITS,
    )
    tap.feed(data)
    tap.finish()
    text = conversation.answer(tap.reader.reading)
    limit = flow.metadata.get(CUT) if isinstance(flow, http.HTTPFlow) else None
    return f"{text}\n\n(only the first {limit:,} bytes of this answer are kept)" if text and limit else text


def _message(data: bytes) -> str:
    """Return a message of a WebSocket: a request, a whole answer, or an event by its name."""
    event = _object(data)
    kind = as_text(event.get("type"))
    if kind == "response.create":
        return conversation.request(as_dict(event.get("response")) or event)
    if kind in RESPONSE_EVENTS:
        reader = dialects.RESPONSES.answer_reader(texts=True)
        reader.event("", data)
        return conversation.answer(reader.reading)
    delta = event.get("delta")
    return printable(f"{kind}: {delta}" if isinstance(delta, str) else kind)


def _object(data: bytes) -> dict[str, object]:
    try:
        return as_dict(decode(data))
    except (NotJSON, Unreadable) as e:
        raise ValueError("not JSON") from e
