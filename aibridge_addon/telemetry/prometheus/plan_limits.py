"""The gauge of plans' limits: for each provider and window, the share of the credential that has used most."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily, Metric

from aibridge_addon.records import PlanLimit, utc_now
from aibridge_addon.telemetry.labels import Bounded
from aibridge_addon.telemetry.prometheus.families import Labels

WINDOWS = 50
"""Different names of windows. Providers choose them."""
MAX_KNOWN = 5_000
"""Windows of credentials that are remembered. The one that has not changed for longest is forgotten."""


class PlanLimitGauge:
    """Methods may be called on any thread."""

    def __init__(self, name: str, now: Callable[[], datetime] = utc_now) -> None:
        self._name = name
        self._now = now
        self._window = Bounded(WINDOWS)
        self._known: OrderedDict[tuple[str, str, str], tuple[Labels, PlanLimit]] = OrderedDict()
        self._lock = threading.Lock()

    def set(self, record: PlanLimit) -> None:
        key = (record.provider_name, record.credential_hint, record.window_name)
        labels = (record.provider_name, self._window(record.window_name))
        with self._lock:
            self._known[key] = labels, record
            self._known.move_to_end(key)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    def collect(self) -> Metric:
        """Return a sample for each provider and window. A window that was reset since then counts as unused."""
        family = GaugeMetricFamily(self._name, "Used share of a plan's limit.", labels=("provider", "window"))
        now, most = self._now(), dict[Labels, float]()
        with self._lock:
            known = list(self._known.values())
        for labels, record in known:
            if record.used_ratio is not None:
                used = 0.0 if _was_reset(record, now) else record.used_ratio
                most[labels] = max(most.get(labels, 0.0), used)
        for labels, used in most.items():
            family.add_metric(labels, used)
        return family


def _was_reset(record: PlanLimit, now: datetime) -> bool:
    """Return whether the window has ended. A reset that was over when it was named says nothing about now."""
    return record.resets_at is not None and record.observed_at < record.resets_at <= now
