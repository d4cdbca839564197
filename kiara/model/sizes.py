"""Parameters, file sizes, memory and FLOPs of a configuration, computed without building the model."""

from __future__ import annotations

from kiara.config import ModelConfig
from kiara.grid import Grid
from kiara.model.wiring import norms, projections
from kiara_runtime.bundle import VARIANTS, Variant

CACHE_BYTES = 4  # float32 keys and values
TABLE = VARIANTS[0]  # every variant in blocks stores its tables like this one


def matrix_parameters(config: ModelConfig) -> int:
    """Number of weights in the matrices inside the blocks."""
    layer = sum(projection.outputs * projection.inputs for projection in projections(config).values())
    return layer * config.num_hidden_layers


def table_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Number of weights in the embedding, and in the LM head if it is not tied."""
    return vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)


def parameters(config: ModelConfig, vocab_size: int) -> int:
    """Number of trained weights."""
    width, layers = config.hidden_size, config.num_hidden_layers
    block_norms = (len(norms(config)) * layers + 1) * width * (2 if config.norm == "layer" else 1)
    normed = config.num_attention_heads + config.num_key_value_heads if config.qk_norm_width == "all" else 2
    head_norms = normed * layers * config.head_dim * config.qk_norm
    biases = sum(projection.outputs * projection.bias for projection in projections(config).values())
    positions = config.context_length * width * (config.position == "learned")
    tables = matrix_parameters(config) + table_parameters(config, vocab_size)
    return tables + block_norms + head_norms + layers * biases + positions + vocab_size * config.head_bias


def graph_bytes(config: ModelConfig, vocab_size: int, variant: Variant, trained: bool = False) -> int:
    """Size of the graph file of a variant in blocks. trained: on its grid, which its tables have, too, else 8 bits."""
    matrices, table = matrix_parameters(config), table_parameters(config, vocab_size)
    rest = 4 * (parameters(config, vocab_size) - matrices - table)
    if trained:
        return round(rest + (matrices + table) * Grid.of(variant).bytes_per_weight)
    return round(rest + table * TABLE.bytes_per_weight + matrices * variant.bytes_per_weight)


def cache_bytes_per_token(config: ModelConfig) -> int:
    """Bytes of one token's keys and values in all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * CACHE_BYTES


def training_flops(config: ModelConfig, vocab_size: int, tokens: int, length: int) -> float:
    """FLOPs of training on `tokens` in sequences of `length`: 6 per parameter and token, plus attention.

    After Kaplan et al. (2020).
    """
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length / 2
    return tokens * (6.0 * parameters(config, vocab_size) + attention)
