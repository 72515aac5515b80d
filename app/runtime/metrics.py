"""Stage latencies for Ray's own metrics, so that its dashboard and Grafana see them."""

import numpy as np
import numpy.typing as npt
from ray.util.metrics import Histogram

from app.latency import Stage, StageLatency

BOUNDARIES_MS = [1, 2, 5, 10, 20, 35, 50, 75, 100, 150, 250, 500, 1_000, 2_500, 10_000]


class ReportedLatency(StageLatency):
    """Also observes `headrace_stage_latency_ms` of ray.util.metrics: once per stage and micro-batch (3 µs each), of the
    batch's mean; the exact, per-event histograms are those of /metrics."""

    def __init__(self, pipeline: str) -> None:
        super().__init__()
        self._histogram = Histogram(
            "headrace_stage_latency_ms",
            "Latency of each stage, one observation a micro-batch",
            boundaries=BOUNDARIES_MS,
            tag_keys=("pipeline", "stage"),
        )
        self._histogram.set_default_tags({"pipeline": pipeline})

    def observe(self, stage: Stage, values_ms: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> None:
        super().observe(stage, values_ms)
        if len(values_ms):
            self._histogram.observe(float(values_ms.mean()), {"stage": stage})

    def observe_batch(self, stage: Stage, value_ms: float, rows: int) -> None:
        super().observe_batch(stage, value_ms, rows)
        if rows:
            self._histogram.observe(value_ms, {"stage": stage})
