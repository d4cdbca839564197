"""How a block is wired, as data: its projections, what each is packed of, and what stands before it.

The modules of `kiara.model.gpt` are built from this table, and the names of weights, sizes, the export's lowering and
smoothing read it: what a new family needs of them is a row here. It is no second definition of what is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kiara.config import ModelConfig

ATTENTION_NORM, MLP_NORM = "input_layernorm", "post_attention_layernorm"


@dataclass(frozen=True)
class Projection:
    """A matrix of every block.

    name: of its module in the block. parts: the matrices that are packed in it, by the names that Hugging Face gives
    them, each with its rows. inputs: its columns. norm: whose output it reads; None where it reads what `made_by` does.
    made_by: the projection whose rows make its inputs, through `through`; a factor passes through "gate" on the rows of
    the second part, through "square" by its root, and through None not at all.
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
    """The matrices of a block, by name, in the order in which they are computed."""
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    width, inner = config.hidden_size, config.intermediate_size
    gated = config.mlp == "swiglu"
    up = "mlp.gate_up_proj" if gated else "mlp.up_proj"
    up_parts = (("gate_proj", inner), ("up_proj", inner)) if gated else (("up_proj", inner),)
    through = {"swiglu": "gate", "relu2": "square", "gelu": None}
    qkv = (("q_proj", heads * size), ("k_proj", kv_heads * size), ("v_proj", kv_heads * size))
    found = (
        Projection("self_attn.qkv_proj", qkv, width, config.attention_bias, norm=ATTENTION_NORM),
        Projection("self_attn.o_proj", (("o_proj", width),), heads * size, config.attention_out_bias),
        Projection(up, up_parts, width, config.mlp_bias, norm=MLP_NORM),
        Projection(
            "mlp.down_proj",
            (("down_proj", width),),
            inner,
            config.mlp_bias,
            made_by=up,
            through=through[config.mlp],  # pyright: ignore[reportArgumentType]
        ),
    )
    return {projection.name: projection for projection in found}


def packed(config: ModelConfig, tensor: str) -> tuple[tuple[str, int], ...]:
    """The matrices that the tensor `layers.3.mlp.gate_up_proj.weight` is packed of; none where it is a single one."""
    parts = tensor.split(".")
    projection = projections(config).get(".".join(parts[2:-1])) if parts[0] == "layers" else None
    return projection.parts if projection is not None and len(projection.parts) > 1 else ()


def norm_before(module: str) -> str | None:
    """The norm whose output a projection of a block reads; it is the same in every configuration."""
    return _NORMS.get(module)


_NORMS = {
    projection.name: projection.norm
    for mlp in ("relu2", "swiglu")
    for projection in projections(ModelConfig(mlp=mlp)).values()
    if projection.norm is not None
}
