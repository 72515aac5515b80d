import msgspec
import numpy as np

from app.event import Columns
from app.pipelines.fraud import RISKY, CardHistory, Payment, fraud

RISK = np.array([0.0, RISKY, RISKY + 0.001, 1.0], dtype=np.float32)


def judged(columns: Columns, amounts: list[float], *, fallback: bool = False) -> list[float | None]:
    """The risk with which each payment is held; None for those let through."""
    events = [Payment(f"id-{row}", 0, "card", "terminal", amount) for row, amount in enumerate(amounts)]
    verdicts = fraud.judge(events, columns, fallback=fallback)
    assert not verdicts.failed
    actions = [msgspec.json.decode(each)[0] if each else None for each in verdicts.actions]
    for row, action in enumerate(actions):
        assert action is None or (action["type"], action["payment"]) == ("Hold", f"id-{row}")
    return [action and action["risk"] for action in actions]


def history(**columns: list[float]) -> Columns:
    rows = len(next(iter(columns.values())))
    return {name: np.ones(rows) for name in CardHistory.columns()} | {
        name: np.array(column) for name, column in columns.items()
    }


def test_payments_above_the_threshold_are_held_with_their_risk() -> None:
    held = judged(history(payments_1d=[1] * 4) | {"risk": RISK}, [10.0] * 4)
    assert held[:2] == [None, None]
    np.testing.assert_array_equal(held[2:], RISK[2:])


def test_the_threshold_is_the_same_for_the_column_and_for_the_event() -> None:
    just_above = np.nextafter(np.float32(RISKY), np.float32(1))
    risk = np.array([np.nextafter(just_above, np.float32(0)), just_above, np.float32(RISKY)], dtype=np.float32)
    assert fraud.when is not None
    chosen = fraud.when({"risk": risk})
    held = judged(history(payments_1d=[1] * 3) | {"risk": risk}, [10.0] * 3)
    assert [each is not None for each in held] == chosen.tolist()


def test_without_the_model_only_the_blatant_is_held() -> None:
    columns = history(payments_1d=[1, 1, 20, 21])
    assert judged(columns, [220.0, 220.5, 10.0, 10.0], fallback=True) == [None, 1.0, None, 1.0]
