"""One traced graph, lowered to what a variant ships: every kiara::Linear becomes an operator of ONNX Runtime.

float32    MatMul
blocks     MatMulNBits at 8 or 4 bits, and the embedding read from the very table of the LM head
dynamic    MatMulIntegerToFloat, whose products are integers of 8 bits on both sides
half       MatMul with every weight, activation and cached key in float16

The scales of all blocks lie in one float16 tensor that is cast and split in the graph: ONNX Runtime folds that
away when it loads the graph, and 2 bytes a block stay off the disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kiara.model import norm_before
from kiara_export.graph.packing import unpacked
from kiara_export.graph.trace import ROPE, constant, register
from kiara_export.quantize import Blocks, Factors, per_channel
from kiara_runtime.errors import UserError

CONTRIB = "com.microsoft"
TABLE, HEAD = "model.embed_tokens.weight", "model.lm_head.weight"  # of the traced module
SMOOTH = ".smooth"  # at the end of the names of parameters that factors were put on
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: products in integers, the fastest on every CPU tried

Rounded = Callable[[str, NDArray[np.float32]], Blocks]  # a matrix's name and its weights (out, in) -> its blocks


def _fused_head(node: ir.Node, table: ir.Value) -> list[ir.Node]:
    return [ir.node("FusedMatMul", [node.inputs[0], table], {"transB": 1}, domain=CONTRIB)]


def _turned_head(node: ir.Node, table: ir.Value) -> list[ir.Node]:
    """In the standard's own operators, which accelerators have in float16; loading makes a turned copy."""
    turn = ir.node("Transpose", [table], {"perm": [1, 0]})
    return [turn, ir.node("MatMul", [node.inputs[0], turn.outputs[0]])]


def float32(traced: ir.Model, tied_head: Callable[[ir.Node, ir.Value], list[ir.Node]] = _fused_head) -> ir.Model:
    """Plain matrix products on the weights as they are."""
    model = traced.clone()
    transposed: dict[str, ir.Value] = {}
    for node in _linears(model):
        weight = node.inputs[1]
        assert weight is not None and weight.const_value is not None and weight.name is not None
        if weight.name == TABLE:  # stored once, as the embedding reads it
            _replace(model, node, tied_head(node, weight))
            continue
        if weight.name not in transposed:
            lazy = ir.LazyTensor(
                lambda tensor=weight.const_value: ir.tensor(np.ascontiguousarray(tensor.numpy().T)),
                dtype=ir.DataType.FLOAT,
                shape=ir.Shape(tuple(reversed(weight.const_value.shape.numpy()))),
                name=f"{weight.name}.transposed",
            )  # turned when it is written, so that one copy stands in memory at a time
            transposed[weight.name] = register(model, lazy)
        _replace(model, node, _product(node, transposed[weight.name]))
    return _finish(model)


def half(traced: ir.Model) -> ir.Model:
    """float16 throughout, for accelerators; the logits leave as float32."""
    model = float32(traced, _turned_head)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and not name.startswith(ROPE):
            value.const_value = ir.LazyTensor(
                lambda tensor=tensor: ir.tensor(_to_half(tensor.numpy())),
                dtype=ir.DataType.FLOAT16,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
            )
            _make_half(value)
    for node in model.graph:
        if not (node.name or "").startswith(ROPE):
            for value in node.outputs:
                _make_half(value)
        elif node.op_type == "Cast":  # at the end of what computes the rotary tables in float32
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
    for value in model.graph.inputs:
        _make_half(value)
    _cast_logits(model)
    return model


def _make_half(value: ir.Value) -> None:
    if value.dtype == ir.DataType.FLOAT:
        value.type = ir.TensorType(ir.DataType.FLOAT16)  # a new one: clones share their types


def _cast_logits(model: ir.Model) -> None:
    last = model.graph.outputs[0].producer()
    assert last is not None
    inner = ir.Value(name="logits.half", type=ir.TensorType(ir.DataType.FLOAT16))
    product = ir.Node(last.domain, last.op_type, last.inputs, list(last.attributes.values()), outputs=[inner])
    _replace(model, last, [product, ir.node("Cast", [inner], {"to": ir.DataType.FLOAT})])
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)


