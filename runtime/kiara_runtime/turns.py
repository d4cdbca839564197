"""One step at a time, made by whoever waits for its outcome: no thread of its own that could hang at a fork or an exit.

After a step only those are woken who have something to fetch, and whoever leaves sees to it that another goes on:
with forty that wait, all of them waking for every step would take as long as the step of a small model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# Seconds that the next step waits for those whom the last one woke to come back. What they do meanwhile, such as
# writing to eight clients, would take the cores from the threads of the step: some percent of it on two cores.
GATHER = 0.005


class Turns:
    """lock: held by whoever changes what a step reads, and never during a step."""

    def __init__(self) -> None:
        self._stepping, self._woken = False, 0  # woken: how many have not come back since the last step
        self.lock = threading.Lock()
        self._idle = threading.Condition(self.lock)
        self._waiting: dict[threading.Condition, Callable[[], bool]] = {}  # each one's call, and what it waits for

    def until(
        self,
        ready: Callable[[], bool],
        step: Callable[[], None],
        check: Callable[[], None],
        timeout: float | None = None,
    ) -> None:
        """Make steps, or wait for others', until `ready`; or for `timeout` seconds and the step that is under way.

        check: raises where there will be no more steps.
        """
        end, mine = None if timeout is None else time.monotonic() + timeout, threading.Condition(self.lock)
        with self.lock:
            self._waiting[mine] = ready
            self._woken = max(0, self._woken - 1)
            if not self._woken and not self._stepping:
                self._idle.notify_all()
            try:
                while not ready():
                    check()
                    left = None if end is None else end - time.monotonic()
                    if left is not None and left <= 0:
                        return
                    if self._stepping:
                        mine.wait(left)
                    elif self._woken:
                        if not self._idle.wait(GATHER):
                            self._woken = 0
                    else:
                        self._lead(step)
            finally:
                del self._waiting[mine]
                self._hand_on()

    def end(self, last: Callable[[], None]) -> None:
        """Do something last once the step that is under way has ended, and wake everybody: `check` must raise then."""
        with self.lock:
            self._idle.wait_for(lambda: not self._stepping)
            last()
            for each in self._waiting:
                each.notify()

    def freeze(self) -> None:
        """Let nobody make another step, for ever."""
        with self.lock:
            self._idle.wait_for(lambda: not self._stepping)
            self._stepping = True

    def _lead(self, step: Callable[[], None]) -> None:
        """Make a step, the lock released meanwhile."""
        try:
            self._stepping = True
            self.lock.release()
            try:
                step()
            finally:
                self.lock.acquire()
        finally:
            self._stepping = False
            self._idle.notify_all()
            woken = [each for each, ready in self._waiting.items() if ready()]
            self._woken = len(woken)
            for each in woken:
                each.notify()

    def _hand_on(self) -> None:
        if self._stepping:
            return
        for each, ready in self._waiting.items():
            each.notify()  # also those that became ready just now, without a step
            if not ready():
                return
