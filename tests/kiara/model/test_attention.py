"""Attention of queries in blocks, as a CPU computes it, against PyTorch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kiara.model.ops import AttentionForm, attention


@settings(max_examples=25, deadline=None)
@given(
    new=st.integers(1, 300),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 3), (6, 2)]),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_equal_those_of_pytorch(
    new: int, heads: tuple[int, int], scale: float | None, seed: int
) -> None:
    size, (queries, shared) = 16, heads
    made = torch.Generator().manual_seed(seed)
    qkv = torch.randn(2, new, (queries + 2 * shared) * size, generator=made).requires_grad_()
    slope = torch.randn(2, new, queries * size, generator=made)

    found, _ = attention(qkv, None, None, AttentionForm(queries, shared, scale), None, None, None)
    (gradient,) = torch.autograd.grad(found, qkv, slope)
    q, k, v = qkv.view(2, new, -1, size).transpose(1, 2).split((queries, shared, shared), dim=1)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    expected = mixed.transpose(1, 2).flatten(2)

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, qkv, slope)[0], rtol=1e-4, atol=1e-5)
