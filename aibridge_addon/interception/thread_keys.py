"""Keys under which a later request finds what it continues: an answer, or a call of it. Sans-io."""

from __future__ import annotations

from aibridge_addon.dialects.base import RequestReading, ToolCall
from aibridge_addon.dialects.place import ANY, Place, call_digest
from aibridge_addon.interception.scope import Scope


def keys_of_request(scope: Scope, request: RequestReading) -> tuple[str, ...]:
    """Return the keys of what a request continues, the most exact one first: an answer, or a call."""
    continued = request.previous_response_id
    keys = [key_of_answer(scope, continued)] if continued else []
    call_id, places = request.answered_call_id, list(request.result_of)
    if not call_id:
        return tuple(keys)
    if not places:
        places.append(Place(ANY, call_id))
    elif scope.session and places[0].call:
        # The session is the conversation. Some clients change its opening.
        places.append(Place(ANY, call_id, places[0].call))
    return (*keys, *(scope.place_key("lineage", place) for place in places))


def key_of_answer(scope: Scope, response_id: str) -> str:
    return scope.place_key("lineage", Place(("answer", response_id), ""))


def keys_of_call(scope: Scope, request: RequestReading, response_id: str, call: ToolCall) -> tuple[str, ...]:
    """Return the keys under which a later request finds this call of an answer with that id."""
    if not call.call_id:
        return ()
    digest = call_digest(call.name, call.input)
    in_request = ("opening", "history")
    after = (*request.position.after(response_id), ANY)
    places = [Place(before, call.call_id, digest if before[0] in in_request else "") for before in after]
    if scope.session:
        places.append(Place(ANY, call.call_id, digest))
    return tuple(scope.place_key("lineage", place) for place in places)
