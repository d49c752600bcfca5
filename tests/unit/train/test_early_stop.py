from __future__ import annotations

from bm3_dgl.train.early_stop import EarlyStop


def test_strict_improvement_and_patience() -> None:
    stop = EarlyStop(patience=2, burn_in=0)
    assert stop.update(0.1, 1)
    assert not stop.update(0.1, 2), "equal is not better"
    assert not stop.stops
    assert stop.update(0.2, 3) and stop.since_best == 0
    stop.update(0.1, 4)
    stop.update(0.1, 5)
    assert stop.stops and (stop.best, stop.best_epoch) == (0.2, 3)


def test_burn_in_looks_past_a_false_peak() -> None:
    stop = EarlyStop(patience=2, burn_in=10)
    stop.update(0.3, 1)
    for epoch in range(2, 11):
        stop.update(0.1, epoch)
    assert not stop.stops
    assert stop.update(0.4, 11)


def test_state_survives() -> None:
    stop = EarlyStop(patience=3, burn_in=0)
    stop.update(0.5, 4)
    stop.update(0.4, 5)
    again = EarlyStop(patience=3, burn_in=0)
    again.load_state(stop.state())
    assert again == stop
