"""Several weights in a byte, taken apart in a graph."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from kiara_export.graph.trace import constant
from kiara_export.quantize import Blocks


def unpacked(model: ir.Model, bytes_: ir.Node, spec: Blocks) -> list[ir.Node]:
    """Nodes that take apart what is packed in bytes, (B, S, blocks, size * bits / 8) -> (B, S, blocks, size).

    In float32, which is all that ONNX Runtime's build for browsers computes with: digit i of a byte in base 2 ** bits
    is floor(byte / base^i) less base times floor(byte / base^(i + 1)).
    """
    base, each = 1 << spec.bits, 8 // spec.bits
    shape = constant(model, "embedding.blocks", np.array([0, 0, -1, spec.size]))
    times, axis = (
        constant(model, "embedding.base", np.array(base, np.float32)),
        constant(model, "embedding.last", np.array([-1])),
    )
    nodes: list[ir.Node] = []

    def node(kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        nodes.append(ir.node(kind, inputs, attributes))
        return nodes[-1].outputs[0]

    floors = [bytes_.outputs[0]]
    for i in range(1, each):
        part = constant(model, f"embedding.part{i}", np.array(base**-i, np.float32))
        floors.append(node("Floor", node("Mul", bytes_.outputs[0], part)))
    digits = [node("Sub", low, node("Mul", high, times)) for low, high in itertools.pairwise(floors)]
    columns = [node("Unsqueeze", digit, axis) for digit in (*digits, floors[-1])]
    node("Reshape", node("Concat", *columns, axis=-1), shape)
    return nodes
