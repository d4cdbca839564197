"""Lower the traced graph for each variant: every kiara::Linear becomes an operator of ONNX Runtime.

float32    MatMul
blocks     MatMulNBits at 8 or 4 bits; a tied embedding reads the LM head's quantised table
dynamic    MatMulIntegerToFloat, which multiplies 8-bit activations by 8-bit weights
half       MatMul with all weights, activations, keys and values in float16

The scales of all blocks are in one float16 tensor that is cast and split in the graph: ONNX Runtime constant-folds
this when it loads the graph, and the file is smaller by 2 bytes a block.
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
from kiara_runtime.bundle import HIDDEN_STATES
from kiara_runtime.errors import UserError

CONTRIB = "com.microsoft"
TABLE, HEAD = "model.embed_tokens.weight", "model.lm_head.weight"  # of the traced module
SMOOTH = ".smooth"  # suffix of the names of parameters that were multiplied by smoothing factors
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: integer products, the fastest on every CPU tried

Rounded = Callable[[str, NDArray[np.float32]], Blocks]  # a matrix's name and its weights (out, in) -> its blocks


def _fused_head(node: ir.Node, table: ir.Value) -> list[ir.Node]:
    return [ir.node("FusedMatMul", [node.inputs[0], table], {"transB": 1}, domain=CONTRIB)]


def _transposed_head(node: ir.Node, table: ir.Value) -> list[ir.Node]:
    """Standard ONNX operators only, which accelerators support in float16; loading makes a transposed copy."""
    transpose = ir.node("Transpose", [table], {"perm": [1, 0]})
    return [transpose, ir.node("MatMul", [node.inputs[0], transpose.outputs[0]])]


def float32(traced: ir.Model, tied_head: Callable[[ir.Node, ir.Value], list[ir.Node]] = _fused_head) -> ir.Model:
    """Plain matrix products with float32 weights."""
    model = traced.clone()
    transposed: dict[str, ir.Value] = {}
    for node in _linears(model):
        weight = node.inputs[1]
        assert weight is not None and weight.const_value is not None and weight.name is not None
        if weight.name == TABLE:  # tied: stored once, in the embedding's layout
            _replace(model, node, tied_head(node, weight))
            continue
        if weight.name not in transposed:
            lazy = ir.LazyTensor(
                lambda tensor=weight.const_value: ir.tensor(np.ascontiguousarray(tensor.numpy().T)),
                dtype=ir.DataType.FLOAT,
                shape=ir.Shape(tuple(reversed(weight.const_value.shape.numpy()))),
                name=f"{weight.name}.transposed",
            )  # transposed when it is written, so that only one copy is in memory at a time
            transposed[weight.name] = register(model, lazy)
        _replace(model, node, _product(node, transposed[weight.name]))
    return _finish(model)


def half(traced: ir.Model) -> ir.Model:
    """float16 throughout, for accelerators; logits and hidden states come out as float32."""
    model = float32(traced, _transposed_head)
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
        elif node.op_type == "Cast":  # the last node of the rotary tables, which are computed in float32
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
    for value in model.graph.inputs:
        _make_half(value)
    for index, value in enumerate(model.graph.outputs):
        if value.name in ("logits", HIDDEN_STATES):
            _cast_output(model, index)
    return model


def _make_half(value: ir.Value) -> None:
    if value.dtype == ir.DataType.FLOAT:
        value.type = ir.TensorType(ir.DataType.FLOAT16)  # a new object: clones share their types


def _cast_output(model: ir.Model, index: int) -> None:
    """Make a float16 output of the graph float32."""
    inner = model.graph.outputs[index]
    cast = ir.node("Cast", [inner], {"to": ir.DataType.FLOAT})
    outer, name = cast.outputs[0], inner.name
    inner.name = f"{name}.half"
    outer.name, outer.shape, outer.type = name, inner.shape, ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(cast)
    model.graph.outputs[index] = outer


def blocks(traced: ir.Model, rounded: Rounded) -> ir.Model:
    """Block-quantised weights, as `rounded` returns them; a tied embedding and LM head share one table."""
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
    """8-bit activations with one scale per token and 8-bit weights with one scale per row: fast prefill and batches.

    factors: smoothing factors; kept: matrices that stay in blocks; both from `kiara_export.quantize.smooth`. The LM
    head stays in blocks, too: it is a small part of prefill, and the tied table is stored once.
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
    """Multiply parameters by their factors, separately at each use: the exporter merges small equal parameters."""
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
    """Names of the parameters of a projection and of the norm before it, each with its node and input index."""
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
    """Builds the product of rows that are rounded to 8 bits at run time; its constants are shared by all products."""

    def __init__(self, model: ir.Model) -> None:
        self._last = constant(model, "rows.axis", np.array([-1]))
        self._step = constant(model, "rows.step", np.array(1 / 127, np.float32))
        # Unsigned, with zero point 128: ONNX Runtime has no fast x86 kernels for signed activations.
        self._middle = constant(model, "rows.middle", np.array(128, np.uint8))

    def product(self, rows: ir.Value | None, matrix: ir.Value, scales: ir.Value) -> list[ir.Node]:
        """rows (B, S, in), matrix int8 (in, out) and scales (out,) -> (B, S, out), the output of the last node.

        Each row is divided by its largest absolute value, rounded to 127ths, multiplied in integers, whose sums are
        exact in any order, and scaled back. In a row of zeros the quotients are undefined; their product is multiplied
        by 0.
        """
        sizes = ir.node("Abs", [rows])
        peak = ir.node("ReduceMax", [sizes.outputs[0], self._last], {"keepdims": 1})  # (B, S, 1)
        unit = ir.node("Div", [rows, peak.outputs[0]])
        whole = ir.node("QuantizeLinear", [unit.outputs[0], self._step, self._middle])
        inputs = [whole.outputs[0], matrix, self._step, scales, self._middle]
        product = ir.node("MatMulIntegerToFloat", inputs, domain=CONTRIB)
        return [sizes, peak, unit, whole, product, ir.node("Mul", [product.outputs[0], peak.outputs[0]])]


class _Tables:
    """Quantised matrices by name, each stored once even if several nodes use it."""

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
        """Look up the embedding's rows in the quantised table that MatMulNBits reads.

        Uses standard ONNX operators: ONNX Runtime's build for browsers has no 8-bit GatherBlockQuantized.
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
        """Insert the Cast and Split that produce the scales of every matrix, before all other nodes."""
        made = list(self._made.values())
        pool = constant(model, "scales", np.concatenate([spec.scales.ravel() for *_, spec in made]))
        sizes = constant(model, "scales.sizes", np.array([spec.scales.size for *_, spec in made]))
        cast = ir.node("Cast", [pool], {"to": ir.DataType.FLOAT})
        split = ir.Node("", "Split", [cast.outputs[0], sizes], [ir.AttrInt64("axis", 0)], outputs=[m[1] for m in made])
        model.graph.insert_before(model.graph[0], [cast, split])


def _linears(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Linear" and node.domain == "kiara"]


def _product(node: ir.Node, weight: ir.Value) -> list[ir.Node]:
    """x W, plus b if the projection has a bias."""
    product = ir.node("MatMul", [node.inputs[0], weight])
    if len(node.inputs) < 3:
        return [product]
    return [product, ir.node("Add", [product.outputs[0], node.inputs[2]])]


def _to_half(array: NDArray[np.float32]) -> NDArray[np.float16]:
    largest = float(np.abs(array).max(initial=0))
    if largest > np.finfo(np.float16).max:
        raise UserError("--quantize fp16", f"a weight of {largest:.3g} is too large for float16", "leave fp16 out")
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
