"""The projections of a block as a table: the matrices that each one packs, and what produces its input.

`kiara.model.block` builds its modules from this table; weight names, sizes, and the export's lowering and smoothing
read it. A new kind of projection is added here. The table does not define the computation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kiara.config import ModelConfig

ATTENTION_NORM, MLP_NORM = "input_layernorm", "post_attention_layernorm"


def norms(config: ModelConfig) -> tuple[str, ...]:
    """The norms that a block has."""
    before, after = (ATTENTION_NORM, MLP_NORM), ("attention_output_norm", "mlp_output_norm")
    if config.parallel != "none":
        return before[:1] if config.parallel == "one_norm" else before
    return {"before": before, "after": after, "both": (*before, *after)}[config.norm_position]


@dataclass(frozen=True)
class Projection:
    """A matrix of every block.

    name: of its module in the block. parts: the matrices packed in it, by Hugging Face name, with the rows of each.
    inputs: number of columns. norm: the norm whose output it reads, or None. made_by: the projection whose output,
    after an activation, is its input, or None. through: how a factor on its inputs can be moved to the rows of
    `made_by`: "gate" to the rows of its second part, "square" as a square root to all rows, None not at all.
    """

    name: str
    parts: tuple[tuple[str, int], ...]
    inputs: int
    bias: bool
    norm: str | None = None
    made_by: str | None = None
    through: Literal["gate", "square"] | None = None

    @property
    def outputs(self) -> int:
        return sum(rows for _, rows in self.parts)

    @property
    def parameters(self) -> int:
        return self.outputs * (self.inputs + self.bias)


def projections(config: ModelConfig) -> dict[str, Projection]:
    """The projections of a block, by name, in the order of computation."""
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    width, inner = config.hidden_size, config.intermediate_size
    gated = config.mlp in ("swiglu", "geglu")
    up = "mlp.gate_up_proj" if gated else "mlp.up_proj"
    up_parts = (("gate_proj", inner), ("up_proj", inner)) if gated else (("up_proj", inner),)
    through = {"swiglu": "gate", "geglu": "gate", "relu2": "square"}
    # A norm that two projections read has none of its own.
    own = norms(config) if config.parallel != "one_norm" else ()
    read = {norm: norm if norm in own else None for norm in (ATTENTION_NORM, MLP_NORM)}
    qkv = (("q_proj", heads * size), ("k_proj", kv_heads * size), ("v_proj", kv_heads * size))
    found = (
        Projection("self_attn.qkv_proj", qkv, width, config.attention_bias, norm=read[ATTENTION_NORM]),
        Projection("self_attn.o_proj", (("o_proj", width),), heads * size, config.attention_out_bias),
        Projection(up, up_parts, width, config.mlp_bias, norm=read[MLP_NORM]),
        Projection(
            "mlp.down_proj",
            (("down_proj", width),),
            inner,
            config.mlp_bias,
            made_by=up,
            through=through.get(config.mlp),  # pyright: ignore[reportArgumentType]
        ),
    )
    return {projection.name: projection for projection in found}


def packed(config: ModelConfig, tensor: str) -> tuple[tuple[str, int], ...]:
    """The matrices packed in a tensor such as `layers.3.mlp.gate_up_proj.weight`; empty if it is a single one."""
    parts = tensor.split(".")
    projection = projections(config).get(".".join(parts[2:-1])) if parts[0] == "layers" else None
    return projection.parts if projection is not None and len(projection.parts) > 1 else ()


def norm_before(module: str) -> str | None:
    """The norm that a projection reads alone, in the configurations where it reads any."""
    return _NORMS.get(module)


_NORMS = {
    projection.name: projection.norm
    for mlp in ("relu2", "swiglu")
    for projection in projections(ModelConfig(mlp=mlp)).values()
    if projection.norm is not None
}
