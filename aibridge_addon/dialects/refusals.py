"""Read in a provider's error why it refuses a request, as far as the bridge can help: it made a part of it. Sans-io.

Statuses and words are those of the providers' errors:

- Anthropic: "prompt is too long: 210000 tokens > 200000 maximum", 413 `request_too_large`,
  "tools.3.custom.input_schema: JSON schema is invalid".
- OpenAI: code `context_length_exceeded`, "Invalid schema for function 'bmcp_a_x'", `param`
  "tools[3].function.parameters".
- Gemini: "The input token count (1) exceeds the maximum", "tools[0].function_declarations[3].parameters".
- Bedrock: "Input is too long for requested model", "toolConfig.tools.3.member.toolSpec.inputSchema".
- FastAPI, which vLLM and Mistral use: `"loc": ["body", "tools", 3, "function"]`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from aibridge_addon.dialects.errors import AnswerError, error_of_body
from aibridge_addon.wire.json_values import as_text

REFUSED = frozenset((400, 404, 413, 422))
"""Statuses with which providers refuse what a request contains."""
TOO_LARGE = 413
RATE_LIMITED = 429
"""OpenAI answers so if one request is larger than the tokens of a minute."""
TOO_LONG = frozenset(
    ("context_length_exceeded", "request_too_large", "string_above_max_length", "exceed_context_size_error")
)
"""Types and codes of errors about a context that is too long."""
MAX_NAMED = 8
"""An error that names more tools repeats the request."""

_too_long = re.compile(
    r"(?i)too long|too large|too many (?:input )?tokens|context[ _](?:length|window|limit|size)|maximum context"
    r"|reduce the length|token count|tokens? [^.]{0,40}exceed|exceeds? [^.]{0,40}tokens?|maximum number of tokens"
).search
_indexes = re.compile(rb"(?:function_declarations|\btools)\W{1,4}(\d{1,4})\b").findall
_declarations = re.compile(rb"function_declarations\W{1,4}(\d{1,4})\b").findall
_words = re.compile(rb"[A-Za-z0-9_-]{1,64}").findall
_no_tools = re.compile(
    r"(?i)(?:does not|doesn't|do not|don't|not) (?:currently )?(?:support|allow|enable)[^.]{0,40}(?:tool|function)"
    r"|no endpoints found that support tool|(?:tools?|functions?|tool use|tool calling|function calling)[`'\"]?"
    r" (?:is|are) not (?:supported|allowed|enabled|available)"
).search


def is_too_long(status: int, error: AnswerError) -> bool:
    """Return whether an error says that a request is longer than the provider accepts."""
    if status == TOO_LARGE or not TOO_LONG.isdisjoint((error.type, as_text(error.details.get("code")))):
        return True
    return status in (*REFUSED, RATE_LIMITED, 200) and _too_long(error.message) is not None


def takes_no_tools(body: bytes) -> bool:
    """Return whether an error says that the model accepts no tools at all."""
    return _no_tools(error_of_body(body, default_type="").message) is not None


def names_tools_at_all(body: bytes) -> bool:
    """Return whether an error is about tools, without a name or a place."""
    return b"tool" in body.lower() or b"function" in body.lower()


def named_tools(body: bytes, sent: Sequence[str], injected: Collection[str]) -> list[str]:
    """Return the injected tools that an error names: by their name, or by their place in the request.

    Args:
        body: The body of the error, decoded.
        sent: The names of all tools of the request, in its order.
        injected: The names of the injected tools.
    """
    words = {word.decode() for word in _words(body)}
    named = [name for name in sent if name in injected and name in words]
    if 0 < len(named) <= MAX_NAMED:
        return named
    places = map(int, _declarations(body) or _indexes(body))
    at = [sent[place] for place in dict.fromkeys(places) if place < len(sent)]
    return [name for name in at if name in injected][:MAX_NAMED]
