"""Break the package by hand, in a copy, one place at a time: each time a test has to fail. `make mutants` runs this.

A survivor is a mutation that no test notices. An old text that is not found exactly once, a test that does not exist
or one that fails without any mutation is an error: the table has to follow the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
COPIED = ("aibridge_addon", "tests", "fixtures", "pyproject.toml")
PASSED, FAILED = 0, 1
"""pytest's exit codes; all others mean that the tests did not run."""


@dataclass(frozen=True, slots=True)
class Mutation:
    file: str
    """Below the package."""
    old: str
    new: str
    tests: str
    """What pytest is given, separated by spaces."""


LANES = "tests/proxy/flow/test_websocket_lanes.py"
SOCKET = "tests/interception/test_responses_socket.py"
ECHO = "tests/proxy/stream/test_layer_echo.py"
TWICE = "tests/dialects/test_history_twice.py"
KEYS = "tests/credentials/test_key_pool.py"
MEMORY = "tests/proxy/connection/test_egress_memory.py"
END = "tests/proxy/stream/test_layer_end.py"
OVERHEAD = "tests/proxy/stream/test_layer_overhead.py"
ROUTING = "tests/interception/test_routing.py"
RECORDER = "tests/recording/test_recorder.py"
LIMIT = "tests/telemetry/prometheus/test_listener_limit.py"
SHORT = "tests/proxy/stream/test_short_way.py"

EGRESS = "proxy/connection/egress.py"
SHORT_WAY = "proxy/stream/short_way.py"
ARRIVALS = "proxy/stream/arrivals.py"
ARRIVE = "tests/proxy/stream/test_arrivals.py"
FORWARDED = "tests/integration/test_forwarded_on_arrival.py"

