"""Block quantization: error bounds for any weights, and GPTQ against plain rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kiara_export.quantize.blocks import Blocks
from kiara_export.quantize.gptq import gptq
from kiara_export.quantize.kept import round_int8
from kiara_export.quantize.mixed import Choice, Mixed, fewest
from kiara_runtime.errors import UserError

BLOCKS = (32, 16)


@given(
    st.integers(1, 5),
    st.sampled_from([16, 48, 32, 96, 64, 192]),
    st.integers(0, 99),
    st.sampled_from([0, 1e-30, 1e-6, 1, 1e6]),
)
@settings(max_examples=50, deadline=None)
def test_int8_is_within_half_a_step(rows: int, columns: int, seed: int, scale: float) -> None:
    weight = (np.random.default_rng(seed).standard_normal((rows, columns)) * scale).astype(np.float32)
    made = round_int8(weight)
    step = np.repeat(made.scales.astype(np.float32), made.size, axis=1)
    # a float16 scale may be 2^-11 too small, which adds 127 * 2^-11 of a step at the largest value
    assert (np.abs(made.weight() - weight) <= 0.57 * step).all()


@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from([16, 32]), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_packing_keeps_every_value(rows: int, blocks: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 16, (rows, blocks, size), dtype=np.uint8)
    zeros = rng.integers(0, 16, (rows, blocks), dtype=np.uint8)
    made = Blocks(4, values, np.ones((rows, blocks), np.float16), zeros)
    packed, packed_zeros = made.packed(), made.packed_zeros()
    assert packed.shape == (rows, blocks, size // 2) and packed_zeros.shape == (rows, (blocks + 1) // 2)
    np.testing.assert_array_equal(np.stack([packed & 15, packed >> 4], -1).reshape(values.shape), values)
    np.testing.assert_array_equal(
        np.stack([packed_zeros & 15, packed_zeros >> 4], -1).reshape(rows, -1)[:, :blocks], zeros
    )
    assert made.nbytes == packed.nbytes + packed_zeros.nbytes + 2 * rows * blocks


@pytest.mark.parametrize("columns", [32, 48, 96])
def test_gptq_has_a_lower_output_error_than_plain_rounding(columns: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, columns)
    inputs = torch.randn(2000, columns) @ torch.randn(columns, columns)  # correlated, like real activations
    moments = inputs.T @ inputs / len(inputs)

    def error(made: Blocks) -> float:
        return ((torch.from_numpy(made.weight()) - weight) @ inputs.T).square().mean().item()

    plain = gptq(weight, torch.diag(moments.diagonal()), BLOCKS)  # without correlations GPTQ cannot compensate
    assert error(gptq(weight, moments, BLOCKS)) < 0.7 * error(plain)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e4])
def test_gptq_handles_extreme_weights_and_dead_inputs(scale: float) -> None:
    torch.manual_seed(0)
    weight, moments = torch.randn(8, 32) * scale, torch.zeros(32, 32)
    back = gptq(weight, moments, BLOCKS).weight()
    assert np.isfinite(back).all()
    # range shrinking may clip the largest weight by 30 %
    assert np.abs(back - weight.numpy()).max() <= 0.35 * weight.abs().max().item() + 1e-6


def test_a_weight_beyond_float16_scales_is_refused() -> None:
    with pytest.raises(UserError, match="too large for float16"):
        round_int8(np.full((2, 64), 1e8, np.float32))


def _mixed(costs: list[float]) -> Mixed:
    four = Blocks(4, np.zeros((1, 1, 32), np.uint8), np.ones((1, 1), np.float16), np.zeros((1, 1), np.uint8))
    eight = round_int8(np.linspace(-1, 1, 64, dtype=np.float32)[None])
    return Mixed({f"m{i}": Choice(four, eight, cost) for i, cost in enumerate(costs)})


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12, unique=True), st.integers(0, 1000))
def test_promotion_takes_the_costliest_matrices_within_the_budget(costs: list[float], spare: int) -> None:
    mixed = _mixed(costs)
    extra = 66 - 19  # bytes: the 8-bit choice minus the 4-bit one
    count = mixed.within(10_000, 10_000 + spare)
    assert count == min(len(costs), spare // extra)
    promoted = {costs[int(name[1:])] for name in mixed.eight(count)}
    assert promoted == set(sorted(costs, reverse=True)[:count])


def test_a_budget_below_the_smallest_graph_is_refused() -> None:
    with pytest.raises(UserError, match=r"--budget 0.01MB: the smallest graph takes 0.02MB"):
        _mixed([1.0]).within(20_000, 10_000)


@given(st.integers(0, 40), st.integers(0, 40))
def test_bisection_finds_the_fewest_promotions(count: int, needed: int) -> None:
    def loss(promoted: int) -> float:
        return 0.01 if promoted >= needed else 0.03

    assert fewest(count, loss, 0.02) == min(needed, count)  # all of them if even that is not enough
