"""The schema as numbered steps. Released steps are never edited; a change is a new step at the end of `STEPS`.

Tables and columns are those of `recording/sqlite/migrations`, in PostgreSQL's own types. `docs/schema.md` describes
both.
"""

from __future__ import annotations

from aibridge_addon.recording.newer import check_steps
from aibridge_addon.recording.postgres import hourly_usage
from aibridge_addon.recording.postgres.connection import Connection

LOCK = int.from_bytes(b"aibridge")
"""Key of the advisory lock that a process holds while it migrates."""
LOCK_TIMEOUT = "120s"
"""Maximum time that a process waits for another one's migration, and a migration for a table in use."""

APPLIED = """
create table if not exists _aibridge_migrations (
    name text primary key,
    applied_at timestamptz not null default now()
)
"""

# Continuations are text and not jsonb: they go back to the provider, whose prompt cache depends on every byte.
#
# Providers choose the ids of calls, of any length. A hash index takes them all, where a B-tree refuses 2,700 bytes.
#
# Grafana dashboards join `users` in every query. The recursion reads one index entry for each user, where `select
# distinct` would read all interceptions.
INITIAL = """
create table aibridge_interceptions (
    id uuid primary key,
    initiator_id text not null,
    provider text not null,
    provider_name text not null,
    model text not null,
    client text not null,
    client_session_id text,
    session_id text,
    user_agent text,
    route text,
    streaming boolean,
    started_at timestamptz not null,
    ended_at timestamptz,
    status text,
    http_status bigint,
    error_type text,
    error_message text,
    credential_kind text,
    credential_hint text,
    correlating_tool_call_id text,
    thread_parent_id uuid,
    thread_root_id uuid,
    turns bigint,
    metadata jsonb not null,
    upstream_host text,
    agent_id text,
    prompt_id text,
    project text,
    request_class text,
    billing text,
    time_to_first_byte_ms bigint,
    instance_id uuid
);
create index on aibridge_interceptions (started_at);
create index on aibridge_interceptions (initiator_id, started_at);
create index on aibridge_interceptions (session_id, started_at);
create index on aibridge_interceptions (thread_parent_id);
create index on aibridge_interceptions (thread_root_id);
create index aibridge_interceptions_open on aibridge_interceptions (instance_id) where ended_at is null;

create table aibridge_token_usages (
    id uuid primary key,
    interception_id uuid references aibridge_interceptions (id),
    provider_response_id text,
    model text,
    input_tokens bigint,
    output_tokens bigint,
    cache_read_input_tokens bigint,
    cache_write_input_tokens bigint,
    completeness text,
    cost_usd numeric,
    metadata jsonb,
    created_at timestamptz,
    turn bigint,
    kind text,
    stop_reason text,
    cost_source text,
    price_list text,
    unpriced text
);
create index on aibridge_token_usages (interception_id);
create index on aibridge_token_usages (created_at);

create table aibridge_user_prompts (
    id uuid primary key,
    interception_id uuid references aibridge_interceptions (id),
    provider_response_id text,
    prompt text,
    metadata jsonb,
    created_at timestamptz,
    sequence bigint
);
create index on aibridge_user_prompts (interception_id);
create index on aibridge_user_prompts (created_at);

create table aibridge_tool_usages (
    id uuid primary key,
    interception_id uuid references aibridge_interceptions (id),
    provider_response_id text,
    provider_tool_call_id text,
    tool text,
    server_name text,
    server_url text,
    input jsonb,
    injected boolean,
    invocation_error text,
    duration_ms bigint,
    metadata jsonb,
    created_at timestamptz,
    sequence bigint,
    result text
);
create index on aibridge_tool_usages (interception_id);
create index on aibridge_tool_usages using hash (provider_tool_call_id);
create index on aibridge_tool_usages (created_at);

create table aibridge_answers (
    id uuid primary key,
    interception_id uuid references aibridge_interceptions (id),
    provider_response_id text,
    content text,
    truncated boolean,
    sequence bigint,
    metadata jsonb,
    created_at timestamptz
);
create index on aibridge_answers (interception_id);

create table aibridge_model_thoughts (
    id uuid primary key,
    interception_id uuid references aibridge_interceptions (id),
    provider_response_id text,
    content text,
    metadata jsonb,
    created_at timestamptz,
    sequence bigint
);
create index on aibridge_model_thoughts (interception_id);

create table aibridge_continuations (
    key text primary key,
    value text,
    expires_at timestamptz,
    interception_id uuid
);
create index on aibridge_continuations (expires_at);
create index on aibridge_continuations (interception_id) where interception_id is not null;

create table aibridge_threads (
    key text primary key,
    interception_id uuid,
    created_at timestamptz
);
create index on aibridge_threads (created_at);

create table aibridge_instances (
    id uuid primary key,
    host text,
    pid bigint,
    version text,
    started_at timestamptz,
    heartbeat_at timestamptz
);

create view users as
with recursive initiators (id) as (
    (select initiator_id from aibridge_interceptions order by initiator_id limit 1)
    union all
    select (
        select initiator_id from aibridge_interceptions where initiator_id > initiators.id order by initiator_id limit 1
    )
    from initiators where initiators.id is not null
)
select id, id as username, false as deleted from initiators where id is not null;
"""

