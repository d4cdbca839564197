"""Which slot a sequence gets: those in use stay adjacent, and a known prefix is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kiara_runtime.engine.sequence import ModelFacts, Sequence
from kiara_runtime.engine.slots import Slots
from kiara_runtime.sampling import SamplingParams

FACTS = ModelFacts([b"a"] * 64, frozenset({0}), 96)


class _Cache:
    """Remembers what was copied."""

    copies = True

    def __init__(self, slots: int) -> None:
        self.buffers = np.zeros((2, slots, 1, 96, 1), np.float32)
        self.copied: list[tuple[int, int, int]] = []

    def copy(self, source: int, target: int, length: int) -> None:
        self.copied.append((source, target, length))


def _sequence(tokens: list[int]) -> Sequence:
    return Sequence(tokens, SamplingParams(max_tokens=4, seed=0), FACTS)


def _slots(count: int, used: dict[int, list[int]]) -> tuple[Slots, _Cache]:
    cache: Any = _Cache(count)
    slots = Slots(cache, count)
    for index, tokens in used.items():
        slots[index].sequence = _sequence(tokens)
    return slots, cache


@pytest.mark.parametrize(
    ("used", "free"),
    [((), [0, 1, 2, 3, 4]), ((2,), [1, 3]), ((1, 3), [2]), ((0, 1), [2]), ((3, 4), [2]), ((0, 1, 2, 3, 4), [])],
)
def test_free_slots_are_between_those_in_use_or_next_to_them(used: tuple[int, ...], free: list[int]) -> None:
    slots, _ = _slots(5, {index: [1, 2, 3] for index in used})
    assert slots.free() == free and slots.used() == list(used)


def test_a_sequence_gets_the_slot_that_holds_most_of_its_prompt() -> None:
    slots, cache = _slots(3, {})
    for index, known in enumerate(([1, 2, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [7, 8])):
        slots[index].tokens, slots[index].exact = known, len(known)
    prompt = _sequence([*range(1, 11), 40, 41])
    assert slots.longest_known(prompt.tokens) == 10
    slots.place(prompt, [0, 1, 2])
    assert slots[1].sequence is prompt and slots.holds(prompt)
    slots.reuse(1, None)
    assert (prompt.computed, prompt.reused, cache.copied) == (10, 10, [])


def test_a_prefix_in_another_slot_is_copied_if_it_is_long_enough() -> None:
    for length, expected in ((7, []), (8, [(0, 1, 8)])):
        slots, cache = _slots(2, {})
        slots[0].tokens, slots[0].exact = list(range(1, length + 1)), length
        sequence = slots[1].sequence = _sequence([*range(1, length + 1), 50, 51, 52])
        slots.reuse(1, None)
        assert cache.copied == expected and sequence.reused == (length if expected else 0)


def test_a_sequence_from_the_end_moves_into_a_gap() -> None:
    slots, cache = _slots(4, {0: [1, 2, 3], 1: [4, 5, 6], 2: [7, 8, 9]})
    last = slots.sequence(2)
    slots.sequence(0).computed, last.computed = 3, 2  # the one with less to copy moves
    slots.sequence(1).cancelled = True
    slots.retire()
    assert cache.copied == [(2, 1, 2)] and slots.sequence(1) is last and slots.used() == [0, 1]
