"""The model: norm, attention, MLP, block, GPT, in that order.

One decoder whose configuration covers the small families (GPT-2, Llama, Qwen, Arcee and similar ones), so that
importing a model needs no new code. The default is the Arcee shape: RMS norm before each sublayer, rotary positions,
grouped-query attention, squared ReLU, no biases, embedding and LM head tied. Training and text handling are elsewhere;
`kiara.families.registry` maps the weight names of other families.

Shape letters as in `kiara.model.ops`: B batch, S new tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kiara.config import ModelConfig
from kiara.model import ops
from kiara.model.head_loss import head_loss
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
        self.sliding, self.parallel, self.scale = sliding, config.parallel != "no", config.residual_scale
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


class GPT(nn.Module):
    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.recompute = False  # activations of a layer in the backward pass, to hold fewer of them
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        learned = config.position == "learned"
        self.embed_positions = nn.Embedding(config.context_length, config.hidden_size) if learned else None
        self.layers = nn.ModuleList(Block(config, config.slides(i)) for i in range(config.num_hidden_layers))
        self.norm = Norm(config)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(config.hidden_size, vocab_size, bias=config.head_bias)
        self.cos: Tensor
        self.sin: Tensor
        self.sliding_cos: Tensor
        self.sliding_sin: Tensor
        for name, table in self._tables().items():
            self.register_buffer(name, table, persistent=False)

    def _tables(self) -> dict[str, Tensor]:
        """The rotary tables: cos and sin, and if the model has both kinds of layers, those of sliding ones."""
        kinds = {self.config.slides(i) for i in range(self.config.num_hidden_layers)}
        cos, sin = ops.rope_tables(self.config, sliding=kinds == {True})
        if len(kinds) == 1:
            return {"cos": cos, "sin": sin}
        sliding_cos, sliding_sin = ops.rope_tables(self.config, sliding=True)
        return {"cos": cos, "sin": sin, "sliding_cos": sliding_cos, "sliding_sin": sliding_sin}

    def make_tables(self, device: torch.device | None = None) -> None:
        """Compute the rotary tables, which no checkpoint holds, in a model that was made without memory."""
        for name, table in self._tables().items():
            setattr(self, name, table.to(device))

    @property
    def ropes(self) -> Ropes:
        """The tables of full layers, and of sliding ones."""
        if self.config.position == "learned":
            return None, None
        if self.config.layer_types is None:
            return (self.cos, self.sin), (self.cos, self.sin)
        sliding = (self.sliding_cos, self.sliding_sin) if hasattr(self, "sliding_cos") else (self.cos, self.sin)
        return (self.cos, self.sin) if self.config.full_attention_rope else None, sliding

    def forward(
        self, ids_BS: Tensor, past: Sequence[KeyValue] | None = None, lengths: Lengths | Packed | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Next-token logits (B, S, V) and the KV cache after these tokens, a pair per layer.

        ids_BS: int64 token ids. past: the KV cache so far, or None at the start of a sequence.
        """
        x_BSD, delta_BSD, present = self._through_layers(ids_BS, past, lengths)
        return self.head(x_BSD, delta_BSD, lengths), present

    def _through_layers(
        self, ids_BS: Tensor, past: Sequence[KeyValue] | None, lengths: Lengths | Packed | None
    ) -> tuple[Tensor, Tensor | None, list[KeyValue]]:
        """-> (stream, last sublayer's output), both (B, S, D), and the KV cache."""
        (x_BSD, ropes), delta_BSD, present = self.embed(ids_BS, past, lengths), None, []
        for i, layer in enumerate(self.layers):
            run = partial(checkpoint, layer, use_reentrant=False) if self.recompute and self.training else layer
            x_BSD, delta_BSD, layer_present = run(x_BSD, delta_BSD, ropes, past[i] if past else None, lengths)
            present.append(layer_present)
        return x_BSD, delta_BSD, present

    def predict(self, ids_BS: Tensor, segments_BS: Tensor | None = None) -> Tensor:
        """Logits of whole sequences, (B, S, V). segments_BS: the number of each token's text, of several in a row."""
        return self(ids_BS, lengths=None if segments_BS is None else Packed.of(segments_BS))[0]

    def head(self, x_BSD: Tensor, delta_BSD: Tensor | None, lengths: Lengths | Packed | None = None) -> Tensor:
        """Logits from the output of the last layer, (B, S, V)."""
        normed, _ = self.norm(x_BSD, delta_BSD)
        bias = None if self.lm_head is None else self.lm_head.bias
        logits = ops.linear(self._scaled(ops.wanted_positions(normed, lengths)), self._head_table(), bias)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * (logits / cap).tanh()

    def _head_table(self) -> Tensor:
        """The LM head's weight, (V, D)."""
        return (self.embed_tokens if self.lm_head is None else self.lm_head).weight

    def _scaled(self, normed_BSD: Tensor) -> Tensor:
        """What the LM head reads."""
        return normed_BSD if self.config.logit_scale == 1 else normed_BSD * self.config.logit_scale

    def embed(
        self, ids_BS: Tensor, past: Sequence[KeyValue] | None = None, lengths: Lengths | Packed | None = None
    ) -> tuple[Tensor, Ropes]:
        """Input of the first layer (B, S, D), and the rotary tables."""
        x_BSD = self.embed_tokens(ids_BS)
        if self.config.embedding_scale != 1:
            x_BSD = x_BSD * self.config.embedding_scale
        if self.embed_positions is not None:
            x_BSD = x_BSD + self._positions(ids_BS, past, lengths)
        return x_BSD, self.ropes

    def _positions(self, ids_BS: Tensor, past: Sequence[KeyValue] | None, lengths: Lengths | Packed | None) -> Tensor:
        """Rows of the learned table for the new tokens, (1 or B, S, D).

        In an exported graph, cache buffers can be longer than the cached tokens, so positions come from `lengths`.
        In a padded prompt they count from 0 in every row.
        """
        assert self.embed_positions is not None
        if isinstance(lengths, Packed):
            return self.embed_positions(lengths.positions)
        new = torch.arange(ids_BS.shape[1], device=ids_BS.device)
        if lengths is None:
            return self.embed_positions(new + (past[0][0].shape[2] if past else 0))[None]
        start_B = (lengths.last.to(torch.int64) + 1 - ids_BS.shape[1]).clamp(min=0)
        return self.embed_positions(start_B[:, None] + new)

    def matrices(self) -> dict[str, nn.Parameter]:
        """What a variant in blocks rounds, by name: the projections, the embedding, the LM head; no positions."""
        named = [(name, weight) for name, weight in self.named_parameters() if name.endswith("weight")]
        return {name: weight for name, weight in named if weight.dim() == 2 and not name.startswith("embed_positions")}

    def loss(self, ids_BS: Tensor, targets_BS: Tensor, segments_BS: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats per token, computed in float32. A target of -100 does not count.

        segments_BS: the number of each token's text, of several in a row; None if a row is one text.
        """
        packed = None if segments_BS is None else Packed.of(segments_BS)
        x_BSD, delta_BSD, _ = self._through_layers(ids_BS, None, packed)
        if self.config.logit_softcap is not None or self.config.head_bias:
            logits = self.head(x_BSD, delta_BSD)
            return F.cross_entropy(logits.flatten(0, 1).float(), targets_BS.flatten())
        normed, _ = self.norm(x_BSD, delta_BSD)
        return head_loss(self._scaled(normed).flatten(0, 1), self._head_table(), targets_BS.flatten())

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Initialise all parameters.

        | parameter        | value                    | why                                             |
        |------------------|--------------------------|-------------------------------------------------|
        | norms            | 1, their biases 0        | the identity                                    |
        | tables, LM head  | normal, std 0.02         | logits start near 0: the loss at ln(vocabulary) |
        | qkv, gate, up    | uniform, std 1/sqrt(fan) | keeps the variance of a normed input            |
        | o, down, biases  | 0                        | every block starts as the identity (muP)        |
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith(("bias", "o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            elif name.startswith(("embed_", "lm_head")):
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                bound = (3.0 / parameter.shape[1]) ** 0.5
                parameter.uniform_(-bound, bound, generator=generator)
