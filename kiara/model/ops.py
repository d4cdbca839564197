"""Fused operations, each with a PyTorch body and an ONNX Runtime operator.

Training and the PyTorch reference run the eager PyTorch body. While the exporter traces the model (inside
`emitting_operators`), the function emits the operator instead. The exported graph is thus traced from the module that
was trained; there is no second model definition. `kiara_export.proof.verify` compares the two.

Shape letters: B batch, S new tokens, P cached tokens, T = P + S, D hidden size, H query heads,
K key/value heads, E head size, C context length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kiara.model.rotary import apply_rope

KeyValue = tuple[Tensor, Tensor]
BLOCKS, SMALLEST_BLOCK = 8, 32  # of queries, on a CPU
MOST_SCORES = 1 << 24  # of a layer in blocks; training keeps half of them, in about 6 bytes each
_emitting = False


@contextmanager
def emitting_operators() -> Iterator[None]:
    """Until the block ends, the functions of this module emit ONNX Runtime's operators.

    Not `torch.compiler.is_exporting`: up to PyTorch 2.11 that is also true while torch.compile traces (pytorch issue
    176347), and a compiled model would be trained on the operators' placeholder, zeros.
    """
    global _emitting
    _emitting = True
    try:
        yield
    finally:
        _emitting = False


@dataclass(frozen=True)
class Lengths:
    """Lengths that the graph takes as inputs of a forward pass; the eager bodies read them from the shapes.

    last: int32 (B,), index of each sequence's last token (`seqlens_k` of GroupQueryAttention).
    total: int32 scalar, cached plus new tokens of the longest sequence.
    wanted: int64 (1,), the first of the S positions whose logits are wanted: 0, or -1 for the last one only.
    """

    last: Tensor
    total: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class Packed:
    """Several texts in the rows of a training batch, none of which sees another.

    positions: int64 (B, S), of each token in its text. mask: bool (B, 1, S, S), which tokens (last axis) each one sees.
    """

    positions: Tensor
    mask: Tensor

    @classmethod
    def of(cls, segments_BS: Tensor) -> Packed:
        """segments: the number of each token's text, int64; a text's tokens are neighbours."""
        index = torch.arange(segments_BS.shape[1], device=segments_BS.device)
        begins = F.pad(segments_BS[:, 1:] != segments_BS[:, :-1], (1, 0), value=True)
        positions = index - torch.where(begins, index, 0).cummax(dim=1).values
        same = segments_BS[:, :, None] == segments_BS[:, None, :]
        return cls(positions, (same & (index[:, None] >= index))[:, None])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b. x (B, S, in), weight (out, in), bias (out,) -> (B, S, out).

    Traced as the placeholder kiara::Linear, which `kiara_export.graph.lower` replaces by each variant's operator.
    """
    if not _emitting:
        return F.linear(x, weight, bias)
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return torch.onnx.ops.symbolic("kiara::Linear", inputs, dtype=x.dtype, shape=(*x.shape[:-1], weight.shape[0]))


def round_rows(x: Tensor) -> Tensor:
    """Each row rounded to 127ths of its largest absolute value; its gradient is that of x. x (..., in) -> the same."""
    peak = x.detach().float().abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    rounded = (x.detach().float() / peak * 127).round() * (peak / 127)
    return x + (rounded.to(x.dtype) - x).detach()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last axis (Zhang and Sennrich 2019). x (B, S, D) -> (B, S, D)."""
    if not _emitting:
        return F.rms_norm(x, weight.shape, weight, eps)
    return torch.onnx.ops.symbolic(
        "com.microsoft::SimplifiedLayerNormalization",
        (x, weight),
        {"axis": -1, "epsilon": eps, "stash_type": 1},
        dtype=x.dtype,
        shape=x.shape,
    )


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last axis (Ba et al. 2016), a standard ONNX operator. x (B, S, D) -> (B, S, D)."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def skip_rms_norm(x: Tensor, skip: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add, then norm: (rms_norm(x + skip), x + skip), both (B, S, D)."""
    if not _emitting:
        total = x + skip
        return rms_norm(total, weight, eps), total
    # The schema has four outputs and the exporter needs all of them; a later graph pass removes the middle two.
    normed, _, _, total = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::SkipSimplifiedLayerNormalization",
        (x, skip, weight),
        {"epsilon": eps},
        dtypes=(x.dtype,) * 4,
        shapes=(x.shape, x.shape[:-1], x.shape[:-1], x.shape),
    )
    return normed, total


