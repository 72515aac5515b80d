"""How long a sink's thread may be silent, with Kafka there and away."""

from app.runtime.action_worker import AWAY_S, STALLED_S, Presence


def test_a_thread_that_hangs_while_kafka_is_there_is_silent_since_its_last_step() -> None:
    presence = Presence(0.0)
    for now_s in range(0, 100, 10):
        presence.note_seen(float(now_s))
    assert presence.measure_silence(stepped_s=20.0, now_s=95.0) == 75.0 > STALLED_S


def test_silence_counts_from_the_return_of_kafka() -> None:
    presence = Presence(0.0)
    presence.note_seen(10.0)
    assert presence.measure_silence(10.0, 10.0 + AWAY_S) == AWAY_S
    assert presence.measure_silence(10.0, 500.0) == 0.0
    presence.note_seen(510.0)
    presence.note_seen(520.0)
    assert presence.measure_silence(10.0, 525.0) == 15.0
    assert presence.measure_silence(522.0, 525.0) == 3.0
