"""The shape of a model, one documented field each. Training, import and export all read it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kiara_runtime.errors import UserError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """Shape of the model. To train it, widths must be multiples of 64 and head_dim of 16, for the kernels."""

    hidden_size: int = Field(default=256, ge=2, le=1 << 16)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(default=6, ge=1, le=256)
    """Number of transformer blocks."""
    num_attention_heads: int = Field(default=4, ge=1, le=1024)
    """Query heads per layer."""
    num_key_value_heads: int = Field(default=2, ge=1, le=1024)
    """Key/value heads per layer; fewer than query heads make the KV cache smaller."""
    head_dim: int = Field(default=64, ge=2, le=1024, multiple_of=2)
    """Width of one head."""
    intermediate_size: int = Field(default=1024, ge=1, le=1 << 20)
    """Hidden width of the MLP."""
    context_length: int = Field(default=512, ge=16, le=1 << 20)
    """Context length in tokens, in training and inference."""
    rope_theta: float = Field(default=10000.0, gt=1)
    """Base of the rotary position frequencies."""
    rotary_dim: int | None = Field(default=None, ge=2, le=1024, multiple_of=2)
    """Dimensions of a head that are rotated, from its first; null means all."""
    rope_scaling: Literal["none", "linear", "llama3", "yarn", "longrope"] = "none"
    """RoPE scaling for a context longer than the original one."""
    rope_factor: float = Field(default=1.0, ge=1)
    """Factor by which linear scaling divides all frequencies, and llama3 and yarn the low ones."""
    rope_low_freq_factor: float = Field(default=1.0, gt=0)
    """Frequencies with fewer turns than this in the original context are divided by rope_factor."""
    rope_high_freq_factor: float = Field(default=4.0, gt=0)
    """Frequencies with more turns than this are unchanged; those in between are interpolated."""
    rope_original_context: int = Field(default=8192, ge=1, le=1 << 20)
    """Original context length in tokens, before scaling."""
    rope_beta_fast: float = Field(default=32.0, gt=0)
    """Frequencies with more turns than this in the original context are unchanged by yarn scaling."""
    rope_beta_slow: float = Field(default=1.0, gt=0)
    """Frequencies with fewer turns than this are divided by rope_factor by yarn scaling."""
    rope_attention_factor: float | None = Field(default=None, gt=0)
    """Factor on the rotary tables; null means the formula of YaRN's paper with yarn scaling, else 1."""
    rope_short_factors: tuple[float, ...] | None = Field(default=None, strict=False)
    """What longrope scaling divides each frequency by, within the original context."""
    sliding_window: int | None = Field(default=None, ge=1, le=1 << 20)
    """Tokens that a sliding layer sees, including the current one; null means all."""
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = Field(default=None, strict=False)
    """The kind of each layer; null means that all are sliding layers if sliding_window is set, else full ones."""
    sliding_rope_theta: float | None = Field(default=None, gt=1)
    """Base of the frequencies in sliding layers; null means rope_theta."""
    sliding_rope_scaled: bool = True
    """Whether rope_scaling applies to sliding layers, too."""
    full_attention_rope: bool = True
    """Whether full layers rotate at all, in a model with layer_types."""
    norm: Literal["rms", "layer"] = "rms"
    """rms: root mean square norm; layer: layer norm with biases."""
    norm_position: Literal["before", "after", "both"] = "before"
    """Norms before each sublayer, after it, or both."""
    norm_eps: float = Field(default=1e-5, gt=0, lt=1)
    """Epsilon of the norms, against division by zero."""
    position: Literal["rope", "learned"] = "rope"
    """rope: rotary positions; learned: a learned table added to the embedding."""
    mlp: Literal["relu2", "swiglu", "geglu", "gelu", "gelu_exact"] = "relu2"
    """relu2: squared ReLU; swiglu: gated SiLU; geglu: gated GELU; gelu: GELU in its tanh form; gelu_exact: by erf."""
    parallel: Literal["none", "one_norm", "two_norms"] = "none"
    """Whether attention and MLP of a block are computed side by side, after one norm or one each."""
    attention_bias: bool = False
    """Biases on the query, key and value projections."""
    attention_out_bias: bool = False
    """A bias on the attention's output projection."""
    mlp_bias: bool = False
    """Biases on the MLP's projections."""
    head_bias: bool = False
    """A bias on the LM head."""
    qk_norm: bool = False
    """RMS norm of queries and keys; slows decoding on a CPU, which has no fused kernel for it."""
    qk_norm_width: Literal["head", "all"] = "head"
    """Whether that norm is of each head or of all heads together."""
    embedding_scale: float = Field(default=1.0, gt=0)
    """Factor on the embedding."""
    residual_scale: float = Field(default=1.0, gt=0)
    """Factor on the output of each sublayer."""
    attention_scale: float | None = Field(default=None, gt=0)
    """Factor on the attention's scores; null means the inverse square root of head_dim."""
    attention_softcap: float | None = Field(default=None, gt=0)
    """Scores s become cap * tanh(s / cap); null means unchanged."""
    logit_scale: float = Field(default=1.0, gt=0)
    """Factor on the logits."""
    logit_softcap: float | None = Field(default=None, gt=0)
    """Logits become cap * tanh(logit / cap); null means unchanged."""
    tie_word_embeddings: bool = True
    """Share one table between the embedding and the LM head."""

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                "model.num_key_value_heads",
                f"{self.num_key_value_heads} does not divide num_attention_heads ({self.num_attention_heads})",
                "choose a divisor",
            )
        if (self.rotary_dim or 0) > self.head_dim:
            raise UserError(
                "model.rotary_dim", f"{self.rotary_dim} is more than head_dim ({self.head_dim})", "lower it"
            )
        if self.rope_scaling == "longrope" and self.rope_short_factors is None:
            raise UserError("model.rope_short_factors", "is missing, but rope_scaling is longrope", "give the factors")
        if self.head_bias and self.tie_word_embeddings:
            raise UserError("model.head_bias", "is not supported with tied tables", "set tie_word_embeddings to false")
        for field, value in (("layer_types", self.layer_types), ("rope_short_factors", self.rope_short_factors)):
            wanted = self.num_hidden_layers if field == "layer_types" else (self.rotary_dim or self.head_dim) // 2
            if value is not None and len(value) != wanted:
                raise UserError(f"model.{field}", f"has {len(value)} entries", f"give {wanted}")
        return self

    @property
    def all_slide(self) -> bool:
        """Whether every layer is a sliding one."""
        return all(self.slides(layer) for layer in range(self.num_hidden_layers))

    def slides(self, layer: int) -> bool:
        """Whether a layer is a sliding one."""
        if self.layer_types is None:
            return self.sliding_window is not None
        return self.layer_types[layer] == "sliding_attention"
