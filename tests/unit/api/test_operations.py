import asyncio
import re
import time

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from app.api.documents import Status
from app.api.http import create_api
from app.api.status import StatusCache, StatusUnavailableError
from tests.unit.api.stand_in import Coordinator, busy_board, status_document


def samples(text: str) -> dict[tuple[str, str], float]:
    """Every sample by its name and its labels but the pipeline's."""
    return {
        (
            sample.name,
            ",".join(value for label, value in sorted(sample.labels.items()) if label != "pipeline"),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_status_is_the_coordinators_without_the_raw_histograms(client, coordinator: Coordinator):
    status = client.get("/status").json()
    assert "histograms" not in status
    expected = {name: value for name, value in coordinator.document.items() if name != "histograms"}
    assert status == expected


async def ask_ten_times(cache: StatusCache) -> None:
    await asyncio.gather(*(cache.get() for _ in range(10)))


def test_ten_who_ask_at_once_are_one_call_to_the_coordinator(coordinator: Coordinator, monkeypatch):
    monkeypatch.setattr("app.api.status.FRESH_S", 60.0)
    asyncio.run(ask_ten_times(StatusCache(coordinator.status)))
    assert coordinator.calls == 1


def test_ten_who_ask_while_the_coordinator_is_away_wait_together_not_in_turn(coordinator: Coordinator, monkeypatch):
    monkeypatch.setattr("app.api.status.FRESH_S", 60.0)
    coordinator.error = TimeoutError()
    with pytest.raises(StatusUnavailableError):
        asyncio.run(ask_ten_times(StatusCache(coordinator.status)))
    assert coordinator.calls == 1


def test_a_coordinator_that_does_not_answer_is_said_to_be_away(client, coordinator: Coordinator):
    coordinator.error = TimeoutError()
    answer = client.get("/status")
    assert answer.status_code == 503
    assert answer.json() == {"detail": "the coordinator has not answered within 1 s"}
    assert client.get("/metrics").status_code == 503


def test_prometheus_gets_totals_lags_and_workers(client):
    found = samples(client.get("/metrics").text)
    assert found["headrace_events_total", ""] == 2_001
    assert found["headrace_dead_letters_total", ""] == 11
    assert found["headrace_duplicates_total", ""] == 5
    assert found["headrace_late_total", ""] == 4
    assert found["headrace_partition_lag_events", "1"] == 10
    assert found["headrace_partition_watermark_timestamp_seconds", "0"] == 1_700_000_000
    assert found["headrace_partition_checkpoint_age_seconds", "0"] == 2.5
    assert found["headrace_partition_checkpoint_bytes", "0"] == 1_234
    assert found["headrace_sink_lag_records", "0,case-system"] == 7
    assert found["headrace_workers", "stream"] == 1
    assert found["headrace_fallbacks_total", "late"] == 2
    assert found["headrace_overdue_total", ""] == 1
    assert found["headrace_breaker", "risk"] == 1
    assert found["headrace_ready", ""] == 1


def test_prometheus_gets_the_retries_of_a_sink_and_whether_it_is_away(client, coordinator: Coordinator):
    for each in coordinator.document["sinks"]:
        if each["sink"] == "case-system":
            each |= {"retries": 5, "breaker": "open" if each["partition"] else "half-open", "error": "refused"}
    found = samples(client.get("/metrics").text)
    assert [found["headrace_sink_retries", f"{each},case-system"] for each in (0, 1)] == [5, 5]
    assert [found["headrace_sink_away", f"{each},case-system"] for each in (0, 1)] == [1, 1]
    assert (found["headrace_sink_retries", "0,holds"], found["headrace_sink_away", "0,holds"]) == (0, 0)


def test_prometheus_gets_the_stages_as_histograms(client):
    found = samples(client.get("/metrics").text)
    assert found["headrace_stage_latency_seconds_count", "scored"] == 200
    assert found["headrace_stage_latency_seconds_bucket", "+Inf,scored"] == 200
    assert found["headrace_stage_latency_seconds_bucket", "0.006,scored"] == 0
    assert found["headrace_stage_latency_seconds_bucket", "0.012,scored"] == 200
    assert found["headrace_stage_latency_seconds_sum", "scored"] == pytest.approx(1.6)


def test_prometheus_gets_an_alert_per_budget(client, coordinator: Coordinator):
    coordinator.document = status_document(busy_board(scored_ms=80))
    found = samples(client.get("/metrics").text)
    assert found["headrace_stage_alert", "scored"] == 1
    assert found["headrace_stage_alert", "end_to_end"] == 0
    assert found["headrace_stage_budget_seconds", "scored"] == 0.03


def test_what_no_worker_has_reported_yet_has_no_sample(client, coordinator: Coordinator):
    for partition in coordinator.document["partitions"]:
        partition |= {"worker": None, "offset": None, "lag": None, "watermark_ms": None}
    found = samples(client.get("/metrics").text)
    assert ("headrace_partition_lag_events", "0") not in found
    assert client.get("/status").json()["partitions"][0]["lag"] is None


def ready_after(client: TestClient, expected: int) -> dict[str, object]:
    end = time.monotonic() + 10
    while (answer := client.get("/readyz")).status_code != expected and time.monotonic() < end:
        time.sleep(0.01)
    assert answer.status_code == expected
    body: dict[str, object] = answer.json()
    return body


def test_the_api_is_ready_when_every_partition_has_an_owner(client, coordinator: Coordinator):
    assert ready_after(client, 200) == {"ok": True, "detail": None}
    coordinator.document["ready"] = False
    assert ready_after(client, 503) == {"ok": False, "detail": "some partition has no owner"}


def test_without_the_coordinator_the_api_is_alive_but_not_ready(client, coordinator: Coordinator):
    coordinator.error = TimeoutError()
    assert ready_after(client, 503) == {"ok": False, "detail": "the coordinator does not answer"}
    assert client.get("/healthz").json()["ok"] is True


def test_the_document_of_a_coordinator_that_knows_little_yet_fits_the_type():
    Status.model_validate(status_document(partitions=[], workers=[], sinks=[]))


def test_openapi_shows_the_pipelines_event_as_the_body(client):
    document = client.get("/openapi.json").json()
    schema = document["paths"]["/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["oneOf"][0] == {"$ref": "#/components/schemas/Payment"}
    assert document["components"]["schemas"]["Payment"]["required"] == ["id", "time", "card", "amount"]


def test_openapi_says_for_every_operation_what_it_is_and_what_it_answers(client):
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["tags"], path
            assert "200" in operation["responses"], path
    events = document["paths"]["/events"]["post"]
    assert set(events["responses"]) >= {"200", "401", "413", "415", "422", "503", "504"}
    assert events["security"] == [{"HTTPBearer": []}]


def test_openapi_refers_only_to_what_it_holds(client):
    document = client.get("/openapi.json")
    references = re.findall(r"#/components/schemas/(\w+)", document.text)
    assert set(references) <= set(document.json()["components"]["schemas"])


def test_nothing_that_the_docs_load_comes_from_elsewhere(client):
    page = client.get("/docs").text
    assert "://" not in page
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


@pytest.mark.parametrize(("root_path", "base"), [("", "/"), ("/fraud", "/fraud/"), ("/a/b", "/a/b/")])
def test_the_page_finds_its_parts_under_any_prefix(backend, root_path, base):
    with TestClient(create_api(backend), root_path=root_path) as client:
        assert f'<base href="{base}">' in client.get("/").text
        assert client.get("/page/page.js").headers["content-type"].startswith("text/javascript")


def test_the_page_may_load_and_ask_only_its_own_origin(client):
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in policy


@pytest.mark.parametrize("name", ["page.html", "secret", "..%2Fhttp.py", "page.css%2F.."])
def test_only_the_parts_of_the_page_are_served(client, name):
    assert client.get(f"/page/{name}").status_code == 404
