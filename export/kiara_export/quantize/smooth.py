"""Calibration of int8-dynamic: smoothing factors for channels, and the choice of matrices that stay in blocks.

The factors scale activations before they are rounded, and cancel in the weights.

All activations of a token share one scale, so the channel with the largest values sets the error of all others. Channel
j can be divided by s_j where it is produced (a norm's gain, the up projection's row) if column j of the weights that
read it is multiplied by s_j. SmoothQuant (Xiao et al. 2023) does this to balance the largest values on both sides. Here
s is chosen to lower the expected squared error of an output. With one scale per token and one per row of weights this
error is, up to a constant factor,

    max_j (x_j / s_j)^2 * sum_j s_j^2 |w_j|^2  +  max_j (w_j s_j)^2 * sum_j (x_j / s_j)^2,

and close to its minimum where s_j^2 is the size of x_j divided by the size of w_j. With the fourth-power mean (between
the root mean square and the maximum) as the size of x_j and the root mean square as that of w_j, the error is within
5 % of what a gradient search finds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kiara.data import Split
from kiara.evaluation import windows
from kiara.model import GPT, Linear, projections

TOKENS, LENGTH = 1 << 12, 512  # tokens of calibration text, and of a window
COST_TOKENS, COST_LENGTH = 1 << 11, 256  # for costs: a backward pass holds the activations of one window
SHARE = 0.0025  # of the loss: the most that int8 rounding with per-token scales may add, by estimate
LEAST = 0.01  # of the mean size: a channel that is nearly silent on this text may be large on another

Factors = dict[str, list[NDArray[np.float32]]]  # name of a parameter of the traced graph -> factors to multiply it by


def smoothing(model: GPT, split: Split) -> Factors:
    """Smoothing factors for the parameters of `model`, which leave its logits unchanged."""
    sizes: dict[str, Tensor] = {}
    linears = _linears(model)
    hooks = [part.register_forward_hook(_measuring(sizes, name)) for name, part in linears.items()]
    with torch.inference_mode():
        for batch in windows(split, min(model.config.context_length, LENGTH), TOKENS, 1):
            model(batch[:, :-1])
        for hook in hooks:
            hook.remove()
        scales = {name: _scales(sizes[name].pow(0.25), part.weight) for name, part in linears.items()}
        factors: Factors = {}
        for name, factor in _folds(model, scales):
            factors.setdefault(f"model.{name}", []).append(factor.numpy())
    return factors


def costly(model: GPT, split: Split, factors: Factors, share: float = SHARE) -> set[str]:
    """The matrices, by name in the traced graph, for which one scale per token is too coarse even after `factors`.

    The loss that a matrix causes is estimated to second order from one forward and backward pass over the text: half
    the sum of (g e)^2 over the tokens, where e is the error of its outputs and g the gradient of the summed loss there.
    The costliest matrices are selected until the others cost at most `share` of the text's loss.

    Divergence of SmolLM2-135M from float32, relative to its loss, by number of its 120 matrices in blocks:

    | in blocks                     | 0      | 2      | 4      | 6      | 8      | 12     | 16     | all    |
    |-------------------------------|--------|--------|--------|--------|--------|--------|--------|--------|
    | the costliest by estimate     | 0.34 % | 0.31 % | 0.28 % | 0.27 % | 0.26 % | 0.25 % | 0.24 % | 0.15 % |
    | by an output's relative error | 0.34 % | 0.33 % | 0.32 % | 0.30 % | 0.29 % | 0.28 % |        | 0.15 % |

    Every column includes 0.10 % for the embedding and the head. The estimate is about twice the measured loss. SHARE
    keeps 6 in blocks, and the export loses 0.27 % of its bits per byte on 8192 tokens; with none in blocks, 0.35 %.
    """
    costs: dict[str, float] = {}
    hooks, nats = [], 0.0
    for name, part in _linears(model).items():
        columns = [factor for factor in factors.get(f"model.{name}.weight", []) if factor.ndim == 1]
        scale = torch.from_numpy(math.prod(columns, start=np.ones(part.in_features, np.float32)))
        hooks.append(part.register_forward_hook(_costing(costs, f"model.{name}.weight", part, scale)))
    for batch in windows(split, min(model.config.context_length, COST_LENGTH), COST_TOKENS, 1):
        ids, targets = batch[:, :-1], batch[:, 1:]
        loss = model.loss(ids, targets) * targets.numel()  # a sum: a mean would divide the gradients
        loss.backward()
        model.zero_grad(set_to_none=True)
        nats += loss.item()
    for hook in hooks:
        hook.remove()
    left, named = sum(costs.values()), set[str]()
    for name in sorted(costs, key=costs.__getitem__, reverse=True):
        if left <= share * nats:
            break
        named.add(name)
        left -= costs[name]
    return named


def _costing(
    costs: dict[str, float], name: str, part: Linear, scale: Tensor
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A forward hook that sums the estimated loss of rounding a projection. scale (in,): divisor of its inputs."""

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        with torch.no_grad():
            error = F.linear(_rounded(inputs[0] / scale), _rounded(part.weight * scale), part.bias) - output

        def note(gradient: Tensor) -> None:
            costs[name] = costs.get(name, 0.0) + 0.5 * torch.linalg.vecdot(gradient, error).square().sum().item()

        output.register_hook(note)

    return watch


def _rounded(rows: Tensor) -> Tensor:
    """Round each row to 127ths of its largest value, as the graph rounds activations and weights."""
    peak = rows.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    return (rows / peak * 127).round() * peak / 127


def _linears(model: GPT) -> dict[str, Linear]:
    """The projections of the layers; the LM head stays in blocks."""
    return {f"layers.{name}": part for name, part in model.layers.named_modules() if isinstance(part, Linear)}


def _measuring(sizes: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A forward hook that sums the fourth powers of a projection's inputs, divided by the norm of the outputs since
    relative errors count.
    """

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows = inputs[0] / output.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        sizes[name] = sizes.get(name, 0) + rows.flatten(0, -2).pow(4).sum(0)

    return add


def _scales(size: Tensor, weight: Tensor) -> Tensor:
    """s (in,), with geometric mean 1, for inputs of `size` (in,) and weight (out, in)."""
    logs = [
        part.clamp(min=LEAST * part.mean().clamp(min=1e-12)).log() for part in (size, weight.square().mean(0).sqrt())
    ]
    log = (logs[0] - logs[1]) / 2
    return (log - log.mean()).exp()


def _folds(model: GPT, scales: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield parameter names, each with a factor that broadcasts over the parameter."""
    wired = projections(model.config).values()
    for i, layer in enumerate(model.layers):
        at = f"layers.{i}."
        for reader in wired:
            scale = scales[at + reader.name]
            if reader.norm is not None:
                yield f"{at}{reader.name}.weight", scale
                for part, _ in layer.get_submodule(reader.norm).named_parameters():
                    yield f"{at}{reader.norm}.{part}", 1 / scale
            elif reader.through is not None:
                yield f"{at}{reader.name}.weight", scale
                rows = torch.cat([torch.ones_like(scale), 1 / scale]) if reader.through == "gate" else scale.rsqrt()
                yield f"{at}{reader.made_by}.weight", rows[:, None]
                if layer.get_submodule(f"{reader.made_by}").bias is not None:
                    yield f"{at}{reader.made_by}.bias", rows
