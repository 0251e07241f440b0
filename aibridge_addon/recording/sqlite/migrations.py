"""The schema as numbered steps. Released steps are never edited; a change is a new step.

Table and column names are those of Coder's own tables. `docs/schema.md` describes them. Ids are UUID text, times are
UTC in ISO 8601 with microseconds, and JSON columns contain text.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from aibridge_addon.recording.newer import check_steps
from aibridge_addon.recording.sqlite import hourly_usage

MIGRATION_TIMEOUT_MS = 120_000
"""Milliseconds. Maximum time that a process waits for another one's migration, which may read all rows."""

steps = Migrations("aibridge")


def migrate(db: Database) -> None:
    """Apply the missing steps. If several processes start at the same time, one of them applies the steps.

    Raises DatabaseUnavailable if a newer version has changed the schema.
    """
    if is_outdated(db):
        db.execute(f"pragma busy_timeout = {MIGRATION_TIMEOUT_MS}")
    db.execute("begin immediate")
    with db.conn:
        is_outdated(db)  # another process may have changed the schema meanwhile
        steps.apply(db)


def is_outdated(db: Database) -> bool:
    """Return whether steps are missing. Raises DatabaseUnavailable if a newer version has changed the schema."""
    check_steps((step.name for step in steps.applied(db)), (step.name for step in steps._migrations))
    return bool(steps.pending(db))


@steps(name="001_initial")
def initial(db: Database) -> None:
    text, number, real = str, int, float
    db.table("aibridge_interceptions").create(
        dict.fromkeys(
            (
                *("id", "initiator_id", "provider", "provider_name", "model", "client", "client_session_id"),
                *("session_id", "user_agent", "route"),
            ),
            text,
        )
        | {"streaming": number, "started_at": text, "ended_at": text, "status": text, "http_status": number}
        | dict.fromkeys(
            (
                *("error_type", "error_message", "credential_kind", "credential_hint"),
                *("correlating_tool_call_id", "thread_parent_id", "thread_root_id"),
            ),
            text,
        )
        | {"turns": number, "metadata": text},
        pk="id",
        not_null={"initiator_id", "provider", "provider_name", "model", "client", "started_at", "metadata"},
    )
    children: dict[str, dict[str, type]] = {
        "aibridge_token_usages": {
            "model": text,
            "input_tokens": number,
            "output_tokens": number,
            "cache_read_input_tokens": number,
            "cache_write_input_tokens": number,
            "completeness": text,
            "cost_usd": real,
        },
        "aibridge_user_prompts": {"prompt": text},
        "aibridge_tool_usages": {
            "provider_tool_call_id": text,
            "tool": text,
            "server_name": text,
            "server_url": text,
            "input": text,
            "injected": number,
            "invocation_error": text,
            "duration_ms": number,
        },
        "aibridge_model_thoughts": {"content": text},
    }
    for table, columns in children.items():
        db.table(table).create(
            {"id": text, "interception_id": text, "provider_response_id": text}
            | columns
            | {"metadata": text, "created_at": text},
            pk="id",
            foreign_keys=[("interception_id", "aibridge_interceptions", "id")],
        )
        db.table(table).create_index(["interception_id"])
    db.table("aibridge_tool_usages").create_index(["provider_tool_call_id"])
    for column in ("initiator_id", "started_at", "session_id"):
        db.table("aibridge_interceptions").create_index([column])


@steps(name="002_continuations")
def continuations(db: Database) -> None:
    db.table("aibridge_continuations").create({"key": str, "value": str, "expires_at": str}, pk="key")
    db.table("aibridge_continuations").create_index(["expires_at"])


