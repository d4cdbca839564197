"""How a family names and stores tensors: its names for ours, and the conversion of values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kiara.config import ModelConfig
from kiara.families.family import Family
from kiara.model import GPT, packed


def tensor_names(family: Family, config: ModelConfig, name: str) -> dict[str, int | None]:
    """The family's names for our tensor `name`, several if packed, each with its number of rows; None means all."""
    if name.startswith("lm_head."):
        return {name.replace("lm_head", family.head): None}
    parts = () if any(f".{kept}." in name for kept in family.packed) else packed(config, name)
    for ours, theirs in family.names.items():
        name = re.sub(rf"(?<![a-z_]){re.escape(ours)}(?![a-z_])", theirs, name)
    if not parts:
        return {family.prefix + name: None}
    *layer, _, kind = name.split(".")
    return {family.prefix + ".".join([*layer, part, kind]): rows for part, rows in parts}


def model_shapes(config: ModelConfig, vocab_size: int) -> dict[str, list[int]]:
    """The shapes of our tensors, by name."""
    with torch.device("meta"):
        return {name: list(tensor.shape) for name, tensor in GPT(config, vocab_size).state_dict().items()}


def expected_tensors(family: Family, config: ModelConfig, shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The family's tensor names and shapes, from our names and shapes."""
    expected: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        for part, rows in tensor_names(family, config, name).items():
            stored = [rows or shape[0], *shape[1:]]
            expected[part] = stored[::-1] if _is_transposed(family, name) else stored
    return expected


def to_ours(family: Family, config: ModelConfig, name: str, parts: Sequence[Tensor]) -> Tensor:
    """Our tensor `name`, a copy, from the family's, in the order of `tensor_names`."""
    turned = [part.T if _is_transposed(family, name) else part for part in parts]
    whole = torch.cat(turned) if len(turned) > 1 else turned[0].clone(memory_format=torch.contiguous_format)
    whole = whole.float()
    if family.grouped_qkv and ".qkv_proj." in name and len(whole) == len(rows := _grouped_rows(config)):
        whole = whole[rows]
    return whole + family.norm_offset if _has_offset(family, name) else whole


def to_theirs(family: Family, config: ModelConfig, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The family's tensors, by name, from our tensor `name`; most share its memory."""
    if _has_offset(family, name):
        tensor = tensor - family.norm_offset
    if family.grouped_qkv and ".qkv_proj." in name:
        tensor = tensor[_grouped_rows(config).argsort()]
    names = tensor_names(family, config, name)
    parts = tensor.split([rows or len(tensor) for rows in names.values()])
    return dict(zip(names, (part.T if _is_transposed(family, name) else part for part in parts), strict=True))


def stored_alike(first: Family, second: Family, config: ModelConfig, name: str) -> bool:
    """Whether both families store the values of our tensor `name` in the same way; its parts may have other names."""
    ways = [
        (
            len(tensor_names(family, config, name)),
            _is_transposed(family, name),
            family.norm_offset if _has_offset(family, name) else 0.0,
            family.grouped_qkv and ".qkv_proj." in name,
        )
        for family in (first, second)
    ]
    return ways[0] == ways[1]


def _is_transposed(family: Family, name: str) -> bool:
    """Whether the family stores this matrix as (inputs, outputs), as GPT-2 does."""
    return family.transposed and name.endswith("_proj.weight")


def _has_offset(family: Family, name: str) -> bool:
    return family.norm_offset != 0 and name.endswith("norm.weight")


def _grouped_rows(config: ModelConfig) -> Tensor:
    """Where each of our rows of q, k and v is, if the rows of one key/value head and its queries are together."""
    keys, size = config.num_key_value_heads, config.head_dim
    rows = torch.arange((config.num_attention_heads + 2 * keys) * size).view(keys, -1, size)
    return torch.cat([part.flatten() for part in (rows[:, :-2], rows[:, -2], rows[:, -1])])
