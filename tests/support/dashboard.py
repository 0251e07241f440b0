"""The queries of Coder's Grafana dashboard: four variables and nine panels.

They are as the dashboard's panels are described: joined with `users`, filtered by time and by variables of which
several values may be chosen, with cached tokens from the metadata.
"""

from __future__ import annotations

import re
from datetime import datetime

JOINED = "from aibridge_interceptions i join users u on i.initiator_id = u.id"
FILTER = """
where $__timeFilter(i.started_at) and u.username ~ '${username:regex}' and i.provider ~ '${provider:regex}'
and i.model ~ '${model:regex}' and i.client ~ '${client:regex}'
"""
SUMS = """
sum(t.input_tokens) as input, sum(t.output_tokens) as output,
sum(coalesce((t.metadata->>'cache_read_input')::bigint, (t.metadata->>'prompt_cached')::bigint, 0)) as cache_read,
sum(coalesce((t.metadata->>'cache_creation_input')::bigint, 0)) as cache_write
"""
TOKENS = "join aibridge_token_usages t on t.interception_id = i.id"
QUERIES = {
    "username": "select distinct username from users where deleted = false order by username",
    "provider": "select distinct provider from aibridge_interceptions order by provider",
    "model": "select distinct model from aibridge_interceptions where provider ~ '${provider:regex}' order by model",
    "client": "select distinct coalesce(client, 'Unknown') as client from aibridge_interceptions order by client",
    "Total usage": f"select {SUMS} {JOINED} {TOKENS} {FILTER}",
    "Leaderboard per user": f"select u.username, {SUMS} {JOINED} {TOKENS} {FILTER} group by u.username"
    " order by input desc",
    "Top models": f"select i.model, count(*) as n {JOINED} {FILTER} group by i.model order by n desc, model",
    "Top clients": f"select i.client, count(*) as n {JOINED} {FILTER} group by i.client order by n desc",
    "Approximate Cost": f"select i.provider, i.model, {SUMS} {JOINED} {TOKENS} {FILTER}"
    " group by i.provider, i.model order by input",
    "Total interceptions": f"select count(distinct i.id) as n {JOINED} {FILTER}",
    "Interceptions over time by user": "select $__timeGroup(i.started_at, 86400) as time, u.username as metric,"
    f" count(i.id) as value {JOINED} {FILTER} group by time, u.username order by time, metric",
    "User Prompts": f"select p.created_at, u.username, i.provider, i.model, p.prompt {JOINED}"
    f" join aibridge_user_prompts p on p.interception_id = i.id {FILTER} order by p.created_at desc",
    "Tool Calls": "select c.created_at, u.username, i.model, c.tool, c.input, c.injected, c.server_url,"
    f" c.invocation_error {JOINED} join aibridge_tool_usages c on c.interception_id = i.id {FILTER}"
    " order by c.created_at desc",
}


def expanded(query: str, since: datetime, until: datetime, **chosen: str) -> str:
    """Replace Grafana's macros and variables. A variable of which all values are chosen matches everything."""
    query = re.sub(r"\$\{(\w+):regex\}", lambda match: chosen.get(match[1], ".*"), query)
    query = re.sub(r"\$__timeFilter\(([\w.]+)\)", rf"\1 between '{since.isoformat()}' and '{until.isoformat()}'", query)
    return re.sub(r"\$__timeGroup\(([\w.]+), (\d+)\)", r"floor(extract(epoch from \1)/\2)*\2", query)