@steps(name="003_circumstances")
def circumstances(db: Database) -> None:
    """Add what bills, threads and the order of rows need."""
    text, number = str, int
    added: dict[str, dict[str, type]] = {
        "aibridge_interceptions": dict.fromkeys(
            ("upstream_host", "agent_id", "prompt_id", "project", "request_class", "billing"), text
        )
        | {"time_to_first_byte_ms": number},
        "aibridge_token_usages": {"turn": number}
        | dict.fromkeys(("kind", "stop_reason", "cost_source", "price_list", "unpriced"), text),
        "aibridge_user_prompts": {"sequence": number},
        "aibridge_tool_usages": {"sequence": number, "result": text},
        "aibridge_model_thoughts": {"sequence": number},
    }
    for table, columns in added.items():
        for name, kind in columns.items():
            db.table(table).add_column(name, kind)
    db.execute("update aibridge_token_usages set kind = 'answer'")
    db.table("aibridge_answers").create(
        dict.fromkeys(("id", "interception_id", "provider_response_id", "content"), text)
        | {"truncated": number, "sequence": number, "metadata": text, "created_at": text},
        pk="id",
        foreign_keys=[("interception_id", "aibridge_interceptions", "id")],
    )
    db.table("aibridge_answers").create_index(["interception_id"])


@steps(name="004_threads")
def threads(db: Database) -> None:
    db.execute(
        "create table aibridge_threads (key text primary key, interception_id text, created_at text) without rowid"
    )
    db.table("aibridge_threads").create_index(["created_at"])


@steps(name="005_instances")
def instances(db: Database) -> None:
    """Add the processes that write, so that another one can end what a crash left open."""
    columns = {"id": str, "host": str, "pid": int, "version": str, "started_at": str, "heartbeat_at": str}
    db.table("aibridge_instances").create(columns, pk="id")
    db.table("aibridge_interceptions").add_column("instance_id", str)
    db.execute(
        "create index idx_aibridge_interceptions_open on aibridge_interceptions (instance_id) where ended_at is null"
    )
    db.table("aibridge_continuations").add_column("interception_id", str)
    db.execute(
        "update aibridge_continuations set interception_id = json_extract(value, '$.background')"
        " where value like '{\"background\":%' and json_valid(value)"  # SQLite refuses JSON that is nested deeply
    )
    db.execute(
        "create index idx_aibridge_continuations_interception_id on aibridge_continuations (interception_id)"
        " where interception_id is not null"
    )


@steps(name="006_hourly_usage")
def hours(db: Database) -> None:
    """Add the hourly usage of all rows, and indexes for reports, dashboards and retention."""
    text, number = str, int
    counts = ("interceptions", "failed", "input_tokens", "output_tokens", "cache_read_input_tokens")
    key = ("hour", "initiator_id", "provider_name", "model", "client", "billing")
    columns: dict[str, type] = dict.fromkeys(key, text)
    columns |= dict.fromkeys((*counts, "cache_write_input_tokens"), number) | {"cost_usd": float, "unpriced": number}
    db.table("aibridge_hourly_usage").create(columns, pk=key, not_null=set(columns))
    db.execute(hourly_usage.FILL)
    for table, *indexed in (
        ("aibridge_interceptions", "initiator_id", "started_at"),
        ("aibridge_interceptions", "session_id", "started_at"),
        ("aibridge_interceptions", "ended_at"),
        ("aibridge_interceptions", "provider", "model"),
        ("aibridge_interceptions", "client"),
        ("aibridge_interceptions", "thread_root_id"),
        ("aibridge_interceptions", "thread_parent_id"),
        ("aibridge_token_usages", "created_at"),
        ("aibridge_user_prompts", "created_at"),
        ("aibridge_tool_usages", "created_at"),
    ):
        db.table(table).create_index(indexed)
    # The indexes with `started_at` begin with the same column.
    for column in ("initiator_id", "session_id"):
        db.execute(f"drop index idx_aibridge_interceptions_{column}")


@steps(name="007_budgets")
def budgets(db: Database) -> None:
    """Add what processes have reserved."""
    columns = {"instance_id": str, "reserved": str, "updated_at": str}
    db.table("aibridge_budget_reservations").create(columns, pk="instance_id")


@steps(name="008_retention")
def retention(db: Database) -> None:
    """Add what shows whose texts were deleted, and which process deletes rows now."""
    db.table("aibridge_interceptions").add_column("content_deleted_at", str)
    db.execute(
        "create index idx_aibridge_interceptions_with_texts on aibridge_interceptions (started_at)"
        " where content_deleted_at is null"
    )
    db.table("_aibridge_leases").create({"name": str, "owner": str, "expires_at": str}, pk="name")


