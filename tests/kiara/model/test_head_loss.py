"""The chunked loss of the head against PyTorch's cross-entropy of all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kiara.data.chat_split import IGNORED
from kiara.model import head_loss as module
from kiara.model.head_loss import head_loss


def _case(tokens: int, ignored: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 24, generator=generator).requires_grad_()
    weight = torch.randn(97, 24, generator=generator).mul_(0.3).requires_grad_()
    targets = torch.randint(0, 97, (tokens,), generator=generator)
    return x, weight, torch.where(torch.rand(tokens, generator=generator) < ignored, IGNORED, targets)


def _gradients(loss: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(3 * loss, [tensor for tensor in (x, weight) if tensor.requires_grad])


@pytest.mark.parametrize(("tokens", "ignored"), [(1, 0.0), (7, 0.0), (8, 0.5), (50, 0.9), (64, 0.0)])
def test_loss_and_gradients_are_those_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, tokens: int, ignored: float
) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    x, weight, targets = _case(tokens, ignored)
    loss, expected = head_loss(x, weight, targets), F.cross_entropy(x @ weight.T, targets)
    torch.testing.assert_close(loss, expected)
    found, oracle = _gradients(loss, x, weight), _gradients(expected, x, weight)
    torch.testing.assert_close(found, oracle, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("frozen", ["weight", "x"])
def test_only_the_wanted_gradients_are_computed(frozen: str) -> None:
    x, weight, targets = _case(20, 0.2)
    (weight if frozen == "weight" else x).requires_grad_(False)
    loss, expected = head_loss(x, weight, targets), F.cross_entropy(x @ weight.T, targets)
    torch.testing.assert_close(_gradients(loss, x, weight), _gradients(expected, x, weight), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert not head_loss(x, weight, targets).requires_grad


def test_without_a_target_that_counts_the_loss_and_its_gradients_are_zero() -> None:
    x, weight, targets = _case(5, 1.1)
    loss = head_loss(x, weight, targets)
    assert loss == 0 and not any(gradient.any() for gradient in _gradients(loss, x, weight))


def test_autocast_has_products_in_its_type_and_sums_in_float32() -> None:
    x, weight, targets = _case(40, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = head_loss(x, weight, targets), F.cross_entropy((x @ weight.T).float(), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    found, oracle = _gradients(loss, x, weight), _gradients(expected, x, weight)
    assert all(gradient.dtype == torch.float32 for gradient in found)
    torch.testing.assert_close(found, oracle, rtol=0.03, atol=0.003)


def test_compiled_it_is_the_same_in_one_graph() -> None:
    x, weight, targets = _case(30, 0.3)
    compiled = torch.compile(head_loss, backend="aot_eager", fullgraph=True)
    loss, expected = compiled(x, weight, targets), head_loss(x, weight, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(_gradients(loss, x, weight), _gradients(expected, x, weight))
