"""The parts of a decoder: linear layer, norms, attention, MLPs, and the block that they form.

Shape letters as in `kiara.model.ops`: B batch, S new tokens, D hidden size, E head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kiara.config import ModelConfig
from kiara.model import ops
from kiara.model.ops import AttentionForm, KeyValue, Lengths, Packed
from kiara.model.wiring import Projection, norms, projections

Ropes = tuple[KeyValue | None, KeyValue | None]  # rotary tables of full layers, and of sliding ones; None: no rotation


class Linear(nn.Linear):
    """rounded: whether inputs are rounded to 8 bits, as the graph of int8-dynamic does it."""

    rounded = False

    @classmethod
    def of(cls, wired: Projection) -> Linear:
        return cls(wired.inputs, wired.outputs, bias=wired.bias)

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(ops.round_rows(input) if self.rounded else input, self.weight, self.bias)


class Norm(nn.Module):
    """Add the previous sublayer's output to the residual stream, then normalise the sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.hidden_size)) if config.norm == "layer" else None
        self.eps = config.norm_eps

    def forward(self, x_BSD: Tensor, delta_BSD: Tensor | None) -> tuple[Tensor, Tensor]:
        """-> (normalised stream, stream), both (B, S, D)."""
        if self.bias is None:
            if delta_BSD is None:
                return ops.rms_norm(x_BSD, self.weight, self.eps), x_BSD
            return ops.skip_rms_norm(x_BSD, delta_BSD, self.weight, self.eps)
        if delta_BSD is None:
            return ops.layer_norm(x_BSD, self.weight, self.bias, self.eps), x_BSD
        return ops.skip_layer_norm(x_BSD, delta_BSD, self.weight, self.bias, self.eps)


class HeadNorm(nn.Module):
    """RMS norm of each head separately, one weight shared by all heads (Qwen3), or of all heads together (OLMo 2)."""

    def __init__(self, config: ModelConfig, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.head_dim * (heads if config.qk_norm_width == "all" else 1)))
        self.eps = config.norm_eps

    def forward(self, x_BSE: Tensor) -> Tensor:
        """(B, S, heads * E) -> the same."""
        heads = x_BSE.unflatten(-1, (-1, self.weight.shape[0]))
        return ops.rms_norm(heads, self.weight, self.eps).flatten(-2)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, sliding: bool) -> None:
        super().__init__()
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        window = config.sliding_window if sliding else None
        self.form = AttentionForm(heads, kv_heads, config.attention_scale, config.attention_softcap, window)
        wired = projections(config)
        self.widths = [rows for _, rows in wired["self_attn.qkv_proj"].parts]
        self.qkv_proj = Linear.of(wired["self_attn.qkv_proj"])
        self.o_proj = Linear.of(wired["self_attn.o_proj"])
        self.q_norm = HeadNorm(config, heads) if config.qk_norm else None
        self.k_norm = HeadNorm(config, kv_heads) if config.qk_norm else None

    def forward(
        self, x_BSD: Tensor, rope: KeyValue | None, past: KeyValue | None, lengths: Lengths | Packed | None
    ) -> tuple[Tensor, KeyValue]:
        q, k, v = self.qkv_proj(x_BSD), None, None
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = q.split(self.widths, dim=-1)
            q, k = self.q_norm(q), self.k_norm(k)
        mixed, present = ops.attention(q, k, v, self.form, rope, past, lengths)
        return self.o_proj(mixed), present


class MLP(nn.Module):
    """Ungated MLP: squared ReLU (So et al. 2021), at small sizes as good as SwiGLU with one matrix fewer, or GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind, wired = config.mlp, projections(config)
        self.up_proj, self.down_proj = Linear.of(wired["mlp.up_proj"]), Linear.of(wired["mlp.down_proj"])

    def forward(self, x_BSD: Tensor) -> Tensor:
        up = self.up_proj(x_BSD)
        if self.kind == "relu2":
            return self.down_proj(F.relu(up).square())
        return self.down_proj(F.gelu(up, approximate="tanh" if self.kind == "gelu" else "none"))


class GatedMLP(nn.Module):
    """SwiGLU, or GeGLU with GELU in its tanh form (Shazeer 2020), gate and up projection packed in one matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gelu, wired = config.mlp == "geglu", projections(config)
        self.gate_up_proj, self.down_proj = Linear.of(wired["mlp.gate_up_proj"]), Linear.of(wired["mlp.down_proj"])

    def forward(self, x_BSD: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x_BSD).chunk(2, dim=-1)
        return self.down_proj((F.gelu(gate, approximate="tanh") if self.gelu else ops.silu(gate)) * up)


class Block(nn.Module):
    """Transformer block. Keeps the residual stream and the last sublayer's output apart, to let add and norm fuse.

    The norms before the sublayers have Llama's names, and those after them names of their own; which of them exist
    depends on the configuration.
    """

    def __init__(self, config: ModelConfig, sliding: bool) -> None:
        super().__init__()
        self.sliding, self.parallel, self.scale = sliding, config.parallel != "none", config.residual_scale
        made = {name: Norm(config) for name in norms(config)}
        self.input_layernorm = made.get("input_layernorm")
        self.self_attn = Attention(config, sliding)
        self.attention_output_norm = made.get("attention_output_norm")
        self.post_attention_layernorm = made.get("post_attention_layernorm")
        self.mlp = GatedMLP(config) if config.mlp in ("swiglu", "geglu") else MLP(config)
        self.mlp_output_norm = made.get("mlp_output_norm")

    def forward(
        self,
        x_BSD: Tensor,
        delta_BSD: Tensor | None,
        ropes: Ropes,
        past: KeyValue | None,
        lengths: Lengths | Packed | None,
    ) -> tuple[Tensor, Tensor, KeyValue]:
        normed, x_BSD = _entered(self.input_layernorm, x_BSD, delta_BSD)
        mixed, present = self.self_attn(normed, ropes[self.sliding], past, lengths)
        if self.parallel:
            if self.post_attention_layernorm is not None:
                normed, _ = self.post_attention_layernorm(x_BSD, None)
            return x_BSD, mixed + self.mlp(normed), present
        normed, x_BSD = _entered(self.post_attention_layernorm, x_BSD, self._left(self.attention_output_norm, mixed))
        return x_BSD, self._left(self.mlp_output_norm, self.mlp(normed)), present

    def _left(self, norm: Norm | None, output_BSD: Tensor) -> Tensor:
        """A sublayer's output as it is added to the stream."""
        if norm is not None:
            output_BSD, _ = norm(output_BSD, None)
        return output_BSD if self.scale == 1 else output_BSD * self.scale


def _entered(norm: Norm | None, x_BSD: Tensor, delta_BSD: Tensor | None) -> tuple[Tensor, Tensor]:
    """-> (what a sublayer reads, stream with delta added)."""
    if norm is not None:
        return norm(x_BSD, delta_BSD)
    x_BSD = x_BSD if delta_BSD is None else x_BSD + delta_BSD
    return x_BSD, x_BSD
