"""Leader and followers (Schmidt et al. 2000): one of those who wait makes the next step for all.

There is no thread of its own that could hang at a fork or an exit.

After a step only the threads that have something to fetch are woken, and a thread that leaves wakes the next leader.
Waking all of forty waiting threads for every step would take as long as the step of a small model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# Seconds that the next step waits for the threads that the last one woke. What they do meanwhile, such as writing to
# eight clients, would take the cores from the step: a few percent of it on two cores.
GATHER = 0.005


class Leader:
    """lock: held by whoever changes what a step reads, and never during a step."""

    def __init__(self) -> None:
        self._stepping = self._frozen = False
        self._kept = False  # somebody watches the time until which the woken are waited for
        self._woken, self._gathered = 0, 0.0  # how many have not come back since the last step; until when that counts
        self.lock = threading.Lock()
        self._idle = threading.Condition(self.lock)
        # Each one's call, what it waits for, and whether it will wait again after that.
        self._waiting: dict[threading.Condition, tuple[Callable[[], bool], Callable[[], bool]]] = {}

    def until(
        self,
        ready: Callable[[], bool],
        returns: Callable[[], bool],
        step: Callable[[], None],
        check: Callable[[], None],
        timeout: float | None = None,
    ) -> None:
        """Make steps, or wait for others', until `ready`; or for `timeout` seconds and the step that is under way.

        returns: whether it will wait again, once it is ready. check: raises where there will be no more steps.
        """
        end, mine = None if timeout is None else time.monotonic() + timeout, threading.Condition(self.lock)
        with self.lock:
            self._waiting[mine] = ready, returns
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
                    elif self._woken and now < self._gathered:
                        self._gather(mine, self._gathered - now, left)
                    else:
                        try:
                            self._stepping = True
                            try:
                                self.lock.release()
                                step()  # here, as each further call would be on the way of every token
                            finally:
                                self.lock.acquire()
                        finally:
                            self._stepped()
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
            self._frozen = True  # first: who leads goes straight from one step to the next
            self._idle.wait_for(lambda: not self._stepping)

    def _gather(self, mine: threading.Condition, seconds: float, left: float | None) -> None:
        """Wait until the last of the woken comes back, who makes the step at once, or for `seconds`.

        One alone wakes after them: to others it would mean to interrupt the step and find it under way.
        """
        if self._kept:
            mine.wait(left)
            return
        self._kept = True
        try:
            mine.wait(seconds if left is None else min(seconds, left))
        finally:
            self._kept = False

    def _stepped(self) -> None:
        """Wake those for whom the step brought something."""
        self._stepping = False
        self._idle.notify_all()
        woken = [(each, returns()) for each, (ready, returns) in self._waiting.items() if ready()]
        self._woken, self._gathered = sum(back for _, back in woken), time.monotonic() + GATHER
        for each, _ in woken:
            each.notify()

    def _hand_on(self) -> None:
        if self._stepping or self._frozen or (self._kept and self._woken):  # there is one who goes on
            return
        for each, (ready, _) in self._waiting.items():
            each.notify()  # also those that became ready just now, without a step
            if not ready():
                return
