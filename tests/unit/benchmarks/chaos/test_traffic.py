import json
from collections import Counter
from itertools import islice

from app.simulate import Fate
from benchmarks.chaos.pipeline import POISON_AMOUNT
from benchmarks.chaos.traffic import payments


def test_one_payment_in_a_thousand_is_poison_and_its_copies_are_too() -> None:
    records = list(islice(payments(seed=1), 40_000))
    fine = [json.loads(each.value) for each in records if each.fate in (Fate.FINE, Fate.DUPLICATE)]
    poison = Counter(each["id"] for each in fine if each["amount"] == POISON_AMOUNT)
    everything = Counter(each["id"] for each in fine)
    assert 10 < len(poison) < 100
    assert all(everything[name] == times for name, times in poison.items())
    fates = Counter(each.fate for each in records)
    assert 0.03 < fates[Fate.DUPLICATE] / len(records) < 0.07
    assert 0.005 < sum(times for fate, times in fates.items() if fate.rejected) / len(records) < 0.015
