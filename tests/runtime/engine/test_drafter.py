"""Drafts repeat earlier parts of the text, and never cost more than their budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kiara_runtime.engine.drafter import EARNED, LARGEST, MOST_SAVED, PASS_COST, TOKEN_COST, Drafter, N


def _run(source: list[int], prompt: int) -> tuple[list[tuple[int, int]], int]:
    """Decode a known text. Returns (guessed, accepted) of each draft and the number of passes."""
    drafter, tokens, guesses, passes = Drafter(), source[:prompt], list[tuple[int, int]](), 0
    while len(tokens) < len(source):
        guess = drafter.guess(tokens, len(source) - len(tokens) - 1)
        rest = source[len(tokens) :]
        right = next((i for i, (a, b) in enumerate(zip(guess, rest, strict=False)) if a != b), len(guess))
        if guess:
            drafter.judge(len(guess), right)
            guesses.append((len(guess), right))
        tokens += rest[: right + 1]
        passes += 1
    return guesses, passes


def test_a_repeated_text_takes_few_passes() -> None:
    line = list(range(40))
    guesses, passes = _run(line * 6, 40)
    assert passes < 30 and max(guessed for guessed, _ in guesses) == LARGEST
    assert all(guessed == accepted for guessed, accepted in guesses)


def test_a_text_without_repeats_gets_no_drafts() -> None:
    assert _run(list(range(500)), 20) == ([], 480)


def test_the_latest_occurrence_is_drafted() -> None:
    drafter = Drafter()
    assert drafter.guess([1, 2, 3, 7, 7, 1, 2, 3, 9, 9, 9, 1, 2, 3], 3) == [9, 9, 9]
    assert Drafter().guess([1, 2, 3, 4, 1, 2, 3], 1) == [4]
    assert Drafter().guess([1, 2, 3, 4, 1, 2, 3], 0) == []


@given(st.lists(st.integers(0, 2), min_size=N + 1, max_size=400))
def test_wrong_drafts_stay_within_the_cost_budget(source: list[int]) -> None:
    """For any text the cost, in plain steps, exceeds plain decoding by at most a share EARNED plus MOST_SAVED."""
    guesses, passes = _run(source, N)
    plain = len(source) - N
    cost = passes + sum(PASS_COST + TOKEN_COST * guessed for guessed, _ in guesses)
    assert cost <= plain * (1 + EARNED) + MOST_SAVED
    assert passes + sum(accepted for _, accepted in guesses) == plain