HOURLY_USAGE = """
create table aibridge_hourly_usage (
    hour timestamptz not null,
    initiator_id text not null,
    provider_name text not null,
    model text not null,
    client text not null,
    billing text not null,
    interceptions bigint not null,
    failed bigint not null,
    input_tokens bigint not null,
    output_tokens bigint not null,
    cache_read_input_tokens bigint not null,
    cache_write_input_tokens bigint not null,
    cost_usd numeric not null,
    unpriced bigint not null,
    primary key (hour, initiator_id, provider_name, model, client, billing)
);
create index on aibridge_interceptions (ended_at);
create index on aibridge_interceptions (provider);
create index on aibridge_interceptions (client);
"""

BUDGETS = """
create table aibridge_budget_reservations (
    instance_id uuid primary key,
    reserved jsonb not null,
    updated_at timestamptz not null
);
"""

RETENTION = """
alter table aibridge_interceptions add column content_deleted_at timestamptz;
create index aibridge_interceptions_with_texts on aibridge_interceptions (started_at) where content_deleted_at is null;
"""

TOKENS = """
create table aibridge_tokens (
    id uuid primary key,
    actor text not null,
    groups jsonb not null,
    hash text not null unique,
    hint text not null,
    note text,
    created_at timestamptz not null,
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz
);
create table aibridge_token_key (id bigint primary key, key text not null);
"""

OWNERS_OF_CONTINUATIONS = """
alter table aibridge_continuations add column initiator_id text;
create index on aibridge_continuations (initiator_id) where initiator_id is not null;
"""

CALLS = """
create index aibridge_tool_usages_failed on aibridge_tool_usages (created_at) where (
    invocation_error is not null or metadata <> '{}' and metadata ->> 'result_is_error' is not null
);
"""

PLAN_LIMITS = """
create table aibridge_plan_limits (
    id uuid primary key,
    initiator_id text not null,
    provider_name text not null,
    credential_hint text not null,
    window_name text not null,
    used_ratio double precision,
    limit_value double precision,
    remaining double precision,
    resets_at timestamptz,
    observed_at timestamptz not null,
    metadata jsonb not null
);
create index on aibridge_plan_limits (observed_at);
create index on aibridge_plan_limits (initiator_id);
create index on aibridge_plan_limits (provider_name, credential_hint, window_name, observed_at);
"""

TOOL_PINS = """
create table aibridge_tool_pins (
    server_name text not null,
    tool text not null,
    digest text not null,
    definition text not null,
    pinned_at timestamptz not null,
    primary key (server_name, tool)
);
"""

MCP_LOGINS = """
create table aibridge_mcp_tokens (
    server_name text not null,
    actor text not null,
    token text not null,
    version text not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    claim_expires_at timestamptz,
    primary key (server_name, actor)
);
create table aibridge_mcp_logins (
    server_name text not null,
    actor text not null,
    stage text not null,
    hash text not null unique,
    content text not null,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    primary key (server_name, actor, stage)
);
create index on aibridge_mcp_logins (expires_at);
create table aibridge_mcp_clients (
    server_name text not null primary key,
    client text not null,
    created_at timestamptz not null
);
"""

STEPS: tuple[tuple[str, str], ...] = (
    ("001_initial", INITIAL),
    ("006_hourly_usage", HOURLY_USAGE + hourly_usage.FILL),
    ("007_budgets", BUDGETS),
    ("008_retention", RETENTION),
    ("009_tokens", TOKENS),
    ("010_owners_of_continuations", OWNERS_OF_CONTINUATIONS),
    ("011_calls", CALLS),
    ("012_plan_limits", PLAN_LIMITS),
    ("013_tool_pins", TOOL_PINS),
    ("014_mcp_logins", MCP_LOGINS),
)


def migrate(connection: Connection) -> None:
    """Apply the missing steps. If several processes start at the same time, one of them applies the steps.

    A process that finds nothing to apply takes no lock and needs no rights beyond those for the rows. Raises
    DatabaseUnavailable if a newer version has changed the schema.
    """
    if not _missing(connection):
        return
    patience, connection.patience = connection.patience, None
    with connection.transaction():
        connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
        connection.execute("set local statement_timeout = 0")
        connection.execute("select pg_advisory_xact_lock(%s)", [LOCK])
        connection.execute(APPLIED)
        for name, step in _missing(connection):
            connection.execute(step.encode())
            connection.execute("insert into _aibridge_migrations (name) values (%s)", [name])
    connection.patience = patience


def _missing(connection: Connection) -> list[tuple[str, str]]:
    (exists,) = connection.execute("select to_regclass('_aibridge_migrations') is not null").fetchone() or (False,)
    applied = connection.execute("select name from _aibridge_migrations").fetchall() if exists else []
    check_steps((name for (name,) in applied), (name for name, _ in STEPS))
    return [step for step in STEPS if (step[0],) not in applied]