@steps(name="009_tokens")
def tokens(db: Database) -> None:
    texts = ("id", "actor", "groups", "hash", "hint", "note", "created_at", "expires_at", "revoked_at", "last_used_at")
    db.table("aibridge_tokens").create(
        dict.fromkeys(texts, str), pk="id", not_null={"actor", "groups", "hash", "hint", "created_at"}
    )
    db.table("aibridge_tokens").create_index(["hash"], unique=True)
    db.table("aibridge_token_key").create({"id": int, "key": str}, pk="id", not_null={"key"})


@steps(name="010_owners_of_continuations")
def owners_of_continuations(db: Database) -> None:
    """Add by which actor's continuations are found, so that they can be deleted."""
    db.table("aibridge_continuations").add_column("initiator_id", str)
    db.execute(
        "create index idx_aibridge_continuations_initiator_id on aibridge_continuations (initiator_id)"
        " where initiator_id is not null"
    )


@steps(name="011_calls")
def calls(db: Database) -> None:
    """Add indexes for the sums of calls: of all in the order of their tools, and of those that failed."""
    db.table("aibridge_tool_usages").create_index(["tool", "server_name", "injected", "created_at", "duration_ms"])
    db.execute("""
        create index idx_aibridge_tool_usages_failed
        on aibridge_tool_usages (tool, server_name, injected, created_at) where (
            invocation_error is not null or metadata <> '{}'
            and case when json_valid(metadata) then json_extract(metadata, '$.result_is_error') end is not null
        )
    """)


@steps(name="012_plan_limits")
def plan_limits(db: Database) -> None:
    """Add what providers say about the limits of plans."""
    columns: dict[str, type] = dict.fromkeys(
        ("id", "initiator_id", "provider_name", "credential_hint", "window_name"), str
    )
    columns |= dict.fromkeys(("used_ratio", "limit_value", "remaining"), float)
    columns |= dict.fromkeys(("resets_at", "observed_at", "metadata"), str)
    required = {"initiator_id", "provider_name", "credential_hint", "window_name", "observed_at", "metadata"}
    db.table("aibridge_plan_limits").create(columns, pk="id", not_null=required)
    db.table("aibridge_plan_limits").create_index(["observed_at"])
    db.table("aibridge_plan_limits").create_index(["initiator_id"])
    db.table("aibridge_plan_limits").create_index(["provider_name", "credential_hint", "window_name", "observed_at"])


@steps(name="013_tool_pins")
def tool_pins(db: Database) -> None:
    """Add the definitions of tools that were seen first or approved last."""
    columns: dict[str, type] = dict.fromkeys(("server_name", "tool", "digest", "definition", "pinned_at"), str)
    db.table("aibridge_tool_pins").create(columns, pk=("server_name", "tool"), not_null=set(columns))


@steps(name="014_mcp_logins")
def mcp_logins(db: Database) -> None:
    """Add the tokens of people who log in at MCP servers."""
    text: dict[str, type] = dict.fromkeys(("server_name", "actor", "token", "version"), str)
    times: dict[str, type] = dict.fromkeys(("created_at", "updated_at"), str)
    columns = text | times | {"claim_expires_at": str}
    db.table("aibridge_mcp_tokens").create(columns, pk=("server_name", "actor"), not_null={*text, *times})
    columns = dict.fromkeys(("server_name", "actor", "stage", "hash", "content", "created_at", "expires_at"), str)
    db.table("aibridge_mcp_logins").create(columns, pk=("server_name", "actor", "stage"), not_null=set(columns))
    db.table("aibridge_mcp_logins").create_index(["hash"], unique=True)
    db.table("aibridge_mcp_logins").create_index(["expires_at"])
    columns = dict.fromkeys(("server_name", "client", "created_at"), str)
    db.table("aibridge_mcp_clients").create(columns, pk="server_name", not_null=set(columns))
