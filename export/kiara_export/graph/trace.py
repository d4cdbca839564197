"""The ONNX graph of a model, traced from the training module itself.

While the exporter traces, `kiara.model.ops` emits ONNX Runtime's fused operators instead of its eager code, so this
module only wraps the model in the names and shapes that every runtime expects:

inputs   input_ids, attention_mask (int64, `[batch_size, ...]`), past_key_values.{i}.key|value
outputs  logits (float32), present.{i}.key|value, and on request hidden_states (float32), of every new token

The graph returns logits for every new token, as onnxruntime-genai requires. A 2 in the attention mask requests only the
last position's logits, which saves most of the LM head's work in prefill; a 0 next to the 2 keeps the mask's sum right.

The KV cache is `[batch_size, kv_heads, past, head_size]` with static heads and head size: transformers.js reads
them from the graph. Lengths are computed in the graph, so there are no further inputs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kiara.config import ModelConfig
from kiara.model import GPT, Lengths, emitting_operators, frequencies, table_factor
from kiara_runtime.bundle import HIDDEN_STATES, io_names

OPSET = 21
ROPE, FINE = "rope.", 64  # prefix of the names of nodes for the rotary tables; positions in the fine table


class _Traced(nn.Module):
    """The model with flat inputs and outputs, and lengths computed from the attention mask."""

    def __init__(self, model: GPT, hidden: bool) -> None:
        super().__init__()
        self.model, self.hidden = model, hidden

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *flat_past: Tensor) -> tuple[Tensor, ...]:
        lengths = Lengths(
            last=(attention_mask.sum(dim=1) - 1).to(torch.int32),
            total=torch.scalar_tensor(attention_mask.shape[1], dtype=torch.int32),
            wanted=1 - attention_mask.amax(dim=(0, 1), keepdim=True).reshape(1),
        )
        past = list(zip(flat_past[::2], flat_past[1::2], strict=True))
        normed, present = self.model.hidden_states(input_ids, past, lengths)
        logits, kept = self.model.logits(normed, lengths), [normed.float()] if self.hidden else []
        return (logits.float(), *(tensor for pair in present for tensor in pair), *kept)


def trace(model: GPT, hidden: bool = False) -> ir.Model:
    """The float32 graph of `model`, with its weights. hidden: with the hidden states as an output."""
    config = model.config
    inputs, outputs = io_names(config.num_hidden_layers)
    batch, new, past = 2, 3, 5  # any sizes above 1: the axes are dynamic
    cache = (batch, config.num_key_value_heads, past, config.head_dim)
    arguments = (
        torch.zeros(batch, new, dtype=torch.int64),
        torch.ones(batch, past + new, dtype=torch.int64),
        *(torch.zeros(cache) for _ in inputs[2:]),
    )
    axes = (
        {0: "batch_size", 1: "sequence_length"},
        {0: "batch_size", 1: "total_sequence_length"},
        tuple({0: "batch_size", 2: "past_sequence_length"} for _ in inputs[2:]),
    )
    with _quiet(), emitting_operators():
        program = torch.onnx.export(
            _Traced(model, hidden).eval(),
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=[*outputs, *([HIDDEN_STATES] if hidden else [])],
            dynamic_shapes=axes,
            verbose=False,
        )
    assert program is not None
    graph = program.model.clone()
    for value in program.model.graph.initializers.values():
        value.const_value = None  # the exporter's optimiser keeps its last graph alive, but must not keep the weights
    _tidy(graph)
    if model.embed_positions is None:
        _compute_rope(graph, model.config, "", sliding=model.config.all_slide)
        _compute_rope(graph, model.config, "sliding_", sliding=True)
    return graph


def _compute_rope(model: ir.Model, config: ModelConfig, prefix: str, sliding: bool) -> None:
    """Replace the rotary tables, if the graph reads them, by their computation.

    ONNX Runtime constant-folds it when it loads the graph.

    The tables of a long context take megabytes. Since angles add up, products of two small tables give them:
    cos(a + b) = cos a cos b - sin a sin b, where a is the multiple of FINE below the position and b the remainder.
    Everything is in float32, the only type for which ONNX Runtime's build for browsers has Add, Sub and Mul.
    """
    if f"model.{prefix}cos" not in model.graph.initializers:
        return
    coarse, factor = -(-config.context_length // FINE), table_factor(config, sliding)
    turns = frequencies(config, sliding)
    angles = {
        "coarse": np.arange(coarse)[:, None, None] * FINE * turns,  # (C / FINE, 1, R / 2)
        "fine": np.arange(FINE)[None, :, None] * turns,  # (1, FINE, R / 2)
    }
    scale = {"coarse": factor, "fine": 1.0}
    waves = {
        f"{wave}.{part}": constant(
            model, f"{ROPE}{prefix}{wave}.{part}", (scale[part] * getattr(np, wave)(angle)).astype(np.float32)
        )
        for wave in ("cos", "sin")
        for part, angle in angles.items()
    }
    shape = constant(model, f"{ROPE}{prefix}shape", np.array([coarse * FINE, len(turns)]))
    nodes: list[ir.Node] = []

    def node(kind: str, *inputs: ir.Value, **attributes: ir.DataType) -> ir.Value:
        nodes.append(ir.node(kind, inputs, attributes, name=f"{ROPE}{prefix}{len(nodes)}"))
        return nodes[-1].outputs[0]

    for table, combine, first, second in (
        ("cos", "Sub", ("cos", "cos"), ("sin", "sin")),
        ("sin", "Add", ("sin", "cos"), ("cos", "sin")),
    ):
        products = [node("Mul", waves[f"{a}.coarse"], waves[f"{b}.fine"]) for a, b in (first, second)]
        whole = node("Reshape", node(combine, *products), shape)
        ir.convenience.replace_all_uses_with(
            model.graph.initializers[f"model.{prefix}{table}"], node("Cast", whole, to=ir.DataType.FLOAT)
        )
        del model.graph.initializers[f"model.{prefix}{table}"]
    model.graph.insert_before(model.graph[0], nodes)


def constant(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Add an array to the graph as an initializer."""
    return register(model, ir.tensor(array, name=name))


def register(model: ir.Model, tensor: ir.TensorProtocol) -> ir.Value:
    """Add a tensor, which may be lazy, to the graph as an initializer."""
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def _tidy(model: ir.Model) -> None:
    """Fix what the exporter gets wrong about ONNX Runtime's operators, and remove metadata."""
    for node in model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of the machine that exported
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = ""  # ONNX Runtime registers this operator in the default domain
        if node.op_type in ("SkipSimplifiedLayerNormalization", "SkipLayerNormalization"):
            for output in node.outputs[1:]:
                if not output.uses() and not output.is_graph_output():
                    output.name = ""  # marks an optional output as unused, so that it is not computed
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    _name_axes(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name, model.producer_version, model.graph.name = "kiara", None, "kiara"


def _name_axes(model: ir.Model) -> None:
    """Name the outputs' axes: the exporter leaves sums, and assumes as many logits as input tokens."""
    cache, logits = model.graph.inputs[2].shape, model.graph.outputs[0]
    assert cache is not None and logits.shape is not None
    for value in model.graph.outputs[1:]:
        if value.name != HIDDEN_STATES:
            value.shape = ir.Shape(["batch_size", cache[1], "total_sequence_length", cache[3]])
    for node in model.graph:
        for value in node.outputs if node.op_type == "Slice" else ():
            value.shape = None
    logits.shape = ir.Shape(["batch_size", "logits_length", logits.shape[2]])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's log and warnings, which do not help users."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
