"""The metrics of several processes as one: each series gets the label `worker`.

A sum would fall when a worker is started again, and add up what all of them read from one database. Prometheus does
both sums right, `sum without (worker) (rate(…))`.
"""

from __future__ import annotations

import http.client
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from aibridge_addon.records.pages import PageAnswer, PageRequest

logger = logging.getLogger(__name__)

LABEL = "worker"
TIMEOUT = 5.0
"""Seconds that one worker has for its answer. Without it, its series are missing from this scrape."""
LOGIN_TIMEOUT = 10.0
"""The same for a page with which people log in, which asks an authorization server."""
OF_THE_CONNECTION = frozenset(("connection", "content-length", "transfer-encoding", "keep-alive", "date", "server"))
"""Headers of a worker's answer that are not passed on."""
MAX_PAGE = 64 * 1024 * 1024
"""Bytes of one worker's answer."""
AT_ONCE = 16
"""Workers that are asked at the same time."""


class Unanswered(Exception):
    """A worker did not answer, or not in time."""


def fetch(address: str, path: str) -> tuple[int, str]:
    """Get one page of a worker. Returns the status and the text. Blocks. Raises Unanswered."""
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(MAX_PAGE).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as e:
        raise Unanswered(type(e).__name__) from e
    finally:
        connection.close()


def ask(address: str, request: PageRequest) -> PageAnswer:
    """Pass a browser's request to a worker. Blocks. Raises Unanswered."""
    connection = http.client.HTTPConnection(address, timeout=LOGIN_TIMEOUT)
    target = request.path + (f"?{request.query}" if request.query else "")
    headers = {name: value for name, value in (("Cookie", request.cookie), ("Purpose", request.purpose)) if value}
    try:
        connection.request(request.method, target, headers=headers)
        answer = connection.getresponse()
        body = answer.read(MAX_PAGE)
        passed = {name: value for name, value in answer.getheaders() if name.lower() not in OF_THE_CONNECTION}
        return PageAnswer(answer.status, passed, body)
    except (OSError, ValueError, http.client.HTTPException) as e:
        raise Unanswered(type(e).__name__) from e
    finally:
        connection.close()


class MergedMetrics(Collector):
    """Asks all workers at each scrape."""

    def __init__(self, addresses: Callable[[], Mapping[str, str]], own: Callable[[], Iterable[Metric]]) -> None:
        """`addresses`: of the endpoints, by the worker's label. `own`: what the caller itself has to say."""
        self._addresses = addresses
        self._own = own

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for worker, page in pages(self._addresses(), "/metrics").items():
            for family in text_string_to_metric_families(page[1]) if page is not None else ():
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    labels = {**sample.labels, LABEL: worker}
                    merged.samples.append(sample._replace(labels=labels))
        yield from families.values()
        yield from self._own()


def pages(addresses: Mapping[str, str], path: str) -> dict[str, tuple[int, str] | None]:
    """Get one page of each worker. None: it did not answer. Blocks."""

    def get(item: tuple[str, str]) -> tuple[str, tuple[int, str] | None]:
        worker, address = item
        try:
            return worker, fetch(address, path)
        except Unanswered as e:
            logger.warning("worker %s does not answer %s: %s", worker, path, e)
            return worker, None

    if not addresses:
        return {}
    with ThreadPoolExecutor(min(AT_ONCE, len(addresses)), "aibridge-workers") as threads:
        return dict(threads.map(get, addresses.items()))
