"""The model: config, norm, attention, MLP, block, GPT, in that order.

A decoder of the Arcee shape: RMS norm before each part, rotary positions, grouped-query attention,
squared ReLU, no biases, embedding and LM head tied. Module names are those of the Hugging Face
classes, so that a checkpoint needs no table of renamings (`kiara.checkpoint` only unpacks q, k, v).
It is deliberately not a training loop and knows nothing of text.

Shape letters as in `kiara.ops`: B batch, S new tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kiara import ops
from kiara.config import ModelConfig
from kiara.ops import KeyValue, Lengths


class RMSNorm(nn.Module):
    """Adds what the last part produced to the residual stream, then norms the sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, x_BSD: Tensor, delta_BSD: Tensor | None) -> tuple[Tensor, Tensor]:
        """-> (norm of the stream, the stream), both (B, S, D)."""
        if delta_BSD is None:
            return ops.rms_norm(x_BSD, self.weight, self.eps), x_BSD
        return ops.skip_rms_norm(x_BSD, delta_BSD, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        packed = (self.heads + 2 * self.kv_heads) * config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, packed, bias=False)
        self.o_proj = nn.Linear(self.heads * config.head_dim, config.hidden_size, bias=False)

    def forward(
        self, x_BSD: Tensor, rope: KeyValue, past: KeyValue | None, lengths: Lengths | None
    ) -> tuple[Tensor, KeyValue]:
        mixed, present = ops.attention(self.qkv_proj(x_BSD), self.heads, self.kv_heads, rope, past, lengths)
        return self.o_proj(mixed), present


class MLP(nn.Module):
    """Squared ReLU (So et al. 2021): as good as a gated unit at these sizes, with one matrix fewer to read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down_proj(F.relu(self.up_proj(x_BSD)).square())


class Block(nn.Module):
    """Carries the residual stream and the last part's output apart, so that add and norm can fuse."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x_BSD: Tensor,
        delta_BSD: Tensor | None,
        rope: KeyValue,
        past: KeyValue | None,
        lengths: Lengths | None,
    ) -> tuple[Tensor, Tensor, KeyValue]:
        normed, x_BSD = self.input_layernorm(x_BSD, delta_BSD)
        delta_BSD, present = self.self_attn(normed, rope, past, lengths)
        normed, x_BSD = self.post_attention_layernorm(x_BSD, delta_BSD)
        return x_BSD, self.mlp(normed), present


class GPT(nn.Module):
    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)
        cos, sin = ops.rope_tables(config.context_length, config.head_dim, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self, ids_BS: Tensor, past: list[KeyValue] | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Next-token logits (B, S, V) and the cache after these tokens, a pair per layer.

        ids_BS: int64 token ids. past: the cache so far, or None at the start of a sequence.
        """
        x_BSD, delta_BSD, present = self.embed_tokens(ids_BS), None, []
        for i, layer in enumerate(self.layers):
            x_BSD, delta_BSD, layer_present = layer(
                x_BSD, delta_BSD, (self.cos, self.sin), past[i] if past else None, lengths
            )
            present.append(layer_present)
        normed, _ = self.norm(x_BSD, delta_BSD)
        return F.linear(normed, self.embed_tokens.weight), present

    def loss(self, ids_BS: Tensor, targets_BS: Tensor) -> Tensor:
        """Mean cross-entropy in nats a token, computed in float32."""
        logits, _ = self(ids_BS)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets_BS.flatten())

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """All initialisation, in one place.

        | parameter        | value                    | why                                             |
        |------------------|--------------------------|-------------------------------------------------|
        | norms            | 1                        | the identity                                    |
        | embedding = head | normal, std 0.02         | logits start near 0: the loss at ln(vocabulary) |
        | qkv, up          | uniform, std 1/sqrt(fan) | keeps the variance of a normed input            |
        | o, down          | 0                        | every block starts as the identity (muP)        |
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            elif name == "embed_tokens.weight":
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                bound = (3.0 / parameter.shape[1]) ** 0.5
                parameter.uniform_(-bound, bound, generator=generator)