def blocks(traced: ir.Model, rounded: Rounded) -> ir.Model:
    """Weights in blocks, as `rounded` gives them; a table that is embedding and head at once is stored once."""
    model, made = traced.clone(), _Tables(rounded)
    for node in _linears(model):
        data, scales, zeros, spec = made.of(model, node.inputs[1])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        inputs = [node.inputs[0], data, scales, zeros, None, bias]
        while inputs[-1] is None:
            inputs.pop()
        attributes = {"K": spec.columns, "N": spec.rows, "bits": spec.bits, "block_size": spec.size}
        attributes["accuracy_level"] = INT8_ACTIVATIONS
        _replace(model, node, [ir.node("MatMulNBits", inputs, attributes, domain=CONTRIB)])
    made.gather(model)
    made.pool_scales(model)
    return _finish(model)


def dynamic(traced: ir.Model, rounded: Rounded, factors: Factors, kept: Collection[str] = ()) -> ir.Model:
    """Activations rounded to 8 bits with a step a token, weights with a step a row: fast prompts and batches.

    factors, and kept, the matrices that stay in blocks: as `kiara_export.quantize.smooth` gives them. The LM head keeps
    its blocks, too: it is small work in a prompt, and the table is stored once.
    """
    model = traced.clone()
    _multiply(model, factors)
    shared = RowRounding(model)
    for node in _linears(model):
        weight = node.inputs[1]
        assert weight is not None and weight.const_value is not None and weight.name is not None
        if weight.name.removesuffix(SMOOTH) not in (TABLE, HEAD, *kept):
            values, scales = per_channel(weight.const_value.numpy())
            matrix = constant(model, f"{weight.name}.int8", np.ascontiguousarray(values.T))
            nodes = shared.product(node.inputs[0], matrix, constant(model, f"{weight.name}.scales", scales))
            if len(node.inputs) > 2:
                nodes.append(ir.node("Add", [nodes[-1].outputs[0], node.inputs[2]]))
            _replace(model, node, nodes)
    return blocks(_finish(model), rounded)


def _multiply(model: ir.Model, factors: Factors) -> None:
    """Put factors on parameters, where they are used: of small ones that are equal the exporter keeps one for all."""
    left = set(factors)
    for linear in _linears(model):
        for name, node, index in _parameters(linear):
            value = node.inputs[index] if index < len(node.inputs) else None
            if name not in factors or value is None:
                continue
            tensor, several = value.const_value, factors[name]
            assert tensor is not None
            lazy = ir.LazyTensor(
                lambda tensor=tensor, several=several: ir.tensor(math.prod(several, start=tensor.numpy())),
                dtype=ir.DataType.FLOAT,
                shape=ir.Shape(tensor.shape.numpy()),
                name=f"{name}{SMOOTH}",
            )
            node.replace_input_with(index, register(model, lazy))
            left.discard(name)
    assert not left, f"factors without parameters: {sorted(left)}"


def _parameters(linear: ir.Node) -> Iterator[tuple[str, ir.Node, int]]:
    """Names of a projection's parameters and of those of the norm before it, each with its node and input."""
    rows, weight = linear.inputs[:2]
    assert rows is not None and weight is not None and weight.name is not None
    yield weight.name, linear, 1
    yield f"{weight.name.removesuffix('weight')}bias", linear, 2
    before, (*layer, part, matrix, _) = rows.producer(), weight.name.split(".")
    read = norm_before(f"{part}.{matrix}")
    if before is not None and read is not None:
        norm = ".".join([*layer, read])
        first = 2 if before.op_type.startswith("Skip") else 1
        yield from ((f"{norm}.{kind}", before, first + i) for i, kind in enumerate(("weight", "bias")))


class RowRounding:
    """Constants and nodes of a product of rounded rows."""

    def __init__(self, model: ir.Model) -> None:
        self._last = constant(model, "rows.axis", np.array([-1]))
        self._step = constant(model, "rows.step", np.array(1 / 127, np.float32))
        # Unsigned around 128: with signed activations ONNX Runtime has no fast kernels on x86.
        self._middle = constant(model, "rows.middle", np.array(128, np.uint8))

    def product(self, rows: ir.Value | None, matrix: ir.Value, scales: ir.Value) -> list[ir.Node]:
        """rows (B, S, in), matrix int8 (in, out) and scales (out,) -> (B, S, out), in the last node.

        Each row is divided by its largest, rounded to 127ths, multiplied in whole numbers, which add up exactly in any
        order, and scaled back. Of a row of zeros the quotients mean nothing, and their product is taken times 0.
        """
        sizes = ir.node("Abs", [rows])
        peak = ir.node("ReduceMax", [sizes.outputs[0], self._last], {"keepdims": 1})  # (B, S, 1)
        unit = ir.node("Div", [rows, peak.outputs[0]])
        whole = ir.node("QuantizeLinear", [unit.outputs[0], self._step, self._middle])
        inputs = [whole.outputs[0], matrix, self._step, scales, self._middle]
        product = ir.node("MatMulIntegerToFloat", inputs, domain=CONTRIB)
        return [sizes, peak, unit, whole, product, ir.node("Mul", [product.outputs[0], peak.outputs[0]])]


