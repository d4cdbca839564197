"""Weights that came in GGUF's blocks: the export keeps every bit of them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiara.grid import Grid
from kiara_export.quantize.kept import kept, round_int8, rounded


def _of_gguf(kind: str, shape: tuple[int, int], seed: int, scale: float = 1.0) -> np.ndarray:
    """Random weights after a way through a GGUF type."""
    weight = (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
    known = gguf.GGMLQuantizationType[kind]
    return gguf.dequantize(gguf.quantize(weight, known), known)


@given(
    st.sampled_from([("Q8_0", 8), ("Q5_0", 8), ("Q4_0", 8), ("Q4_0", 4)]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 999),
    st.sampled_from([1e-3, 1.0, 100.0]),
)
@settings(max_examples=60, deadline=None)
def test_blocks_of_gguf_are_kept(form: tuple[str, int], rows: int, blocks: int, seed: int, scale: float) -> None:
    kind, bits = form
    weight = _of_gguf(kind, (rows, 32 * blocks), seed, scale)
    made = kept(weight, bits)
    assert made is not None and made.kept and made.bits == bits
    np.testing.assert_array_equal(made.weight(), weight)


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1", "F16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_other_types_are_rounded(kind: str, bits: int) -> None:
    assert kept(_of_gguf(kind, (4, 64), 1), bits) is None


def test_matrices_packed_from_several_types_are_kept() -> None:
    weight = np.concatenate([_of_gguf(kind, (3, 64), 2) for kind in ("Q8_0", "Q5_0", "Q4_0")])
    weight[1, :32] = 0  # a block without weights
    made = round_int8(weight)
    assert made.kept
    np.testing.assert_array_equal(made.weight(), weight)


def test_a_finer_grid_divides_blocks_and_changes_no_weight() -> None:
    weight = _of_gguf("Q8_0", (4, 96), 4)
    made = rounded(Grid(8, (16,)), weight)
    assert made.size == 16 and made.kept
    np.testing.assert_array_equal(made.weight(), weight)


def test_a_matrix_is_kept_whole_or_not_at_all() -> None:
    weight = _of_gguf("Q8_0", (2000, 64), 3)
    weight[-1, 5] += 1e-4
    assert kept(weight, 8) is None and not round_int8(weight).kept
    assert kept(np.zeros((2, 64), np.float32), 8) is None