MUTATIONS = (
    # An answer of a WebSocket goes to another lane's interception.
    Mutation("interception/responses_socket.py", " if entry.lane == lane)", ")", LANES),
    Mutation(
        "interception/responses_socket.py",
        "else:\n            self._open.remove(entry)",
        "else:\n            self._open.pop()",
        LANES,
    ),
    Mutation("interception/responses_socket.py", "_open.append(_Open(lane,", "_open.insert(0, _Open(lane,", SOCKET),
    Mutation("proxy/flow/bridged_socket.py", "_states.pop(exchange.id).left()", "_states.popitem()[1].left()", LANES),
    # A blocking response repeats the injected tools.
    Mutation(
        "interception/tool_exchange.py", "_names_ours = self._names_inj", "_names_ours = not self._names_inj", ECHO
    ),
    Mutation("dialects/responses/splice.py", " else self._without_tools(self._last)", " else self._last", ECHO),
    Mutation("dialects/responses/splice.py", '| {"tools": self._own(tool["tools"])} if', "if", ECHO),
    # A kept turn is put in twice.
    Mutation("dialects/history.py", " and kept.id not in done]", "]", TWICE),
    Mutation("dialects/history.py", "    done.update(kept.id for kept in left)\n", "", TWICE),
    # Keys that have rested long enough still count.
    Mutation("credentials/key_pool.py", " if rest.until > now}", "}", KEYS),
    # The egress guard forgets nothing, or too early.
    Mutation(EGRESS, " and checked.until > self._clock() else None", " else None", MEMORY),
    Mutation(EGRESS, "self._clock() + CHECKED_FOR)", "self._clock() + 2 * CHECKED_FOR)", MEMORY),
    Mutation(EGRESS, "len(known) > MAX_CHECKED", "len(known) > MAX_CHECKED + 1", MEMORY),
    Mutation(EGRESS, "        known.pop(destination, None)\n", "        known.clear()\n", MEMORY),
    Mutation(EGRESS, "len(self._dead) > MAX_DEAD", "len(self._dead) > MAX_DEAD + 1", MEMORY),
    Mutation(EGRESS, "self._dead[address] = self._clock()", "self._dead = {address: self._clock()}", MEMORY),
    # The reader's connection stays open at the end.
    Mutation(
        "recording/sqlite/reader.py", "try:\n                self._disconnect()", "try:\n                pass", END
    ),
    Mutation("bridge.py", "Part(lambda _: continuations.close())", "Part(lambda _: None)", END),
    # The wait for the rows is not counted.
    Mutation("proxy/flow/answer.py", "        state.overhead += time.perf_counter() - began\n", "", OVERHEAD),
    # Dots that are encoded twice pass for part of a name.
    Mutation("interception/routing.py", "unquote(unquote(path))", "unquote(path)", ROUTING),
    # Answers that wait for the next batch wait in vain.
    Mutation("recording/recorder.py", "        self._release(self._taken, kept=kept)\n", "", RECORDER),
    # The port of the metrics takes any number of connections.
    Mutation("telemetry/prometheus/listener.py", "len(self._timers) >= MAX_CONNECTIONS", "False", LIMIT),
    Mutation("telemetry/prometheus/listener.py", "_timers.pop(server", "_timers.copy().pop(server", LIMIT),
    # The short way takes a packet that is not its own, or forgets the client's framing.
    Mutation(SHORT_WAY, "size < reader._remaining", "size <= reader._remaining", SHORT),
    Mutation(SHORT_WAY, "            reader._remaining -= len(data)\n", "            pass\n", SHORT),
    Mutation(SHORT_WAY, "not upstream.buf and ", "", SHORT),
    Mutation(SHORT_WAY, " and self._stream._paused is None", "", SHORT),
    Mutation(SHORT_WAY, " and from_chunks is self._to_chunks:", ":", SHORT),
    Mutation(SHORT_WAY, "elif self._to_chunks:", "elif False:", SHORT),
    Mutation(SHORT_WAY, "isinstance(answer, Tapped) and answer.is_verbatim", "True", SHORT),
    Mutation(SHORT_WAY, " for made in shown if made)", " for made in shown)", SHORT),
    # Packets overtake each other or a slow client, or an answer's end is lost.
    Mutation(ARRIVALS, "waiter is not None and not waiter.done() and ", "", ARRIVE),
    Mutation(ARRIVALS, "not waiter.done() and ", "", ARRIVE),
    Mutation(ARRIVALS, "not client.is_closing() and ", "", ARRIVE),
    Mutation(ARRIVALS, " and client.get_write_buffer_size() == 0", "", ARRIVE),
    Mutation(ARRIVALS, "        self._register_activity()\n", "", ARRIVE),
    Mutation(ARRIVALS, "        server.arrivals = None\n", "        pass\n", FORWARDED),
    Mutation(SHORT_WAY, "        server.arrivals.way = way\n", "        pass\n", ARRIVE),
    Mutation(SHORT_WAY, "        if self._is_read():\n", "        if True:\n", ARRIVE),
    Mutation(ARRIVALS, "            end -= 1\n", "", ARRIVE),
    Mutation(SHORT_WAY, "event.data[1:]", "event.data", ARRIVE),
    Mutation(SHORT_WAY, "            if way.found is not None:\n                return way.go_on(event)\n", "", ARRIVE),
)


def pytest(folder: Path, tests: str) -> tuple[int, str]:
    """Run tests on a copy of the project; returns pytest's exit code and what it printed."""
    command = [sys.executable, "-m", "pytest", "-x", "-n0", "-Wignore", "--timeout=60", *tests.split()]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return ran.returncode, ran.stdout + ran.stderr


def main() -> int:
    stale = [m for m in MUTATIONS if (ROOT / "aibridge_addon" / m.file).read_text().count(m.old) != 1]
    if stale:
        return print("not found exactly once:", *stale, sep="\n  ") or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for entry in COPIED:
            copy = shutil.copytree if (ROOT / entry).is_dir() else shutil.copy
            copy(ROOT / entry, folder / entry)
        code, output = pytest(folder, " ".join(dict.fromkeys(m.tests for m in MUTATIONS)))
        if code != PASSED:
            return print(output, "\nthe tests fail without any mutation") or 1
        failures = 0
        for mutation in MUTATIONS:
            path = folder / "aibridge_addon" / mutation.file
            text = path.read_text()
            path.write_text(text.replace(mutation.old, mutation.new))
            code, output = pytest(folder, mutation.tests)
            path.write_text(text)
            outcome = {FAILED: "killed", PASSED: "SURVIVED"}.get(code, f"ERROR\n{output}")
            failures += code != FAILED
            print(f"{outcome}: {mutation.file}: {mutation.old.strip()!r} -> {mutation.new.strip()!r}", flush=True)
    print(f"{len(MUTATIONS)} mutations, {failures} of them not killed")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
