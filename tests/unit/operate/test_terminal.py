"""Ports, the status line, and what a run says of itself."""

import io
import socket
from typing import Any

import pytest

from app.operate.console import Console
from app.operate.outcomes import Outcomes
from app.operate.ports import free_port, is_free
from app.operate.run import progress, summarize, who_is_behind
from app.operate.status import describe


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_port_where_somebody_listens_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        assert free_port(port) > port


def test_a_port_that_somebody_shares_is_not_free() -> None:
    """As Serve's proxy does: a second one would get half of the requests."""
    with socket.create_server(("0.0.0.0", 0), reuse_port=True) as server:
        assert not is_free(server.getsockname()[1])


def test_on_a_terminal_the_line_renews_itself_and_others_stay() -> None:
    out = Terminal()
    console = Console(out)
    console.renew("one")
    console.renew("two")
    console.say("done")
    assert out.getvalue() == "\r\033[Kone\r\033[Ktwo\r\033[Kdone\n"


def test_in_a_file_a_renewed_line_comes_once_in_a_while() -> None:
    out = io.StringIO()
    console = Console(out)
    for number in range(100):
        console.renew(str(number))
    console.say("done")
    assert out.getvalue() == "0\ndone\n"


def a_status(**changes: Any) -> dict[str, Any]:
    latency = {"count": 9, "p50_ms": 21.54, "p95_ms": 40.0, "p99_ms": 55.55, "budget_ms": None, "alert": False}
    return {
        "pipeline": "fraud",
        "ready": True,
        "partitions": [
            {
                "partition": 0,
                "worker": "stream-a",
                "offset": 10,
                "end_offset": 10,
                "lag": 0,
                "watermark_ms": 0,
                "keys": 3,
                "checkpoint_error": None,
            },
            {
                "partition": 1,
                "worker": "stream-b",
                "offset": 0,
                "end_offset": 0,
                "lag": 0,
                "watermark_ms": None,
                "keys": 0,
                "checkpoint_error": "no space",
            },
        ],
        "workers": [{"id": "stream-a", "error": None}, {"id": "stream-b", "error": "payments/2 is refused"}],
        "throughput": {"events_per_s": 100.4, "decisions_per_s": 99.6},
        "totals": {
            "events": 10,
            "decisions": 9,
            "dead_letters": 1,
            "actions": 2,
            "fallbacks": 0,
            "duplicates": 0,
            "late": 0,
        },
        "stages": {"end_to_end": {**latency, "last_minute": latency}},
        "sinks": [
            {"sink": "holds", "partition": 0, "applied": 9, "lag": 0, "error": None},
            {"sink": "holds", "partition": 1, "applied": None, "lag": None, "error": None},
        ],
        **changes,
    }


def test_nobody_is_behind_when_all_is_done() -> None:
    assert who_is_behind(a_status(), {0: 10, 1: 0}) == []


def test_a_worker_and_a_sink_that_have_more_to_do_are_behind() -> None:
    sinks = [{"sink": "holds", "partition": 1, "applied": None, "lag": None, "error": "no such topic"}]
    assert who_is_behind(a_status(sinks=sinks), {0: 11, 1: 1}) == [
        "stream-a is at offset 10 of 11 in partition 0",
        "stream-b is at offset 0 of 1 in partition 1",
        "the sink holds is behind in partition 1: no such topic",
    ]


def test_a_partition_without_worker_is_behind() -> None:
    assert who_is_behind(a_status(ready=False), {0: 10, 1: 0}) == ["some partition has no worker"]


def test_the_status_line_says_throughput_lag_latency_holds_and_dead_letters() -> None:
    assert progress(a_status()) == (
        "100 events/s in, 100/s decided, lag 0, end to end p50 22 ms p99 56 ms, 2 holds, 1 dead letters"
    )


def test_the_summary_is_about_the_events_of_the_run() -> None:
    outcomes = Outcomes(decisions=9, dead_letters=2, duplicates=3, late=1, actions=2, through={0: 13, 1: -1})
    assert summarize(14, outcomes, a_status()) == {
        "events": 11,
        "decisions": 9,
        "dead_letters": 2,
        "duplicates": 3,
        "late": 1,
        "actions": 2,
        "p50_ms": 21.5,
        "p99_ms": 55.5,
        "lag": 0,
    }


def test_a_status_in_words_has_a_line_for_each_part() -> None:
    failing = {"sink": "cases", "partition": 0, "lag": 7, "retries": 3, "breaker": "closed", "error": "answered 500"}
    away = {**failing, "partition": 1, "breaker": "half-open", "error": "out of reach"}
    status = a_status()
    lines = list(describe(status | {"sinks": [failing, away, *status["sinks"]]}))
    assert lines[0] == "fraud: ready"
    assert lines[3] == "partition 0: offset 10 of 10, lag 0, watermark 1970-01-01T00:00:00+00:00, 3 keys, stream-a"
    assert lines[5:7] == ["partition 1: no space", "worker stream-b: payments/2 is refused"]
    assert lines[-4] == "sink cases[0]: lag 7, 3 retries: answered 500"
    assert lines[-3] == "sink cases[1]: lag 7, away, 3 retries: out of reach"
    assert lines[-1] == "sink holds[1]: lag None"


@pytest.mark.parametrize("rate", [0.0, 100.0])
def test_the_status_line_also_stands_without_any_event(rate: float) -> None:
    empty = {"p50_ms": None, "p99_ms": None}
    line = progress(
        a_status(
            stages={"end_to_end": {"last_minute": empty}},
            throughput={"events_per_s": rate, "decisions_per_s": rate},
        )
    )
    assert "p50 – p99 –" in line
