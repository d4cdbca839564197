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
    rope_scaling: Literal["none", "llama3"] = "none"
    """RoPE scaling for a context longer than the original one; llama3 is that of Llama 3.1 and later."""
    rope_factor: float = Field(default=1.0, ge=1)
    """Factor by which llama3 scaling divides low frequencies."""
    rope_low_freq_factor: float = Field(default=1.0, gt=0)
    """Frequencies with fewer turns than this in the original context are divided by rope_factor."""
    rope_high_freq_factor: float = Field(default=4.0, gt=0)
    """Frequencies with more turns than this are unchanged; those in between are interpolated."""
    rope_original_context: int = Field(default=8192, ge=1, le=1 << 20)
    """Original context length in tokens, before scaling."""
    norm: Literal["rms", "layer"] = "rms"
    """rms: root mean square norm; layer: layer norm with biases."""
    norm_eps: float = Field(default=1e-5, gt=0, lt=1)
    """Epsilon of the norms, against division by zero."""
    position: Literal["rope", "learned"] = "rope"
    """rope: rotary positions; learned: a learned table added to the embedding."""
    mlp: Literal["relu2", "swiglu", "gelu"] = "relu2"
    """relu2: squared ReLU; swiglu: gated SiLU; gelu: GELU in its tanh form."""
    attention_bias: bool = False
    """Biases on the query, key and value projections."""
    attention_out_bias: bool = False
    """A bias on the attention's output projection."""
    mlp_bias: bool = False
    """Biases on the MLP's projections."""
    qk_norm: bool = False
    """RMS norm of every query and key head; slows decoding on a CPU, which has no fused kernel for it."""
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
        return self
