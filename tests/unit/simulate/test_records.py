import itertools
import json

import pytest

from app.errors import ConfigError
from app.simulate import Disturbance, Fate, World, draw_world, next_day, simulate
from app.simulate.payments import draw_day
from app.simulate.records import Record, encode_day


@pytest.fixture(scope="module")
def world() -> World:
    return draw_world(seed=5, customers=300, terminals=600)


def test_a_record_is_the_payment_as_json_keyed_by_its_card(world: World) -> None:
    day = draw_day(world, 2)
    for row, record in enumerate(encode_day(day)):
        event = json.loads(record.value)
        assert event == {name: column[row] for name, column in day.columns.items()}
        assert record.key.decode() == event["card"]
        assert record.fate is Fate.FINE


def test_the_label_is_no_part_of_the_event(world: World) -> None:
    assert json.loads(encode_day(draw_day(world, 0))[0].value).keys() == {
        "id",
        "time",
        "card",
        "terminal",
        "amount",
    }


def test_a_run_goes_on_after_the_last_one(world: World) -> None:
    first_run = list(itertools.chain.from_iterable(itertools.islice(simulate(world=world), 2)))[:-10]
    last_of_partitions = [record.value for record in first_run[-4:]]
    second_run = next(simulate(world=world, start_day=next_day(last_of_partitions)))
    ids = [json.loads(record.value)["id"] for record in first_run + second_run]
    assert len(set(ids)) == len(ids)
    newest = max(json.loads(record.value)["time"] for record in first_run)
    assert newest < json.loads(second_run[0].value)["time"]


def test_a_run_on_an_empty_topic_begins_at_the_first_day() -> None:
    assert next_day([]) == 0


def test_records_of_others_do_not_say_where_a_run_goes_on() -> None:
    assert next_day([None, b"", b'{"id":"order-12-1"}', b'{"id":"sim-4-17","time":1}']) == 5


@pytest.mark.parametrize(
    "fate", [Fate.NOT_A_NUMBER, Fate.FAR_FUTURE, Fate.WRONG_TYPE, Fate.MISSING_FIELD, Fate.FOREIGN_KEY]
)
def test_a_broken_last_record_still_says_where_a_run_goes_on(world: World, fate: Fate) -> None:
    records = next(simulate(world=world, start_day=6, disturbance=Disturbance(broken=1.0)))
    broken: Record = next(record for record in records if record.fate is fate)
    assert next_day([broken.value]) == 7


def test_a_pipeline_without_a_simulator_is_refused() -> None:
    with pytest.raises(ConfigError, match="'weather' has no simulator; there is one for fraud"):
        simulate("weather")
