"""The status document in Prometheus' exposition format."""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.api.status import StatusDocument
from app.latency import Histogram
from app.log.frame import FALLBACKS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

TOTALS = {
    "events": "Events read from the source topic.",
    "decisions": "Events decided.",
    "dead_letters": "Records that became no decision.",
    "actions": "Actions that decisions asked for.",
    "overdue": "Events that were past their deadline when they were read.",
    "duplicates": "Records that were copies of an event before them.",
    "late": "Events that came after the watermark had passed them; they are dead letters, too.",
}
BREAKER_LEVELS = {"closed": 0, "half-open": 1, "open": 2}
PARTITION_GAUGES = {
    "lag": ("lag_events", "Events that are appended and not decided.", 1),
    "offset": ("offset", "The next source offset to be decided.", 1),
    "watermark_ms": ("watermark_timestamp_seconds", "Event time up to which late events are accepted.", 1e-3),
    "keys": ("keys", "Keys with state.", 1),
    "state_bytes": ("state_bytes", "Size of the keyed state.", 1),
    "checkpoint_age_ms": (
        "checkpoint_age_seconds",
        "For how long the newest checkpoint has lacked something: about what a replay would take in again.",
        1e-3,
    ),
    "checkpoint_bytes": ("checkpoint_bytes", "Size of the newest checkpoint.", 1),
}


def render(status: StatusDocument) -> bytes:
    """Everything that the document says, as one scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    return generate_latest(registry)


class StatusCollector(Collector):
    """Reads one status document. Counters restart at zero with the coordinator, as Prometheus expects of a process."""

    def __init__(self, status: StatusDocument) -> None:
        self._status = status
        self._pipeline = status["pipeline"]

    def collect(self) -> Iterator[Metric]:
        yield from self._totals()
        yield from self._partitions()
        yield self._breakers()
        yield from self._sinks()
        yield self._workers()
        yield self._latency()
        yield from self._budgets()
        yield self._gauge("ready", "1 when every partition has an owner.", [], [([], self._status["ready"])])

    def _totals(self) -> Iterator[Metric]:
        for name, text in TOTALS.items():
            counter = CounterMetricFamily(f"headrace_{name}", text, labels=["pipeline"])
            counter.add_metric([self._pipeline], self._status["totals"][name])
            yield counter
        text = "Events decided without the models' answer, by cause."
        fallbacks = CounterMetricFamily("headrace_fallbacks", text, labels=["pipeline", "cause"])
        for cause in FALLBACKS:
            fallbacks.add_metric([self._pipeline, cause], self._status["totals"][f"fallback_{cause}"])
        yield fallbacks

    def _breakers(self) -> Metric:
        levels: dict[str, int] = {}
        for each in self._status["breakers"]:
            levels[each["model"]] = max(levels.get(each["model"], 0), BREAKER_LEVELS[each["state"]])
        text = "Of the worker that asks least: 0 closed, 1 half-open, 2 open."
        return self._gauge("breaker", text, ["model"], [([model], level) for model, level in levels.items()])

    def _partitions(self) -> Iterator[Metric]:
        for field, (name, text, factor) in PARTITION_GAUGES.items():
            samples = [
                ([str(each["partition"])], each[field] * factor)
                for each in self._status["partitions"]
                if each[field] is not None
            ]
            yield self._gauge(f"partition_{name}", text, ["partition"], samples)

    def _sinks(self) -> Iterator[Metric]:
        sinks = [([each["sink"], str(each["partition"])], each) for each in self._status["sinks"]]
        lags = [(labels, each["lag"]) for labels, each in sinks if each["lag"] is not None]
        text = "Records of the decision log that the sink has not read."
        yield self._gauge("sink_lag_records", text, ["sink", "partition"], lags)
        retries = [(labels, each["retries"]) for labels, each in sinks]
        yield self._gauge("sink_retries", "Failures of the sink in a row.", ["sink", "partition"], retries)
        away = [(labels, each["breaker"] != "closed") for labels, each in sinks]
        text = "1 while the sink is away, and the partition waits or is the one that asks after it."
        yield self._gauge("sink_away", text, ["sink", "partition"], away)

    def _workers(self) -> Metric:
        kinds = [each["kind"] for each in self._status["workers"]]
        samples = [([kind], kinds.count(kind)) for kind in ("stream", "action")]
        return self._gauge("workers", "Workers that send heartbeats.", ["kind"], samples)

    def _latency(self) -> Metric:
        family = HistogramMetricFamily(
            "headrace_stage_latency_seconds",
            "How long events took in each stage; end_to_end is append to action.",
            labels=["pipeline", "stage"],
        )
        for stage, counts in self._status["histograms"].items():
            histogram = Histogram.from_dict(counts)
            buckets = [(f"{bound_ms / 1000:g}", below) for bound_ms, below in histogram.coarse()]
            buckets.append(("+Inf", histogram.count))
            family.add_metric([self._pipeline, stage], buckets, sum_value=histogram.sum_ms / 1000)
        return family

    def _budgets(self) -> Iterator[Metric]:
        stages = {name: each for name, each in self._status["stages"].items() if each["budget_ms"] is not None}
        budgets = [([name], each["budget_ms"] / 1000) for name, each in stages.items()]
        text = "The most that the p99 over the last minute may be."
        yield self._gauge("stage_budget_seconds", text, ["stage"], budgets)
        alerts = [([name], each["alert"]) for name, each in stages.items()]
        text = "1 while the p99 over the last minute is above the budget."
        yield self._gauge("stage_alert", text, ["stage"], alerts)

    def _gauge(self, name: str, text: str, labels: list[str], samples: Iterable[tuple[list[str], Any]]) -> Metric:
        family = GaugeMetricFamily(f"headrace_{name}", text, labels=["pipeline", *labels])
        for values, number in samples:
            family.add_metric([self._pipeline, *values], float(number))
        return family
