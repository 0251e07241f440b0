"""Replace secrets, and matches of the operator's own patterns, in text before it is stored.

The text is untrusted, so the patterns run in RE2, whose time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import re2

REDACTED = "[redacted]"
MAX_LEVELS = 100
"""Maximum depth of a JSON value. What is nested deeper is replaced as a whole."""

SECRETS = (
    r"\bsk-(?:ant-|proj-|svcacct-|or-v1-)?[A-Za-z0-9_-]{16,}",  # Anthropic, OpenAI, OpenRouter
    r"\bgh[pousr]_[A-Za-z0-9]{20,}",  # GitHub tokens
    r"\bgithub_pat_[A-Za-z0-9_]{20,}",
    r"\bglpat-[A-Za-z0-9_-]{20,}",  # GitLab
    r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",  # Slack
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",  # AWS access key ids
    r"\bABSK[A-Za-z0-9+/=]{40,}",  # Bedrock API keys
    r"\bAIza[A-Za-z0-9_-]{35}",  # Google API keys
    r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+",  # JSON web tokens
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?",
)
"""Credential formats that their issuers document. They are always redacted."""

# JSON escapes hide where a word begins: the JSON `"\nsk-…"` has an `n` before the secret.
_ESCAPED = re.compile(rb"\\[bfnrt]")
_ESCAPED_CODE = re.compile(rb"\\u[0-9a-fA-F]{4}")


class Redactor:
    def __init__(self, patterns: Sequence[str]) -> None:
        self._pattern = re2.compile("|".join(f"(?:{pattern})" for pattern in (*SECRETS, *patterns)))

    def text(self, text: str) -> str:
        return self._pattern.sub(REDACTED, text) if self._pattern.search(text) else text

    def encoded(self, data: bytes) -> bytes:
        """Redact UTF-8 text that may be JSON, or a piece of it. All other bytes stay unchanged."""
        # `data` with blanks in place of escapes, at the same offsets.
        blanked = _ESCAPED_CODE.sub(b" " * 6, _ESCAPED.sub(b"  ", data)) if b"\\" in data else data
        kept = []
        end = 0
        for match in self._pattern.finditer(blanked):
            kept += [data[end : match.start()], REDACTED.encode()]
            end = match.end()
        return b"".join([*kept, data[end:]]) if kept else data

    def maybe_text(self, text: str | None) -> str | None:
        return None if text is None else self.text(text)

    def value(self, value: Any, levels: int = MAX_LEVELS) -> Any:
        """Redact each text of a JSON value. In encoded JSON, escapes would hide secrets (`\\nsk-…`)."""
        match value:
            case str():
                return self.text(value)
            case list() | dict() if not levels:
                return REDACTED
            case list():
                return [self.value(element, levels - 1) for element in value]
            case dict():
                return {self.text(name): self.value(member, levels - 1) for name, member in value.items()}
        return value
