"""Odd clients and an odd provider beside a client that behaves well: it is served as if they were not there.

`make soak` goes on for `SOAK_PEERS` seconds. A failure is repeated with the seed that its message names.
"""

from __future__ import annotations

import os
import random
import threading
import time

import pytest

from tests.conftest import MakeUpstream, StartMitmdump
from tests.integration.answers import PATH, SIMPLE
from tests.processes.load import LONG, Load
from tests.support.odd_peers import OddClient, OddProvider, run
from tests.support.polling import poll_until
from tests.support.upstream import HTTP1, Answer

SECONDS = float(os.environ.get("SOAK_PEERS", "0"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
ODD_CLIENTS = 3
THINGS = 40
"""That odd clients do, at least."""
ANSWERS = 10


@pytest.mark.timeout(300 + 2 * SECONDS)
def test_odd_peers_cost_a_well_behaved_client_nothing(mitmdump: StartMitmdump, make_upstream: MakeUpstream) -> None:
    good = make_upstream(handler=lambda _: Answer.event_stream(SIMPLE.body))
    odd = make_upstream(handler=OddProvider(SEED).answer, alpn=[HTTP1])
    proxy = mitmdump(
        config=f"""
drain_timeout: 10
limits: {{header_timeout: 5}}
providers:
- {{name: anthropic, type: anthropic, base_url: 'https://localhost:{good.port}'}}
- {{name: odd, type: anthropic, hosts: [odd.example], base_url: 'https://localhost:{odd.port}'}}
"""
    )
    enough, load = threading.Event(), Load()
    clients = [OddClient(proxy, SEED + n, f"/odd{PATH}", "odd.example") for n in range(1, ODD_CLIENTS + 1)]
    threads = [threading.Thread(target=run, args=[client, enough]) for client in clients]
    until = time.monotonic() + SECONDS
    try:
        with load.on(proxy, clients=1):
            for thread in threads:
                thread.start()

            def is_enough() -> bool:
                assert not load.broken, (SEED, load.broken)
                assert proxy.running, f"the process has ended, seed {SEED}"
                done = sum(client.done for client in clients)
                return done >= THINGS and len(load.answers) >= ANSWERS and time.monotonic() >= until

            poll_until(is_enough, 200 + SECONDS, what=f"{THINGS} odd things and {ANSWERS} answers, seed {SEED}")
    finally:
        enough.set()
        for thread in threads:
            thread.join(LONG)
    assert not load.broken, (SEED, load.broken)
    proxy.terminate()
    assert proxy.wait(LONG) == 0
    rows = proxy.rows("aibridge_interceptions")
    assert [row["id"] for row in rows if row["ended_at"] is None] == [], f"seed {SEED}"
    served = [row["status"] for row in rows if row["provider_name"] == "anthropic"]
    assert served == ["completed"] * len(load.answers), f"seed {SEED}"
    asked = [request for request in odd.requests if request.method == "POST" and request.target.endswith(PATH)]
    recorded = [row for row in rows if row["provider_name"] == "odd"]
    assert len(recorded) >= len(asked) > 0, f"seed {SEED}"
    assert len(proxy.rows("aibridge_token_usages")) >= len(load.answers)
