"""What the live page shows, in a real browser."""

import json
import re

import pytest
from playwright.sync_api import Page, expect

from app.actions.letters import Letter, Marker, marker_message, read_entries
from tests.integration.api.conftest import Site
from tests.unit.api.stand_in import LETTERS, SOURCE, busy_board, payment, status_document


@pytest.fixture(autouse=True)
def _patience() -> None:
    expect.set_options(timeout=10_000)


def decide(site: Site, *payments: dict[str, object]) -> None:
    for each in payments:
        site.stream.broker.append(SOURCE, 0, json.dumps(each).encode(), str(each["card"]).encode())
    site.stream.decide_all()


def drop(site: Site, letter_id: str) -> None:
    entries = read_entries("fraud", site.stream.letters())
    [letter] = [entry for entry in entries if isinstance(entry, Letter) and entry.id == letter_id]
    key, value, headers = marker_message(Marker(letter_id, "dropped", 0), letter)
    site.stream.broker.append(LETTERS, letter.place.partition, value, key, headers)


def tile(page: Page, title: str) -> str:
    return page.locator(".tile", has=page.get_by_role("heading", name=title)).locator(".value").inner_text()


def test_the_page_shows_the_pipeline_at_a_glance(site: Site, page: Page):
    page.goto(site.url)
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page).to_have_title("fraud · Headrace")
    assert tile(page, "Events in") == "500/s"
    assert tile(page, "Lag") == "20events"
    assert tile(page, "Dead letters") == "11"
    expect(page.locator("#workers")).to_have_text("1 stream worker, 1 action worker")


def test_the_page_shows_each_stage_partition_and_sink(site: Site, page: Page):
    page.goto(site.url)
    scored = page.locator("#stages tr", has_text="Scored")
    expect(scored.locator("td")).to_have_text(["8.3 ms", "8.3 ms", "", "30 ms"])
    expect(page.locator("#stages tr")).to_have_count(8)
    expect(page.locator("#partitions tr").nth(1).locator("td").nth(1)).to_have_text("10")
    expect(page.locator("#sinks tr", has_text="case-system").locator("td").last).to_have_text("14")


def test_the_page_updates_by_itself(site: Site, page: Page):
    page.goto(site.url)
    expect(page.locator("#connection")).to_have_text("Live")
    site.coordinator.document["throughput"]["events_per_s"] = 7_654.0
    expect(page.locator(".tile .value").first).to_have_text("7,654/s")


def test_the_page_shows_the_latest_actions_with_what_they_were_decided_on(site: Site, page: Page):
    page.goto(site.url)
    expect(page.get_by_text("No action yet")).to_be_visible()
    decide(site, payment("p1", amount=900.0), payment("p2"), payment("p3", amount=800.0))
    held = page.locator("#actions li")
    expect(held).to_have_count(2)
    expect(held.first).to_contain_text("Hold")
    expect(held.first.locator("dl div")).to_have_text(["risk0.8", "cardc1", "amount800", "payments3", "spent1,710"])
    expect(held.last.locator(".states .pill")).to_have_text(["holds: done", "case-system: done"])
    expect(page.get_by_text("No action yet")).to_be_hidden()
    held.first.get_by_role("link", name="p3").click()
    expect(page.locator("body")).to_contain_text('"event_id":"p3"')


def test_the_page_shows_the_open_dead_letters_latest_first_until_they_are_dealt_with(site: Site, page: Page):
    page.goto(site.url)
    expect(page.get_by_text("None is open")).to_be_visible()
    decide(site, payment("p1", amount=13.0))
    site.stream.broker.clock.now_ms += 1_000
    site.stream.broker.append(SOURCE, 0, b"<b>no event</b>", b"c1")
    site.stream.decide_all()
    letters = page.locator("#letters li")
    expect(letters).to_have_count(2)
    expect(letters.first.locator(".type")).to_have_text("parse")
    expect(letters.first.locator(".reason")).to_contain_text("JSON is malformed")
    expect(letters.first.locator(".event")).to_have_text("<b>no event</b>")
    expect(letters.last.locator(".head")).to_contain_text("decide0/0payments/0/0")
    expect(letters.last.locator(".reason")).to_have_text("decide raised ValueError: unlucky")
    expect(letters.last.locator(".event")).to_contain_text('"id": "p1"')
    expect(letters.last.locator(".when")).to_have_text(re.compile("^(now|.* ago)$"))
    drop(site, "0/1")
    expect(letters).to_have_count(1)
    drop(site, "0/0")
    expect(page.get_by_text("None is open")).to_be_visible()


