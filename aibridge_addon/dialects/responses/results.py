"""Read the results of the client's own calls at the end of a Responses request. Sans-io."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from aibridge_addon.dialects.client_results import MAX_ENTRIES, ClientResult, client_result, newest
from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.json_values import as_dict, as_text


def tool_results(body: JSONObject) -> tuple[ClientResult, ...]:
    """Return the results that follow the last answer of the model.

    A client may send each result right after its call. So calls do not end the search, other output of the model does.
    """
    return newest(_backwards(body))


def _backwards(body: JSONObject) -> Iterator[ClientResult]:
    found = False
    for item in map(as_dict, itertools.islice(body.elements_backwards("input"), MAX_ENTRIES)):
        kind, role = as_text(item.get("type")), item.get("role")
        if role == "assistant" or kind == "reasoning" or (role == "user" and found):
            return
        if kind.endswith("_call_output"):
            found = True
            yield client_result(item.get("call_id"), item.get("output"), is_error=_is_error(item))


def _is_error(item: dict[str, Any]) -> bool:
    return item.get("status") in ("failed", "incomplete") or as_dict(item.get("output")).get("success") is False
