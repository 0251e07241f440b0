"""The same requests through another gateway: LiteLLM, from PyPI, in an environment of its own.

The Go gateway that this project re-creates is no package, so it is not built here.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from benchmarks import traffic
from benchmarks.client import load
from benchmarks.measures import LOAD_TIMEOUT, Bench, WrongAnswer, compared_rounds
from benchmarks.proxies import Proxies, Proxy
from benchmarks.report import Result
from benchmarks.stage import Stage
from benchmarks.traffic import Scenario

FOLDER = Path(__file__).parents[1] / "build" / "peers"
"""Made once; `make clean` removes it."""
PACKAGE = "litellm[proxy]==1.108.*"
STARTED_WITHIN = 300.0
PACE = 100.0
"""Events a second of one stream. It cannot send the next event when the client has seen the last: some come later."""
CONFIG = """\
model_list:
- model_name: claude-sonnet-4-5-20250929
  litellm_params: {{model: anthropic/claude-sonnet-4-5-20250929, api_base: '{upstream}', api_key: test-key}}
litellm_settings: {{telemetry: false}}
general_settings: {{forward_client_headers_to_llm_api: true, master_key: '{key}'}}
"""
ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "DISABLE_AIOHTTP_TRUST_ENV": "True"}
"""It takes its price list from its package, and asks nothing of the network."""


async def measure(stage: Stage) -> list[Result]:
    """Compare LiteLLM with bare mitmdump, as `requests` and `chunks` compare ours."""
    python = _install(stage)
    async with _litellm(stage, python) as peer:
        bench = _Peer(stage, peer)
        small, stream = (replace(each, path=each.upstream_path) for each in (traffic.SMALL, traffic.MESSAGES))
        return [
            await bench.compare(replace(small, name="messages, not streamed"), stage.plan.requests, 1, "request"),
            await bench.compare(stream, stage.plan.streams, traffic.EVENTS, "chunk"),
            Result("LiteLLM, memory", "MB", peer.rss_bytes() / 2**20, bare=stage.both.bare.rss_bytes() / 2**20),
        ]


def _install(stage: Stage) -> Path:
    python = FOLDER / "bin" / "python"
    if not (FOLDER / ".built").exists():
        stage.say(f"installing {PACKAGE} into {FOLDER.name} (once, minutes)")
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
        (FOLDER / ".built").touch()
    return python


@dataclass(frozen=True)
class Peer(Proxy):
    listening: int
    key: str

    @property
    def port(self) -> int:
        return self.listening


@asynccontextmanager
async def _litellm(stage: Stage, python: Path) -> AsyncIterator[Peer]:
    folder, port = stage.folder("peers"), _free_port()
    config = folder / "litellm.yaml"
    key = f"sk-{secrets.token_hex(24)}"  # it refuses to start without a long one
    config.write_text(CONFIG.format(upstream=f"http://127.0.0.1:{stage.upstream.port}", key=key))
    command = [str(python.with_name("litellm")), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **ENVIRONMENT}
    stage.say("starting LiteLLM with one worker, without a database")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220
            command, cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(STARTED_WITHIN):
            await _listening(process, port)
        yield Peer("LiteLLM", stage.both.ours.mitmdump, psutil.Process(process.pid), port, key)
    except BaseException:
        print((folder / "log").read_text(errors="replace")[-4000:], file=sys.stderr)
        raise
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _listening(process: subprocess.Popen[bytes], port: int) -> None:
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"LiteLLM ended with code {process.returncode}")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.2)
        else:
            writer.close()
            return


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class _Peer(Bench):
    """`ours` is the other gateway here."""

    def __init__(self, stage: Stage, peer: Peer) -> None:
        super().__init__(Proxies(stage.both.bare, peer), stage.upstream, stage.plan, stage.say)
        self._key = peer.key

    async def compare(self, scenario: Scenario, count: int, events: int, kind: str) -> Result:
        peer = _Foreign(
            scenario.name,
            scenario.path,
            scenario.request,
            scenario.answer,
            headers={**scenario.headers, "X-Api-Key": self._key},
        )
        usual = replace(scenario, path="/anthropic" + scenario.path)

        async def once(proxy: Proxy) -> None:
            asked = usual if proxy is self._proxies.bare else peer
            tally = await load(
                proxy.port,
                asked,
                self._upstream,
                count=count,
                connections=self._plan.connections,
                timeout=LOAD_TIMEOUT,
            )
            if tally.wrong:
                raise WrongAnswer(f"{tally.wrong} of {count} answers through {proxy.name} were wrong ({scenario.name})")

        name = f"LiteLLM, CPU per {kind}: {scenario.name}"
        async with self._upstream.paced(PACE) if scenario.answer.streaming else nullcontext():
            await once(self._proxies.bare)
            await once(self._proxies.ours)
            return compared_rounds(name, "µs", await self._rounds(name, once, per=count * events))


@dataclass(frozen=True)
class _Foreign(Scenario):
    """A gateway that writes its answers itself: the text has to be there."""

    def is_right(self, body: bytes) -> bool:
        wanted = traffic.TOKEN if self.answer.streaming else traffic.TEXT
        return body.count(wanted.encode()) >= (traffic.EVENTS - 5 if self.answer.streaming else 1)
