import json
from collections import Counter
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import ConfigError
from app.event import Event, EventDecoder
from app.simulate import Disturbance, Fate, World, draw_world
from app.simulate.disturb import disturb
from app.simulate.payments import draw_day
from app.simulate.records import Record

NOW_MS = 1_790_000_000_000
LATENESS_MS = 3_600_000
PARTITIONS = 4
WORLD: World = draw_world(seed=8, customers=150, terminals=600)

share = st.floats(0, 0.5)
disturbances = st.builds(Disturbance, duplicates=share, disorder=share, late=share, broken=share)


class Payment(Event, frozen=True):
    card: str
    terminal: str
    amount: float


def records_of(number: int, disturbance: Disturbance, seed: int = 0) -> list[Record]:
    return disturb(draw_day(WORLD, number), disturbance, seed)


@settings(max_examples=30, deadline=None)
@given(disturbance=disturbances, seed=st.integers(0, 2**32))
def test_the_decoder_rejects_just_the_records_that_are_broken(disturbance: Disturbance, seed: int) -> None:
    records = records_of(1, disturbance, seed)
    decoder = EventDecoder(Payment, by="card")
    decoded = decoder.decode(
        [record.value for record in records],
        [record.key for record in records],
        np.full(len(records), NOW_MS),
    )
    rejected = [row for row, record in enumerate(records) if record.fate.rejected]
    assert [each.row for each in decoded.rejected] == rejected


@settings(max_examples=30, deadline=None)
@given(disturbance=disturbances, seed=st.integers(0, 2**32))
def test_just_the_late_records_are_behind_the_watermark_of_their_partition(disturbance: Disturbance, seed: int) -> None:
    newest_ms: dict[int, int] = {}
    for record in records_of(0, Disturbance(), seed) + records_of(1, disturbance, seed):
        if record.fate.rejected:
            continue
        partition, time_ms = crc32(record.key) % PARTITIONS, json.loads(record.value)["time"]
        behind = time_ms < newest_ms.get(partition, time_ms) - LATENESS_MS
        assert behind == (record.fate is Fate.LATE)
        newest_ms[partition] = max(newest_ms.get(partition, time_ms), time_ms)


@settings(max_examples=30, deadline=None)
@given(disturbance=disturbances, seed=st.integers(0, 2**32))
def test_every_payment_of_the_day_has_one_record_besides_its_copies(disturbance: Disturbance, seed: int) -> None:
    before = records_of(1, Disturbance(), seed)
    after = records_of(1, disturbance, seed)
    assert len([record for record in after if record.fate is not Fate.DUPLICATE]) == len(before)
    untouched = {record for record in after if record.fate is Fate.FINE}
    assert untouched <= set(before)


@settings(max_examples=30, deadline=None)
@given(disturbance=disturbances, seed=st.integers(0, 2**32))
def test_a_copy_is_the_same_bytes_after_the_record_itself(disturbance: Disturbance, seed: int) -> None:
    sent: set[tuple[bytes, bytes]] = set()
    for record in records_of(1, disturbance, seed):
        if record.fate is Fate.DUPLICATE:
            assert (record.key, record.value) in sent
        sent.add((record.key, record.value))


def test_the_same_seed_disturbs_the_same_way() -> None:
    disturbance = Disturbance(0.1, 0.1, 0.1, 0.1)
    assert records_of(3, disturbance, 7) == records_of(3, disturbance, 7)
    assert records_of(3, disturbance, 7) != records_of(3, disturbance, 8)


def test_shares_are_what_was_asked_for() -> None:
    world = draw_world(seed=9, customers=3_000, terminals=6_000)
    day = draw_day(world, 1)
    records = disturb(day, Disturbance(duplicates=0.2, disorder=0.3, late=0.1, broken=0.1), seed=0)
    counts = Counter(record.fate for record in records)
    broken = sum(number for fate, number in counts.items() if fate.rejected)
    rows = len(day.scenario)
    assert counts[Fate.LATE] / rows == pytest.approx(0.1, abs=0.02)
    assert broken / rows == pytest.approx(0.1, abs=0.02)
    assert counts[Fate.DUPLICATE] / counts[Fate.FINE] == pytest.approx(0.2, abs=0.02)
    assert {fate for fate in Fate if fate.rejected} <= counts.keys()


def test_records_out_of_order_stay_within_the_delay() -> None:
    records = records_of(1, Disturbance(disorder=0.5, delay_ms=300_000))
    time_ms = np.array([json.loads(record.value)["time"] for record in records])
    behind_ms = np.maximum.accumulate(time_ms) - time_ms
    assert 0 < behind_ms.max() <= 300_000


def test_without_disturbance_records_are_sent_in_order() -> None:
    time_ms = [json.loads(record.value)["time"] for record in records_of(1, Disturbance())]
    assert time_ms == sorted(time_ms)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=f"disorder is {share}; write a share"):
        Disturbance(disorder=share)


def test_more_late_and_broken_records_than_events_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"late .* and broken"):
        Disturbance(late=0.6, broken=0.6)
