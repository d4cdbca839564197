"""A second graph of a variant, whose KV cache is int8. It has no weights of its own: they stay in the variant's file.

ONNX Runtime's GroupQueryAttention rounds new keys and values to int8 with a scale per channel of a head, and reads them
in that form (`k_quant_type` and `v_quant_type` PER_CHANNEL in the operator's specification). It does so on the CPU,
with float32 activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from kiara_export.graph.onnx_file import places

LEAST_BYTES = 1024  # smaller tensors are copied: shape inference reads some of them
PAST_KEY, SCALES = 3, 12  # numbers of the operator's inputs: the cached keys, and the first of the scales
BITS = 8


def write_int8_cache(source: Path, scales: Sequence[NDArray[np.float32]]) -> Path:
    """Write the graph `source` with an int8 KV cache to a file beside it, whose path is returned.

    scales: of keys, then values, of each layer in turn, 2 L arrays (K key/value heads, E head size).
    """
    model = onnx.load(str(source), load_external_data=False)
    stored = places(source, model)
    for tensor in model.graph.initializer:
        if tensor.name in stored and stored[tensor.name][1] >= LEAST_BYTES:
            _refer(tensor, source.name, *stored[tensor.name])
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            layer = int(node.input[PAST_KEY].split(".")[1])  # past_key_values.{layer}.key
            model.graph.initializer.extend(_quantised(node, *scales[2 * layer : 2 * layer + 2]))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    target = source.with_name(f"{source.stem}_int8_cache.onnx")
    target.write_bytes(model.SerializeToString())
    return target


def _refer(tensor: onnx.TensorProto, file: str, offset: int, length: int) -> None:
    """Have a weight read from a part of a file beside the graph."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _quantised(node: onnx.NodeProto, keys: NDArray[np.float32], values: NDArray[np.float32]) -> list[onnx.TensorProto]:
    """Have an attention use an int8 cache; returns its scales, in the shape that the operator wants: (1, K, 1, E)."""
    made = [
        numpy_helper.from_array(scale[None, :, None, :], f"{node.name}.{part}_scale")
        for part, scale in (("key", keys), ("value", values))
    ]
    node.input.extend([""] * (SCALES - len(node.input)))
    node.input.extend(scale.name for scale in made)
    node.attribute.extend(helper.make_attribute(f"{part}_quant_type", "PER_CHANNEL") for part in "kv")
    node.attribute.append(helper.make_attribute("kv_cache_bit_width", BITS))
    return made
