"""Which waiting thread runs the steps, and when each thread returns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from kiara_runtime.engine.leader import Leader

LONG = 20.0  # seconds; no test should take as long


def _nothing() -> None:
    pass


def _always() -> bool:
    return True


def _started(*calls: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def test_a_step_waits_for_the_threads_that_the_last_step_woke(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads take the result of each step at their own pace; no step starts before all have taken the last."""
    monkeypatch.setattr("kiara_runtime.engine.leader.GATHER", LONG)
    leader, made, found, end = Leader(), [0], [list[int]() for _ in range(3)], 20

    def step() -> None:
        while not made[0] and len(leader._waiting) < len(found):
            time.sleep(0.001)
        assert all(len(taken) == made[0] for taken in found)
        made[0] += 1

    def follow(taken: list[int], pace: float) -> None:
        while len(taken) < end:
            leader.until(lambda: made[0] > len(taken), lambda: made[0] < end, step, _nothing)
            taken.append(made[0])
            time.sleep(pace)

    for thread in _started(*(lambda i=i: follow(found[i], i / 500) for i in range(3))):
        thread.join(LONG)
        assert not thread.is_alive()
    assert found == [list(range(1, end + 1))] * 3


def test_a_thread_that_does_not_return_delays_no_other() -> None:
    leader, made = Leader(), [0]

    def step() -> None:
        made[0] += 1

    leader.until(lambda: made[0] > 0, _always, step, _nothing)  # announces that it will wait again, but does not
    started = time.monotonic()
    leader.until(lambda: made[0] > 1, _always, step, _nothing)
    assert made[0] == 2 and time.monotonic() - started < 1


def test_freeze_waits_only_for_the_current_step() -> None:
    leader, made, asked, frozen = Leader(), [0], threading.Event(), threading.Event()

    def step() -> None:
        made[0] += 1
        while made[0] == 6 and not asked.is_set():
            time.sleep(0.001)
        time.sleep(0.01)

    def freeze() -> None:
        while made[0] < 6:
            time.sleep(0.001)
        asked.set()
        leader.freeze()
        frozen.set()

    _started(lambda: leader.until(lambda: made[0] >= 5000, _always, step, _nothing), freeze)
    assert frozen.wait(LONG) and made[0] < 5000


def test_a_timeout_ends_while_another_thread_runs_the_steps() -> None:
    leader, ends = Leader(), dict[str, float]()

    def wait(name: str, seconds: float) -> None:
        leader.until(lambda: False, _always, lambda: time.sleep(0.001), _nothing, seconds)
        ends[name] = time.monotonic()

    started = time.monotonic()
    for thread in _started(lambda: wait("long", 2.0), lambda: wait("short", 0.2), lambda: wait("shorter", 0.1)):
        thread.join(LONG)
    assert ends["shorter"] - started < 1 and ends["short"] - started < 1 and ends["long"] - started >= 2
