"""Read the results of the client's own calls at the end of a Messages request. Sans-io."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from aibridge_addon.dialects.client_results import MAX_ENTRIES, ClientResult, client_result, newest
from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.json_values import as_dict, as_list


def tool_results(body: JSONObject) -> tuple[ClientResult, ...]:
    """Return the results that follow the last answer of the model."""
    return newest(_backwards(body))


def _backwards(body: JSONObject) -> Iterator[ClientResult]:
    for message in map(as_dict, itertools.islice(body.elements_backwards("messages"), MAX_ENTRIES)):
        if message.get("role") == "assistant":
            return
        for block in map(as_dict, reversed(as_list(message.get("content")))):
            if block.get("type") == "tool_result":
                is_error = block.get("is_error") is True
                yield client_result(block.get("tool_use_id"), block.get("content"), is_error=is_error)