def test_an_alert_is_marked_where_it_is_and_named_on_top(site: Site, page: Page):
    site.coordinator.document = status_document(busy_board(scored_ms=80))
    page.goto(site.url)
    expect(page.get_by_role("alert")).to_contain_text("Scored: p99 82 ms over the last minute, budget 30 ms")
    expect(page.locator("#stages tr", has_text="Scored")).to_have_class("over")
    expect(page.locator("#stages tr", has_text="Scored")).to_contain_text("over 30 ms")
    expect(page).to_have_title("▲ fraud · Headrace")
    site.coordinator.document = status_document()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page).to_have_title("fraud · Headrace")


def test_a_partition_without_a_worker_and_a_failing_sink_are_told(site: Site, page: Page):
    document = site.coordinator.document
    document["ready"] = False
    document["partitions"][1] |= {"worker": None, "lag": None, "offset": None}
    document["sinks"][0]["error"] = "connection refused"
    page.goto(site.url)
    expect(page.locator("#connection")).to_have_text("Waiting for workers")
    expect(page.locator("#partitions tr").nth(1)).to_contain_text("no worker")
    expect(page.locator("#sinks tr").first).to_contain_text("connection refused")
    expect(page.locator("#sinks tr").first).to_contain_text("Failing")


def test_a_sink_that_is_away_is_told_with_its_retries_and_one_that_is_off_beside_each_action(site: Site, page: Page):
    for each in site.coordinator.document["sinks"]:
        if each["sink"] == "holds":
            each |= {"breaker": "open", "retries": 4, "error": "out of reach"}
    site.off = {"case-system"}
    site.stop()
    site.start()
    decide(site, payment("p1", amount=900.0))
    page.goto(site.url)
    sink = page.locator("#sinks tr", has_text="holds")
    expect(sink).to_contain_text("Away")
    expect(sink).to_contain_text("out of reach · 4 retries")
    expect(page.locator("#actions li .states")).to_contain_text("case-system: off")


def test_a_sink_is_catching_up_when_it_is_more_than_a_portion_behind(site: Site, page: Page):
    first, *others = site.coordinator.document["sinks"]
    site.coordinator.document["sinks"] = [first, *(each for each in others if each["sink"] != first["sink"])]
    first["lag"] = 500
    page.goto(site.url)
    sink = page.locator("#sinks tr", has_text=first["sink"])
    expect(sink).to_contain_text("Up to date")
    first["lag"] = 501
    expect(sink).to_contain_text("Catching up")


def test_the_page_tells_that_the_connection_is_lost_and_recovers(site: Site, page: Page):
    page.goto(site.url)
    expect(page.locator("#connection")).to_have_text("Live")
    site.stop()
    expect(page.locator("#connection")).to_have_text("Connection lost, trying again")
    expect(page.locator("body")).to_have_class("stale")
    site.start()
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("body")).not_to_have_class("stale")


def test_the_page_tells_that_the_coordinator_is_away(site: Site, page: Page):
    site.coordinator.error = TimeoutError()
    page.goto(site.url)
    expect(page.locator("#connection")).to_have_text(re.compile("No status: the coordinator has not answered"))


def test_what_an_event_says_is_shown_as_text(site: Site, page: Page):
    page.goto(site.url)
    script = "<img src=x onerror=alert(1)>"
    decide(site, payment(script, card="<b>bold</b>", amount=900.0))
    expect(page.locator("#actions .id")).to_have_text(script)
    expect(page.locator("#actions dd").nth(1)).to_have_text("<b>bold</b>")


def test_no_request_of_the_page_or_the_docs_leaves_the_machine(site: Site, page: Page, requested: list[str]):
    page.goto(site.url)
    expect(page.locator("#connection")).to_have_text("Live")
    page.get_by_role("link", name="API").click()
    expect(page.get_by_text("Append events and get their decisions")).to_be_visible()
    assert len(requested) > 8
    assert [url for url in requested if not url.startswith((site.url, "data:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_screen_in_light_and_dark(site: Site, page: Page, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    decide(site, payment("p1", amount=900.0), payment("x" * 400, amount=13.0))
    site.coordinator.document["sinks"][2]["error"] = "POST https://cases.example/holds answered 503"
    page.goto(site.url)
    expect(page.locator("#actions li")).to_have_count(1)
    expect(page.locator("#letters li")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colors = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ink, ground = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors)
    assert (ink > ground) is (scheme == "dark")