def skip_layer_norm(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add, then norm: (layer_norm(x + skip), x + skip), both (B, S, D)."""
    if not _emitting:
        total = x + skip
        return layer_norm(total, weight, bias, eps), total
    normed, _, _, total = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::SkipLayerNormalization",
        (x, skip, weight, bias),
        {"epsilon": eps},
        dtypes=(x.dtype,) * 4,
        shapes=(x.shape, x.shape[:-1], x.shape[:-1], x.shape),
    )
    return normed, total


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x) (Elfwing et al. 2017). Exported as com.microsoft QuickGelu, x * sigmoid(alpha * x)."""
    if not _emitting:
        return F.silu(x)
    return torch.onnx.ops.symbolic("com.microsoft::QuickGelu", (x,), {"alpha": 1.0}, dtype=x.dtype, shape=x.shape)


def wanted_positions(x: Tensor, lengths: Lengths | Packed | None) -> Tensor:
    """Keep the positions whose logits are wanted, x (B, S, D) -> (B, 1 or S, D); the eager body keeps all.

    Prefill needs only the logits of the last token, and the LM head is a fifth of its work.
    """
    if not _emitting:
        return x
    assert isinstance(lengths, Lengths), "the exported graph always has lengths"
    end, axis = torch.tensor([torch.iinfo(torch.int64).max]), torch.tensor([1])
    return torch.onnx.ops.symbolic("Slice", (x, lengths.wanted, end, axis), dtype=x.dtype, shape=x.shape)


@dataclass(frozen=True)
class AttentionForm:
    """heads, kv_heads: of queries, and of keys and values. scale: of the scores; None is 1 / sqrt(E).

    softcap: scores s become cap * tanh(s / cap). window: tokens that each one sees, including itself.
    """

    heads: int
    kv_heads: int
    scale: float | None = None
    softcap: float | None = None
    window: int | None = None

    @property
    def attributes(self) -> dict[str, int | float]:
        """Those of com.microsoft GroupQueryAttention that differ from its defaults."""
        given: dict[str, int | float | None] = {"scale": self.scale, "softcap": self.softcap}
        given["local_window_size"] = self.window
        shape = {"num_heads": self.heads, "kv_num_heads": self.kv_heads}
        return shape | {name: value for name, value in given.items() if value is not None}


def attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    form: AttentionForm,
    rope: KeyValue | None,
    past: KeyValue | None,
    lengths: Lengths | Packed | None,
) -> tuple[Tensor, KeyValue]:
    """Causal grouped-query attention over a KV cache, with rotary positions if `rope` is given.

    q: (B, S, (H + 2 K) * E), the three projections packed, with k and v None; or (B, S, H * E), with k and v
    (B, S, K * E). rope: cosines and sines (C, R / 2). past: keys and values (B, K, P, E), already rotated, or
    None. Returns the attention output (B, S, H * E) and the cache with the new tokens appended, (B, K, T, E) each.

    The eager body needs sequences of equal length, or packed ones; only the operator handles padded batches.
    Exported as com.microsoft GroupQueryAttention.
    """
    batch, new, width = q.shape
    heads, kv_heads = form.heads, form.kv_heads
    size = width // (heads if k is not None else heads + 2 * kv_heads)
    if not _emitting:
        packed = q if k is None or v is None else torch.cat((q, k, v), dim=-1)
        layout = lengths if isinstance(lengths, Packed) else None
        return _eager_attention(packed, form, size, rope, past, layout)
    assert past is not None and isinstance(lengths, Lengths), "the exported graph always has a cache"
    cached = (batch, kv_heads, past[0].shape[2] + new, size)
    mixed, keys, values = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (q, k, v, *past, lengths.last, lengths.total, *(rope or ())),
        {**form.attributes, "do_rotary": int(rope is not None)},
        dtypes=(q.dtype,) * 3,
        shapes=((batch, new, heads * size), cached, cached),
    )
    return mixed, (keys, values)


