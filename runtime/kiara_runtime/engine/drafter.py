"""Speculation without a second model: the next tokens are guessed from what followed the same tokens before.

Prompt lookup (Saxena 2023): where the last N tokens stood before, what came after them is the guess. One pass
checks it; how long guesses are, and whether there is one at all, is decided by counting what was accepted and
never by the clock, so that a seed reproduces.
"""

from __future__ import annotations

from collections.abc import Sequence

N = 3  # tokens that must recur
LARGEST = 15  # tokens of a guess; with the last token itself a pass of 16
FIRST = 3
# In steps of one token. A pass of 4 tokens takes 1.65 times as long as one of 1, of 8 2.1 times, of 16 3.1 times.
PASS_COST, TOKEN_COST = 0.15, 0.15
EARNED = 0.015  # by every step without a guess: what text without repeats may lose
MOST_SAVED = 3.0


class Drafter:
    """The guesses of one sequence. It spends no more steps on wrong ones than right ones and patience have earned."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # N tokens -> the position after their last occurrence
        self._seen = 0
        self._size = FIRST
        self._saved = PASS_COST + FIRST * TOKEN_COST
        self.guessed: int = 0
        self.accepted: int = 0

    def guess(self, tokens: Sequence[int], room: int) -> list[int]:
        """What may follow `tokens`, at most `room` ids; empty where nothing recurs or it would not pay."""
        for end in range(max(N, self._seen), len(tokens)):  # not the last one: it would find itself
            self._after[tuple(tokens[end - N : end])] = end
        self._seen = len(tokens)
        affordable = int((self._saved - PASS_COST) / TOKEN_COST + 1e-9)
        place = self._after.get(tuple(tokens[-N:]))
        size = min(self._size, affordable, room)
        if place is None or size < 1:
            self._saved = min(MOST_SAVED, self._saved + EARNED)
            return []
        return list(tokens[place : place + size])

    def judge(self, guessed: int, accepted: int) -> None:
        """Tell how many tokens of the last guess were right."""
        self.guessed += guessed
        self.accepted += accepted
        self._saved = min(MOST_SAVED, self._saved + accepted - PASS_COST - guessed * TOKEN_COST)
        self._size = min(LARGEST, 2 * self._size + 1) if accepted == guessed else max(FIRST, accepted)
