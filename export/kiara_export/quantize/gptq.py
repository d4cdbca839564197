"""4-bit quantisation by GPTQ, which `kiara.compensation` describes, on calibration text.

Layers are quantised in order; each one's inputs come from the quantised layers before it. The scale and zero point of a
block are found by a search, weighted by the inputs' mean squares, before its columns are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from kiara.compensation import adding_moments, compensated
from kiara.data import Split
from kiara.evaluation import windows
from kiara.grid import SMALLEST_SCALE
from kiara.model import GPT, Linear
from kiara_export.quantize.blocks import Blocks, block_size
from kiara_export.quantize.kept import kept, round_int8
from kiara_export.quantize.mixed import Choice

CALIBRATION_TOKENS = 1 << 14
SLOPE_TOKENS, SLOPE_LENGTH = 1 << 11, 256  # a backward pass holds the activations of one window
MAX_LENGTH, ROWS = 512, 8  # tokens of a window, and windows per pass
SHRINKS = torch.linspace(0.7, 1.0, 13)  # of a block's range: clipping its extremes can fit the rest better
TOP = 15  # the largest value of 4 bits


def calibrate_int4(
    model: GPT, split: Split, blocks: tuple[int, ...], costs: bool, advance: Callable[[int], None] = lambda layers: None
) -> dict[str, Choice]:
    """Each matrix of the layers at 4 and at 8 bits, by its name in the traced graph.

    Replaces the weights of `model` by the rounded ones. blocks: block sizes, of which the first that fits is used.
    costs: whether to estimate the loss caused by each matrix, which takes a backward pass. advance: called after each
    layer.
    """
    slopes = output_slopes(model, split) if costs else {}
    with torch.inference_mode():
        return dict(_layer_by_layer(model, split, blocks, slopes, advance))


def _layer_by_layer(
    model: GPT, split: Split, blocks: tuple[int, ...], slopes: dict[str, Tensor], advance: Callable[[int], None]
) -> Iterator[tuple[str, Choice]]:
    length = min(model.config.context_length, MAX_LENGTH)
    batches = list(windows(split, length, CALIBRATION_TOKENS, ROWS))
    streams = [model.embed(batch[:, :-1])[0] for batch in batches]
    deltas: list[Tensor | None] = [None for _ in batches]
    ropes = model.embed(batches[0][:, :-1])[1]
    tokens = sum(stream.shape[0] * stream.shape[1] for stream in streams)
    for i, layer in enumerate(model.layers):
        linears = {name: part for name, part in layer.named_modules() if isinstance(part, Linear)}
        moments = {name: torch.zeros(part.in_features, part.in_features) for name, part in linears.items()}
        hooks = [part.register_forward_pre_hook(adding_moments(moments[name])) for name, part in linears.items()]
        for stream, delta in zip(streams, deltas, strict=True):
            layer(stream, delta, ropes, None, None)
        for hook in hooks:
            hook.remove()
        for name, part in linears.items():
            weight = part.weight.numpy()
            four = kept(weight, 4) or gptq(part.weight, moments[name] / tokens, blocks)
            eight = round_int8(weight)
            error = part.weight - torch.from_numpy(four.weight())
            full = f"model.layers.{i}.{name}.weight"
            slope = slopes.get(full, torch.zeros(error.shape[0]))
            cost = 0.5 * (slope * ((error @ moments[name]) * error).sum(1)).sum().item() / tokens
            part.weight.copy_(torch.from_numpy(four.weight()))
            yield full, Choice(four, eight, cost)
        for j, (stream, delta) in enumerate(zip(streams, deltas, strict=True)):
            streams[j], deltas[j], _ = layer(stream, delta, ropes, None, None)
        advance(1)


def output_slopes(model: GPT, split: Split) -> dict[str, Tensor]:
    """Mean squared gradient of the loss with respect to each output of each matrix of the layers, (out,) each."""
    slopes: dict[str, Tensor] = {}
    hooks = []
    for name, part in model.named_modules():
        if isinstance(part, Linear) and part is not model.lm_head:
            hooks.append(part.register_forward_hook(_watching(slopes, f"model.{name}.weight")))
    length = min(model.config.context_length, SLOPE_LENGTH)
    for batch in windows(split, length, SLOPE_TOKENS, 1):
        model.loss(batch[:, :-1], batch[:, 1:]).backward()
        model.zero_grad(set_to_none=True)
    for hook in hooks:
        hook.remove()
    return slopes


def _watching(slopes: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, Tensor], None]:
    def note(gradient: Tensor) -> None:
        slopes[name] = slopes.get(name, 0) + gradient.flatten(0, 1).square().mean(0)

    def watch(module: nn.Module, inputs: object, output: Tensor) -> None:
        output.register_hook(note)

    return watch


@torch.inference_mode()
def gptq(weight: Tensor, moments: Tensor, blocks: tuple[int, ...]) -> Blocks:
    """4-bit blocks of weight (out, in) for inputs with second moments (in, in)."""
    rows, columns = weight.shape
    size = block_size(columns, blocks)
    grouped = weight.view(rows, -1, size)
    scales, zeros = search_grid(grouped, moments.diagonal().view(-1, size))

    def nearest(values: Tensor, column: int) -> Tensor:
        scale, zero = scales[:, column // size], zeros[:, column // size]
        return ((torch.round(values / scale) + zero).clamp(0, TOP) - zero) * scale

    found = compensated(weight, moments, nearest, size).view(rows, -1, size)
    values = torch.round(found / scales[..., None]) + zeros[..., None]
    return Blocks(
        bits=4,
        values=values.to(torch.uint8).numpy(),
        scales=scales.numpy().astype(np.float16),
        zeros=zeros.numpy().astype(np.uint8),
    )


def search_grid(grouped: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Scales, exact in float16, and integer zero points of each block, (out, blocks) each.

    Tries shrunken ranges and keeps the one with the least weighted rounding error. grouped: (out, blocks, size);
    importance: (blocks, size).
    """
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    best = torch.full_like(low, torch.inf)
    scales, zeros = torch.ones_like(low), torch.zeros_like(low)
    for shrink in SHRINKS:
        step = ((high - low) * shrink / TOP).clamp(min=SMALLEST_SCALE).half().float()
        zero = torch.round(-low * shrink / step).clamp(0, TOP)
        wide, middle = step[..., None], zero[..., None]
        rounded = ((torch.round(grouped / wide) + middle).clamp(0, TOP) - middle) * wide
        error = ((rounded - grouped).square() * importance).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        scales, zeros = torch.where(better, step, scales), torch.where(better, zero, zeros)
    return scales, zeros
