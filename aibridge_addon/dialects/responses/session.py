"""Read what a Responses request says about its session. Sans-io."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from aibridge_addon.dialects.base import NOTHING
from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.json_values import as_dict, as_text

MAX_MEMBERS = 64
"""Maximum number of members that are read of `client_metadata`."""
MAX_VALUE = 64 * 1024
"""Characters. A longer member of `client_metadata` is not read."""


def conversation(body: JSONObject) -> str | None:
    """Return the id of the conversation, which is a text or an object with an `id`."""
    value = body.get("conversation")
    return as_text(value) or as_text(as_dict(value).get("id")) or None


def client_metadata(body: JSONObject) -> Mapping[str, str]:
    """Return the texts of `client_metadata`."""
    members = itertools.islice(as_dict(body.get("client_metadata")).items(), MAX_MEMBERS)
    return {name: value for name, value in members if isinstance(value, str) and len(value) <= MAX_VALUE} or NOTHING