def _eager_attention(
    qkv: Tensor,
    form: AttentionForm,
    size: int,
    rope: KeyValue | None,
    past: KeyValue | None,
    layout: Packed | None,
) -> tuple[Tensor, KeyValue]:
    batch, new, _ = qkv.shape
    start = 0 if past is None else past[0].shape[2]
    parts = (form.heads, form.kv_heads, form.kv_heads)
    q, k, v = qkv.view(batch, new, -1, size).transpose(1, 2).split(parts, dim=1)
    if rope is not None:
        here = slice(start, start + new) if layout is None else layout.positions
        cos, sin = (table[here] if layout is None else table[here][:, None] for table in rope)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
    if past is not None:
        k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
    mixed = _mixed(q, k, v, _mask(q, k, form, layout), form)
    return mixed.transpose(1, 2).reshape(batch, new, form.heads * size), (k, v)


def _mask(q: Tensor, k: Tensor, form: AttentionForm, layout: Packed | None) -> Tensor | None:
    """Which keys each query sees, bool (..., S, T); None if it is all up to the query's own."""
    new, total = q.shape[2], k.shape[2]
    start, window = total - new, form.window or total
    if layout is None and start == 0 and window >= total and form.softcap is None:
        return None
    every = torch.ones(new, total, dtype=torch.bool, device=q.device)
    seen = every.tril(start) if layout is None else layout.mask  # query i is at position start + i
    # The tokens of a packed text are neighbours, so that a window can be counted in indices.
    return seen & every.triu(start - window + 1) if window < total else seen


def _mixed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, form: AttentionForm) -> Tensor:
    few = q.shape[:3].numel() * k.shape[2] <= MOST_SCORES
    if mask is None and form.softcap is None and q.device.type == "cpu" and few:
        return _in_blocks(q, k, v, form.scale or q.shape[-1] ** -0.5)
    if form.softcap is None:
        grouped = form.heads != form.kv_heads
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, scale=form.scale, enable_gqa=grouped
        )
    k, v = (part.repeat_interleave(form.heads // form.kv_heads, dim=1) for part in (k, v))
    scores = q @ k.transpose(-1, -2) * (form.scale or q.shape[-1] ** -0.5)
    scores = form.softcap * (scores / form.softcap).tanh()
    assert mask is not None
    return scores.masked_fill(~mask, -math.inf).softmax(-1, dtype=torch.float32).type_as(v) @ v


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention of some queries at a time, each block with the keys that it sees.

    On a CPU PyTorch's own kernel takes twice as long, forward and backward, at 256 to 1,024 tokens in bfloat16. It
    keeps no scores, so long sequences still use it.
    """
    batch, heads, new, size = q.shape
    rows = max(SMALLEST_BLOCK, -(-new // BLOCKS))
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    mixed: list[Tensor] = []
    for start in range(0, new, rows):
        block = q[:, :, start : start + rows]
        stop = start + block.shape[2]
        hidden = torch.full((stop - start, stop), -math.inf, device=q.device).triu(start + 1)
        scores = block.reshape(len(k), -1, size) @ k[:, :stop].transpose(-1, -2)
        scores = scores.view(len(k), -1, stop - start, stop).float() * scale + hidden
        weights = scores.softmax(-1).type_as(v).flatten(1, 2)
        mixed.append((weights @ v[:, :stop]).view(batch, heads, stop - start, size))
    return torch.cat(mixed, dim=2)
