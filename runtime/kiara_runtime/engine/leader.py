"""Leader and followers (Schmidt et al. 2000): one of the waiting threads runs the next step for all of them.

There is no dedicated thread that could hang at a fork or at exit.

After a step only the threads that have something to fetch are woken, and a thread that returns wakes the next leader.
Waking all of forty waiting threads after every step would take as long as a step of a small model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# Seconds that the next step waits for the threads woken by the last one. Their work, such as writing to eight clients,
# would compete with the step for the cores: a few percent of a step on two cores.
GATHER = 0.005


class Leader:
    """Lets one waiting thread at a time run steps. lock: held to change what a step reads, never during a step."""

    def __init__(self) -> None:
        self._stepping = self._frozen = False
        self._gathering = False  # whether a thread waits with `_gather_until` as its timeout
        self._woken, self._gather_until = 0, 0.0  # threads woken by the last step and not back yet; how long to wait
        self.lock = threading.Lock()
        self._idle = threading.Condition(self.lock)
        # Condition of a waiting thread -> (whether it is ready, whether it will wait again after that).
        self._waiting: dict[threading.Condition, tuple[Callable[[], bool], Callable[[], bool]]] = {}

    def until(
        self,
        ready: Callable[[], bool],
        waits_again: Callable[[], bool],
        step: Callable[[], None],
        check: Callable[[], None],
        timeout: float | None = None,
    ) -> None:
        """Run steps, or wait for those of other threads, until `ready`, or for `timeout` seconds plus the current step.

        waits_again: whether the caller will wait again once it is ready. check: raises if there are no more steps.
        """
        end, mine = None if timeout is None else time.monotonic() + timeout, threading.Condition(self.lock)
        with self.lock:
            self._waiting[mine] = ready, waits_again
            self._woken = max(0, self._woken - 1)
            try:
                while not ready():
                    check()
                    now = time.monotonic()
                    left = None if end is None else end - now
                    if left is not None and left <= 0:
                        return
                    if self._stepping or self._frozen:
                        mine.wait(left)
                    elif self._woken and now < self._gather_until:
                        self._gather(mine, self._gather_until - now, left)
                    else:
                        try:
                            self._stepping = True
                            try:
                                self.lock.release()
                                step()  # inline, as one more call would add to the latency of every token
                            finally:
                                self.lock.acquire()
                        finally:
                            self._stepped()
            finally:
                del self._waiting[mine]
                self._wake_next()

    def end(self, last: Callable[[], None]) -> None:
        """Wait for the current step, call `last` and wake all threads; from then on `check` must raise."""
        with self.lock:
            self._idle.wait_for(lambda: not self._stepping)
            last()
            for each in self._waiting:
                each.notify()

    def freeze(self) -> None:
        """Wait for the current step and allow no further one."""
        with self.lock:
            self._frozen = True  # before the wait: a leader goes straight from one step to the next
            self._idle.wait_for(lambda: not self._stepping)

    def _gather(self, mine: threading.Condition, seconds: float, left: float | None) -> None:
        """Wait for the last of the woken threads, which runs the step at once, or for `seconds`.

        Only one thread uses that timeout: others would wake during the step, slow it down and find it running.
        """
        if self._gathering:
            mine.wait(left)
            return
        self._gathering = True
        try:
            mine.wait(seconds if left is None else min(seconds, left))
        finally:
            self._gathering = False

    def _stepped(self) -> None:
        """Wake the threads that have something to fetch after a step."""
        self._stepping = False
        self._idle.notify_all()
        woken = [(each, waits_again()) for each, (ready, waits_again) in self._waiting.items() if ready()]
        self._woken, self._gather_until = sum(back for _, back in woken), time.monotonic() + GATHER
        for each, _ in woken:
            each.notify()

    def _wake_next(self) -> None:
        if self._stepping or self._frozen or (self._gathering and self._woken):  # another thread runs the next step
            return
        for each, (ready, _) in self._waiting.items():
            each.notify()  # also threads that became ready without a step
            if not ready():
                return
