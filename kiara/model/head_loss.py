"""Cross-entropy of the LM head, computed for some tokens at a time.

Logits are by far the largest activation of a small model. Here those of a few hundred tokens become their gradient in
place, while they lie in the cache; those of targets that do not count are never computed. Own code and not PyTorch's
`linear_cross_entropy`, which came with 2.13 and computes them.

Shape letters: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kiara.data import IGNORED

CHUNK = 512  # tokens at a time


def head_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the logits x W^T, of the targets that count; 0 if none does.

    Products are computed in autocast's type, the rest in float32. It can be differentiated once.
    """
    device = x_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype
    wanted = torch.is_grad_enabled()
    needs = [wanted and tensor.requires_grad for tensor in (x_ND, weight_VD)]
    return _head_loss(x_ND, weight_VD, targets_N, dtype, *needs)[0]


# Opaque to torch.compile, which would hold all logits.
@torch.library.custom_op("kiara::head_loss", mutates_args=())
def _head_loss(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype, needs_x: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-> the loss and its gradients with respect to x and W; those that are not needed are empty."""
    with torch.autocast(x_ND.device.type, enabled=False):
        counted = (targets_N != IGNORED).nonzero().squeeze(1)
        table = weight_VD.to(dtype)
        loss = x_ND.new_zeros((), dtype=torch.float32)
        d_x, d_weight = _zeros(x_ND, needs_x), _zeros(weight_VD, needs_weight)
        for chunk in counted.split(CHUNK):
            rows, targets = x_ND[chunk].to(dtype), targets_N[chunk, None]
            log_probabilities = F.log_softmax((rows @ table.T).float(), dim=-1)
            loss -= log_probabilities.gather(1, targets).sum()
            if needs_x or needs_weight:
                gradient = log_probabilities.exp_()
                gradient.scatter_add_(1, targets, gradient.new_full(targets.shape, -1.0))
                gradient = gradient.div_(len(counted)).to(dtype)
                if needs_x:
                    d_x[chunk] = (gradient @ table).to(d_x.dtype)
                if needs_weight:
                    d_weight += gradient.T @ rows
    return loss / max(len(counted), 1), d_x, d_weight


def _zeros(tensor: Tensor, needed: bool) -> Tensor:
    return torch.zeros_like(tensor) if needed else tensor.new_empty(0)


@_head_loss.register_fake
def _(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype, needs_x: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x_ND.new_empty((), dtype=torch.float32), _zeros(x_ND, needs_x), _zeros(weight_VD, needs_weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.needs = inputs[-2:]
    ctx.save_for_backward(*(gradient.detach() for gradient in output[1:]))


def _scaled(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    kept = zip(ctx.saved_tensors, ctx.needs, strict=True)
    return *(gradient * slope if needed else None for gradient, needed in kept), None, None, None, None


_head_loss.register_autograd(_scaled, setup_context=_keep)
