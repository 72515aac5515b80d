"""The explorer: deterministic, and clear about what it has found."""

import pytest

from app.actions.publish import Publisher
from tests.explore.__main__ import main
from tests.explore.explorer import explore, open_schedule, play
from tests.explore.schedules import draw_schedule
from tests.explore.story import tell
from tests.unit.explore.test_bugs import transact_twice


def test_the_first_schedules_keep_every_promise() -> None:
    assert explore(range(60)) is None


@pytest.mark.parametrize("seed", [19, 28, 66])
def test_a_seed_tells_the_same_story_each_time(seed: int) -> None:
    stories = []
    for _ in range(2):
        schedule = draw_schedule(seed)
        with open_schedule(schedule) as simulation:
            play(simulation, schedule)
            stories.append(list(tell(simulation)))
    assert stories[0] == stories[1]
    assert len(stories[0]) > len(schedule.steps)


def test_a_violation_is_told_with_its_seed_and_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Publisher, "_transact", transact_twice)
    assert main(["--schedules", "50", "--jobs", "1"]) == 1
    said = capsys.readouterr().out
    seed = int(said.rpartition("--replay ")[2])
    assert "50 schedules" in said
    assert main(["--replay", str(seed)]) == 1
    assert "effects were repeated" in capsys.readouterr().out.splitlines()[-1]


def test_without_a_violation_it_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--schedules", "2", "--jobs", "1"]) == 0
    assert "0 violations" in capsys.readouterr().out
    assert main(["--replay", "0"]) == 0
    assert capsys.readouterr().out.endswith("every promise holds\n")
