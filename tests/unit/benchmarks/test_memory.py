from benchmarks.memory import growth
from benchmarks.meter import Memory, Sample


def sample(minute: float, **uss: float) -> Sample:
    return Sample(minute * 60, {}, 0.0, {name: Memory(value, value) for name, value in uss.items()})


def test_memory_that_grew_at_the_start_only_is_flat() -> None:
    samples = [sample(minute, worker=100 + 50 * min(minute, 3)) for minute in range(11)]
    found = growth(samples)
    assert found["flat"]
    assert found["mib_per_minute"] == 0
    assert (found["mib_begin"], found["mib_end"]) == (250, 250)


def test_a_leak_shows_in_its_process() -> None:
    found = growth([sample(minute, worker=100 + 2 * minute, scorer=300) for minute in range(11)])
    assert not found["flat"]
    assert found["mib_per_minute"] == 2
    assert found["mib_per_minute_by_process"] == {"worker": 2}
    assert found["mib_every_half_minute"]["worker"][:3] == [100, 102, 104]


def test_samples_of_cpu_alone_are_left_out() -> None:
    cpu_only = [Sample(minute * 60 + 30, {}, 0.0, None) for minute in range(11)]
    samples = sorted([*(sample(minute, worker=100) for minute in range(11)), *cpu_only], key=lambda each: each.time_s)
    assert growth(samples)["flat"]
