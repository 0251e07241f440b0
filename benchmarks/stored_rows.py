"""Rows of a year for the database benchmark: the same for every run and every database."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from aibridge_addon.ids import RANDOM_BITS, ordered_id

END = datetime(2026, 7, 1, tzinfo=UTC)
DAYS = 365
ACTORS = 200
MODELS = (
    ("anthropic", "claude-sonnet-4-5", "Claude Code", 0.5),
    ("anthropic", "claude-opus-4-5", "Claude Code", 0.7),
    ("anthropic", "claude-haiku-4-5", "Claude Code", 0.8),
    ("openai", "gpt-5.1-codex", "Codex", 0.9),
    ("openai", "gpt-5.1", "Cursor", 0.97),
    ("copilot", "gpt-5-mini", "GitHub Copilot", 1.0),
)
"""Provider, model, client, and the share of interceptions up to here."""
TABLES = ("aibridge_interceptions", "aibridge_token_usages", "aibridge_user_prompts", "aibridge_tool_usages")
COLUMNS: dict[str, tuple[str, ...]] = {
    "aibridge_interceptions": (
        *("id", "initiator_id", "provider", "provider_name", "model", "client", "client_session_id", "session_id"),
        *("user_agent", "route", "streaming", "started_at", "ended_at", "status", "http_status", "credential_kind"),
        *("credential_hint", "thread_parent_id", "thread_root_id", "turns", "metadata", "upstream_host", "project"),
        *("request_class", "billing", "time_to_first_byte_ms"),
    ),
    "aibridge_token_usages": (
        *("id", "interception_id", "provider_response_id", "model", "input_tokens", "output_tokens"),
        *("cache_read_input_tokens", "cache_write_input_tokens", "completeness", "cost_usd", "metadata", "created_at"),
        *("turn", "kind", "stop_reason", "cost_source", "price_list", "unpriced"),
    ),
    "aibridge_user_prompts": (
        *("id", "interception_id", "provider_response_id", "prompt", "metadata", "created_at", "sequence"),
    ),
    "aibridge_tool_usages": (
        *("id", "interception_id", "provider_response_id", "provider_tool_call_id", "tool", "server_name", "input"),
        *("injected", "duration_ms", "metadata", "created_at", "sequence", "result"),
    ),
}
SESSION = 40
"""Interceptions of a session, of which each continues the one before."""
AT_ONCE = 20
"""Sessions at the same time."""
PROMPT = "Please have a look at the failing test, find out why it fails, and correct the code. "
RESULT = "total 48\ndrwxr-xr-x 2 root root 4096 Jan  1 00:00 .\n"


def stored(interceptions: int) -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Yield the rows of each interception with their tables: 3.5 rows on average."""
    chance = random.Random(4711)
    step = timedelta(days=DAYS) / interceptions
    began = END - timedelta(days=DAYS)
    sessions: list[_Session] = []
    for number in range(interceptions):
        if len(sessions) < AT_ONCE:
            sessions.append(_Session.begin(chance))
        place = chance.randrange(len(sessions))
        session = sessions[place]
        if session.left == 0:
            session = sessions[place] = _Session.begin(chance)
        yield list(session.interception(chance, began + number * step))


@dataclass
class _Session:
    id: str
    actor: str
    provider: str
    model: str
    client: str
    left: int = SESSION
    root: str | None = None
    parent: str | None = None

    @classmethod
    def begin(cls, chance: random.Random) -> _Session:
        share = chance.random()
        provider, model, client, _ = next(row for row in MODELS if share <= row[3])
        return cls(
            str(uuid.UUID(int=chance.getrandbits(128), version=4)),
            f"user-{chance.randrange(ACTORS):03}",
            provider,
            model,
            client,
        )

    def interception(self, chance: random.Random, at: datetime) -> Iterator[tuple[str, tuple[Any, ...]]]:
        id, now, later = _id(chance, at), _time(at), _time(at + timedelta(seconds=chance.randrange(1, 60)))
        failed, is_prompt = chance.random() < 0.02, self.left % 3 == 2
        billing = "subscription" if self.client == "Claude Code" and chance.random() < 0.5 else "api"
        yield (
            TABLES[0],
            (
                *(id, self.actor, self.provider, self.provider, self.model, self.client, self.id, self.id),
                *("claude-cli/2.0.1 (external, cli)", "/v1/messages", True, now, later),
                *("failed" if failed else "completed", 529 if failed else 200, "byok", "sk-a...wxyz"),
                *(self.parent, self.root, 1, "{}", f"api.{self.provider}.com", "/src/project"),
                *("prompt" if is_prompt else "tool_result", billing, chance.randrange(200, 4000)),
            ),
        )
        self.left -= 1
        self.parent, self.root = id, self.root or id
        answer = f"msg_{id[:24]}"
        for turn in range(1, 3 if chance.random() < 0.25 else 2):
            read, written = chance.randrange(100_000), chance.randrange(4_000)
            cached = (
                f'{{"prompt_cached":{read}}}'
                if self.provider == "openai"
                else f'{{"cache_read_input":{read},"cache_creation_input":{written}}}'
            )
            priced = chance.random() < 0.95
            cost = round(chance.random() / 5, 6) if priced else None
            yield (
                TABLES[1],
                (
                    *(_id(chance, at), id, answer, self.model, chance.randrange(3_000), chance.randrange(2_000)),
                    *(read, written, "complete", cost, cached, later, turn, "answer"),
                    *("end_turn", "price_list" if priced else None, "1.0" if priced else None),
                    None if priced else "model: no price",
                ),
            )
        if is_prompt:
            yield TABLES[2], (_id(chance, at), id, answer, PROMPT * chance.randrange(1, 8), "{}", now, 0)
        for number in range(chance.choice((0, 1, 1, 1, 1, 1, 1, 1, 1, 2))):
            call = f"toolu_{id[:20]}{number}"
            yield (
                TABLES[3],
                (
                    *(_id(chance, at), id, answer, call, chance.choice(("Read", "Bash", "Edit", "Grep")), None),
                    *('{"file_path":"/src/project/src/main.py"}', False, None, "{}", later, number + 1),
                    RESULT * chance.randrange(1, 5),
                ),
            )


def _id(chance: random.Random, at: datetime) -> str:
    """Return an id as the bridge makes them."""
    return ordered_id(at, chance.getrandbits(RANDOM_BITS))


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


def by_table(rows: Sequence[tuple[str, tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = {table: [] for table in TABLES}
    for table, row in rows:
        found[table].append(row)
    return found
