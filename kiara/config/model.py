"""The shape of a model, one documented field each. Training, import and export all read it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kiara_runtime.errors import UserError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """Shape of the model. What is trained has widths of multiples of 64 and heads of 16, as the kernels want them."""

    hidden_size: int = Field(default=256, ge=2, le=1 << 16)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(default=6, ge=1, le=256)
    """Number of blocks."""
    num_attention_heads: int = Field(default=4, ge=1, le=1024)
    """Query heads of a layer."""
    num_key_value_heads: int = Field(default=2, ge=1, le=1024)
    """Key/value heads of a layer; fewer than query heads make the cache smaller."""
    head_dim: int = Field(default=64, ge=2, le=1024, multiple_of=2)
    """Width of one head."""
    intermediate_size: int = Field(default=1024, ge=1, le=1 << 20)
    """Width inside the MLP."""
    context_length: int = Field(default=512, ge=16, le=1 << 20)
    """Tokens the model sees at most, in training and later."""
    rope_theta: float = Field(default=10000.0, gt=1)
    """Base of the rotary position frequencies."""
    rope_scaling: Literal["none", "llama3"] = "none"
    """How frequencies are slowed down for a longer context than the first one (Llama 3.1 and later)."""
    rope_factor: float = Field(default=1.0, ge=1)
    """How many times slower the slow ones turn then."""
    rope_low_freq_factor: float = Field(default=1.0, gt=0)
    """Frequencies with fewer turns than this in the first context are slowed down wholly."""
    rope_high_freq_factor: float = Field(default=4.0, gt=0)
    """Those with more turns than this not at all, the others in between."""
    rope_original_context: int = Field(default=8192, ge=1, le=1 << 20)
    """Tokens of that first context."""
    norm: Literal["rms", "layer"] = "rms"
    """Root mean square norm, or layer norm with biases."""
    norm_eps: float = Field(default=1e-5, gt=0, lt=1)
    """Keeps the norm from dividing by zero."""
    position: Literal["rope", "learned"] = "rope"
    """Rotary positions, or a learned table added to the embedding."""
    mlp: Literal["relu2", "swiglu", "gelu"] = "relu2"
    """Squared ReLU, gated SiLU, or GELU in its tanh form."""
    attention_bias: bool = False
    """Biases on the query, key and value projections."""
    attention_out_bias: bool = False
    """A bias on the attention's output projection."""
    mlp_bias: bool = False
    """Biases on the MLP's projections."""
    qk_norm: bool = False
    """RMS norm of every query and key head; costs decode speed on a CPU, where nothing fuses it."""
    tie_word_embeddings: bool = True
    """One table for the embedding and the LM head."""

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                "model.num_key_value_heads",
                f"{self.num_key_value_heads} does not divide num_attention_heads ({self.num_attention_heads})",
                "choose a divisor",
            )
        return self
