"""Read the results of the client's own calls at the end of a chat request. Sans-io."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from aibridge_addon.dialects.client_results import MAX_ENTRIES, ClientResult, client_result, newest
from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.json_values import as_dict


def tool_results(body: JSONObject) -> tuple[ClientResult, ...]:
    """Return the results that follow the last answer of the model."""
    return newest(_backwards(body))


def _backwards(body: JSONObject) -> Iterator[ClientResult]:
    for message in map(as_dict, itertools.islice(body.elements_backwards("messages"), MAX_ENTRIES)):
        if message.get("role") == "assistant":
            return
        if message.get("role") == "tool":
            yield client_result(message.get("tool_call_id"), message.get("content"))
