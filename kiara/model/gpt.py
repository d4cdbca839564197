"""The model; `kiara.model.block` has its parts.

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
from kiara.model import ops, rotary
from kiara.model.block import Block, Linear, Norm, Ropes
from kiara.model.head_loss import head_loss
from kiara.model.ops import KeyValue, Lengths, Packed


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
        cos, sin = rotary.rope_tables(self.config, sliding=self.config.all_slide)
        if len({layer.sliding for layer in self.layers}) == 1:
            return {"cos": cos, "sin": sin}
        sliding_cos, sliding_sin = rotary.rope_tables(self.config, sliding=True)
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
        normed, present = self.hidden_states(ids_BS, past, lengths)
        return self.logits(normed, lengths), present

    def hidden_states(
        self, ids_BS: Tensor, past: Sequence[KeyValue] | None = None, lengths: Lengths | Packed | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """The output of the last norm (B, S, D), and the KV cache after these tokens; arguments as of `forward`."""
        x_BSD, delta_BSD, present = self._through_layers(ids_BS, past, lengths)
        return self.norm(x_BSD, delta_BSD)[0], present

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

    def logits(self, normed: Tensor, lengths: Lengths | Packed | None = None) -> Tensor:
        """Logits (B, S, V) from the hidden states (B, S, D); in a traced graph, of the wanted positions only."""
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
        normed, _ = self.hidden_states(ids_BS, None, packed)
        if self.config.logit_softcap is not None or self.config.head_bias:
            return F.cross_entropy(self.logits(normed).flatten(0, 1).float(), targets_BS.flatten())
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
