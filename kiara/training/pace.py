"""Estimate the remaining time of a run from its steps and pauses so far."""

from __future__ import annotations

import statistics
from collections import deque

FIRST = 10  # steps before the first estimate
RECENT = 50  # steps that an estimate uses


class Pace:
    """Wall time of a run's steps, and of the validations and checkpoints between them."""

    def __init__(self, steps: int, done: int) -> None:
        """steps: in total. done: taken before this process."""
        self._steps, self._done = steps, done
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._taken, self._pauses = 0, 0.0

    def stepped(self, seconds: float) -> str | None:
        """Record a step; returns the first estimate when there is one."""
        self._recent.append(seconds)
        self._taken += 1
        return self.left(self._done + FIRST) if self._taken == FIRST else None

    def paused(self, seconds: float) -> None:
        """Record the time between two steps."""
        self._pauses += seconds

    def left(self, step: int) -> str:
        """Remaining time after `step`. The median ignores a first step that compiles."""
        each = statistics.median(self._recent) + self._pauses / self._taken
        return duration((self._steps - step) * each)


def duration(seconds: float) -> str:
    """For people: `4 min 05 s`, `2 h 10 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
