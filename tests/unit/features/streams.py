"""Streams of events as they come in life, and worse, for hypothesis to draw."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from app.event import Columns, Event
from app.features import Features, KeyedState

LATENESS_MS = 2_000
WINDOWS = ("1s", "4s")
START_MS = 1_700_000_000_000


class Payment(Event):
    card: str
    account: int
    merchant: str
    amount: float
    items: int
    online: bool
    tip: float | None = None
    voucher: str | None = None


class Stream(NamedTuple):
    """Columns in log order, none late, and the watermark at each row."""

    columns: Columns
    watermark_ms: np.ndarray

    def __len__(self) -> int:
        return len(self.watermark_ms)

    def part(self, start: int, stop: int) -> "Stream":
        return Stream(
            {name: column[start:stop] for name, column in self.columns.items()}, self.watermark_ms[start:stop]
        )

    def cut(self, places: list[int]) -> list["Stream"]:
        edges = [0, *sorted(places), len(self)]
        return [self.part(start, stop) for start, stop in pairwise(edges)]


AMOUNTS = (0.0, -0.0, 1.0, 0.1, -3.7, 12.5, 99.99, 1e16, -1e16, 1e16 + 2, 1e-3)
CARDS = ("", "a", "b", "card-\u00fc\u4e2d\U0001f600", "a\0", "x" * 100)
DELAYS_MS = (1, 999, 1_000, 1_001, 2_000)
ADVANCES_MS = (0, 0, 1, 300, 999, 1_000, 1_001, 2_000, 3_999, 4_000, 4_001, 10_000, 400_000_000_000)


@st.composite
def streams(draw: st.DrawFn, max_size: int = 60) -> Stream:
    """Disorder up to the lateness, equal times, gaps at the windows' edges and beside, values of all sizes."""
    size = draw(st.integers(0, max_size))
    advances = draw(st.lists(st.sampled_from(ADVANCES_MS), min_size=size, max_size=size))
    delays = draw(
        st.lists(
            st.one_of(st.just(0), st.sampled_from(DELAYS_MS), st.integers(0, LATENESS_MS)),
            min_size=size,
            max_size=size,
        )
    )
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    keys = draw(st.sampled_from((1, 2, len(CARDS))))
    return make_stream(random, np.array(advances, np.int64), np.array(delays, np.int64), keys)


def make_stream(random: np.random.Generator, advances: np.ndarray, delays: np.ndarray, keys: int) -> Stream:
    """The newest time grows by `advances`; each event stands `delays` behind it."""
    size = len(advances)
    times = START_MS + np.cumsum(advances) - delays
    newest = np.maximum.accumulate(times) if size else times
    cards = random.integers(0, keys, size)
    few = random.integers(0, 4, size)
    columns: Columns = {
        "id": np.array([f"p{row}" for row in range(size)], object),
        "time": times,
        "card": np.array([CARDS[card] if keys <= len(CARDS) else f"card-{card}" for card in cards], object),
        "account": cards * 7 - 3,
        "merchant": np.array([CARDS[each] for each in few], object),
        "amount": random.choice(AMOUNTS, size),
        "items": few * 2**60 - 5,
        "online": few > 1,
        "tip": np.where(few == 0, np.nan, random.choice(AMOUNTS, size)),
        "voucher": np.array([None if each == 0 else f"v{each}" for each in few], object),
    }
    return Stream(columns, newest - LATENESS_MS)


def busy_stream(seed: int, size: int, keys: int = 1, step_ms: int = 2) -> Stream:
    """Many events a window: a hundredth of them far, a fifth a little out of order."""
    random = np.random.default_rng(seed)
    delays = np.where(random.random(size) < 0.2, random.integers(0, 20, size), 0)
    delays = np.where(random.random(size) < 0.01, random.integers(0, LATENESS_MS, size), delays)
    return make_stream(random, random.integers(0, step_ms + 1, size), delays, keys)


def run(state: KeyedState, parts: list[Stream]) -> Columns:
    outs = [state.update(part.columns, part.watermark_ms) for part in parts]
    return {name: np.concatenate([out[name] for out in outs]) for name in state.features.columns()}


def run_whole(features: type[Features], stream: Stream) -> Columns:
    return run(KeyedState(features, LATENESS_MS), [stream])


def sweep(state: KeyedState, watermark_ms: int) -> int:
    """Expires until every key has been looked at: a call looks at a thousand of at least 4,096 slots."""
    return sum(state.expire(watermark_ms) for _ in range(5 + state.keys // 100))


def assert_identical(out: Columns, expected: Columns) -> None:
    """The same to the last bit."""
    assert list(out) == list(expected)
    for name in expected:
        assert out[name].tobytes() == expected[name].tobytes(), name
