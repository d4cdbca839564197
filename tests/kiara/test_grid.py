"""The grids: rounding twice is rounding once, whatever the weights, and its scales are the best of those tried."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kiara.grid import Grid
from kiara_export.quantize.blocks import per_channel, round_to
from kiara_runtime.bundle.variants import VARIANTS

GRIDS = [Grid(8, (64, 32, 16)), Grid(4, (32, 16)), Grid(2, (32, 16))]


def _weights(seed: int, columns: int, size: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(8, 1, generator=generator) * 4
    return torch.randn(8, columns, generator=generator) * size * spread


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.bits} bits")
@given(
    st.integers(0, 10_000),
    st.sampled_from([16, 48, 64, 96, 192]),
    st.sampled_from([0.0, 1e-30, *(10.0**power for power in range(-9, 4))]),
)
@settings(max_examples=200, deadline=None)
def test_rounding_what_lies_on_the_grid_changes_no_bit(grid: Grid, seed: int, columns: int, size: float) -> None:
    weight = _weights(seed, columns, size)
    once = grid.nearest(weight)
    assert grid.holds(once) and torch.isfinite(once).all()
    assert grid.holds(weight) == torch.equal(once, weight)
    made = round_to(grid, once.numpy())
    np.testing.assert_array_equal(made.weight(), once.numpy())


@given(st.integers(0, 10_000), st.integers(1, 70), st.sampled_from([0.0, 1e-30, 1e-8, 1e-5, 1e-2, 1.0, 1e3]))
@settings(max_examples=200, deadline=None)
def test_rows_that_lie_on_the_grid_keep_every_bit(seed: int, columns: int, size: float) -> None:
    weight = _weights(seed, columns, size)
    once = Grid.rows(columns).nearest(weight)
    values, scales = per_channel(once.numpy())
    np.testing.assert_array_equal(values * scales[:, None], once.numpy())
    assert values.min() >= -127 and Grid.rows(columns).holds(once)
    exact = weight.abs().amax(1) / 127
    steps = torch.where(exact < 2**-14, 1.01, 0.57)  # a scale has fewer bits among float16's smallest numbers
    assert (once - weight).abs().amax(1).le(exact * steps + 1e-7).all()


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.bits} bits")
@given(st.integers(0, 10_000), st.sampled_from([1e-2, 1.0, 100.0]))
@settings(max_examples=50, deadline=None)
def test_no_block_is_worse_than_with_the_scale_of_its_largest_weight(grid: Grid, seed: int, size: float) -> None:
    weight = _weights(seed, 64, size)
    steps, scale = grid.steps(weight)
    blocks = weight.unflatten(1, steps.shape[1:])
    low = -(1 << (grid.bits - 1))
    assert (low <= steps).all() and (steps < -low).all() and torch.equal(steps, steps.round())
    last = -low if grid.bits < 8 else -low - 1
    plain = (
        blocks.abs().amax(-1) * blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))[..., 0].sign() / -last
    ).half()
    nearest = (blocks / plain.float()[..., None]).round().clamp(low, -low - 1) * plain.float()[..., None]
    error = (steps * scale[..., None] - blocks).square().sum(-1)
    normal = plain.abs() > 2.0**-14  # of fewer bits, scales follow another rule
    assert (error <= (nearest - blocks).square().sum(-1) * 1.001)[normal].all()


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_a_grid_is_that_of_its_variant(name: str) -> None:
    variant = next(variant for variant in VARIANTS if variant.name == name)
    grid = Grid.of(variant)
    assert (grid.bits, grid.sizes) == (variant.bits, variant.blocks)
    weight = _weights(0, 64, 0.1)
    made = round_to(grid, weight.numpy())
    assert made.nbytes == pytest.approx(weight.numel() * grid.bytes_per_weight)


@pytest.mark.parametrize("grid", [Grid(4, (32, 16)), Grid(2, (32, 16))], ids=lambda grid: f"{grid.bits} bits")
@given(st.integers(0, 10_000), st.sampled_from([16, 48, 64, 96]), st.sampled_from([0.0, 1e-30, 1e-8, 1e-2, 1.0, 1e3]))
@settings(max_examples=100, deadline=None)
def test_rounding_with_compensated_errors_stays_on_the_grid(grid: Grid, seed: int, columns: int, size: float) -> None:
    weight = _weights(seed, columns, size)
    assert grid.holds(grid.compensated(weight, _moments(seed, columns)))


def test_compensated_errors_matter_less_to_the_outputs() -> None:
    grid, weight, moments = Grid(4, (32,)), _weights(0, 96, 1.0), _moments(0, 96)
    nearest, compensated = grid.nearest(weight) - weight, grid.compensated(weight, moments) - weight
    squares = [((error @ moments) * error).sum().item() for error in (nearest, compensated)]
    assert squares[1] < 0.8 * squares[0]


def _moments(seed: int, columns: int) -> torch.Tensor:
    """Of inputs that are correlated."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(200, 8, generator=generator) @ torch.randn(8, columns, generator=generator)
    inputs += 0.3 * torch.randn(200, columns, generator=generator)
    return inputs.T @ inputs / 200