class _Tables:
    """Blocks by the name of the matrix, each stored once however often it is used."""

    def __init__(self, rounded: Rounded) -> None:
        self._rounded = rounded
        self._made: dict[str, tuple[ir.Value, ir.Value, ir.Value | None, Blocks]] = {}

    def of(self, model: ir.Model, weight: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value | None, Blocks]:
        assert weight is not None and weight.const_value is not None and weight.name is not None
        name = weight.name
        if name not in self._made:
            made = self._rounded(name, weight.const_value.numpy())
            zeros = None if made.zeros is None else constant(model, f"{name}.zeros", made.packed_zeros())
            data = constant(model, f"{name}.int{made.bits}", made.packed())
            scales = ir.Value(name=f"{name}.scales", type=ir.TensorType(ir.DataType.FLOAT))
            self._made[name] = (data, scales, zeros, made)
        return self._made[name]

    def gather(self, model: ir.Model) -> None:
        """The embedding's rows, out of the table of MatMulNBits.

        In the standard's own operators: ONNX Runtime's build for browsers has no GatherBlockQuantized of 8 bits.
        """
        for node in list(model.graph):
            table = node.inputs[0] if node.op_type == "Gather" else None
            if table is None or table.name != TABLE:
                continue
            data, scales, _, spec = self.of(model, table)
            shape = constant(model, "table_scales.shape", np.array([spec.rows, spec.columns // spec.size, 1]))
            middle = constant(model, "embedding.zero", np.array(1 << (spec.bits - 1), np.float32))
            flat = constant(model, "embedding.shape", np.array([0, 0, spec.columns]))
            ids = node.inputs[1]
            column = ir.node("Reshape", [scales, shape])
            rows = ir.node("Gather", [data, ids], {"axis": 0})  # (B, S, blocks, size)
            wide = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT})
            apart = [] if spec.bits == 8 else unpacked(model, wide, spec)
            centred = ir.node("Sub", [(apart or [wide])[-1].outputs[0], middle])
            steps = ir.node("Gather", [column.outputs[0], ids], {"axis": 0})  # (B, S, blocks, 1)
            scaled = ir.node("Mul", [centred.outputs[0], steps.outputs[0]])
            nodes = [column, rows, wide, *apart, centred, steps, scaled, ir.node("Reshape", [scaled.outputs[0], flat])]
            _replace(model, node, nodes)

    def pool_scales(self, model: ir.Model) -> None:
        """Put Cast and Split, which give every matrix its scales, before all other nodes."""
        made = list(self._made.values())
        pool = constant(model, "scales", np.concatenate([spec.scales.ravel() for *_, spec in made]))
        sizes = constant(model, "scales.sizes", np.array([spec.scales.size for *_, spec in made]))
        cast = ir.node("Cast", [pool], {"to": ir.DataType.FLOAT})
        split = ir.Node("", "Split", [cast.outputs[0], sizes], [ir.AttrInt64("axis", 0)], outputs=[m[1] for m in made])
        model.graph.insert_before(model.graph[0], [cast, split])


def _linears(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Linear" and node.domain == "kiara"]


def _product(node: ir.Node, weight: ir.Value) -> list[ir.Node]:
    """x W, and + b where the projection has one."""
    product = ir.node("MatMul", [node.inputs[0], weight])
    if len(node.inputs) < 3:
        return [product]
    return [product, ir.node("Add", [product.outputs[0], node.inputs[2]])]


def _to_half(array: NDArray[np.float32]) -> NDArray[np.float16]:
    largest = float(np.abs(array).max(initial=0))
    if largest > np.finfo(np.float16).max:
        raise UserError("--quantize fp16", f"a weight is {largest:.3g}, beyond what float16 holds", "leave fp16 out")
    return array.astype(np.float16)


def _replace(model: ir.Model, node: ir.Node, nodes: list[ir.Node]) -> None:
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [node.outputs[0]], [nodes[-1].outputs[0]])


def _finish(model: ir.Model) -> ir.Model:
    """Drop the weights that the lowered graph does not read."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]
    if not _linears(model):
        model.opset_imports.pop("kiara", None)
    model.opset_imports.setdefault(CONTRIB, 1)
    return model
