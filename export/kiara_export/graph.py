"""The ONNX graph of a model, traced from the training module itself.

`kiara.ops` puts the fused operators of ONNX Runtime in the place of its eager bodies while the exporter
traces, so this module only wraps the model in the names and shapes that every runtime expects:

inputs   input_ids, attention_mask (int64, `[batch_size, ...]`), past_key_values.{i}.key|value
outputs  logits (float32), present.{i}.key|value

A mask of ones alone, an ordinary prompt's, asks for the logits after the last token; a zero anywhere, as in a
padded batch, asks for all of them. Each runtime reads the last of what it gets, so each is content with one.

The cache is `[batch_size, kv_heads, past, head_size]` with static heads and head size: transformers.js
reads them off the graph. Lengths are computed in the graph, so there are no further inputs.
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
from kiara.model import GPT
from kiara.ops import Lengths
from kiara_runtime.bundle import io_names

OPSET = 21


class _Traced(nn.Module):
    """The model with flat inputs and outputs, and the lengths read off the attention mask."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *flat_past: Tensor) -> tuple[Tensor, ...]:
        lengths = Lengths(
            last=(attention_mask.sum(dim=1) - 1).to(torch.int32),
            total=torch.scalar_tensor(attention_mask.shape[1], dtype=torch.int32),
            wanted=-attention_mask.amin(dim=(0, 1), keepdim=True).reshape(1),
        )
        past = list(zip(flat_past[::2], flat_past[1::2], strict=True))
        logits, present = self.model(input_ids, past, lengths)
        return (logits.float(), *(tensor for pair in present for tensor in pair))


def trace(model: GPT) -> ir.Model:
    """The float32 graph of `model`, its weights inside."""
    config = model.config
    inputs, outputs = io_names(config.num_hidden_layers)
    batch, new, past = 2, 3, 5  # any sizes above 1 will do: the axes are named below
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
    with _quiet():
        program = torch.onnx.export(
            _Traced(model).eval(),
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=axes,
            verbose=False,
        )
    assert program is not None
    graph = program.model.clone()
    for value in program.model.graph.initializers.values():
        value.const_value = None  # the exporter's optimiser holds on to the last graph it saw: not to the weights, too
    _tidy(graph)
    if model.embed_positions is None:
        _compute_rope(graph, model.config)
    return graph


def _compute_rope(model: ir.Model, config: ModelConfig) -> None:
    """Put the computation of the rotary tables where the tables are: ONNX Runtime folds it when it loads the graph.

    A long context's tables would be megabytes. In float64 and from the same frequencies, as `kiara.ops.rope_tables`.
    """
    tables = {name: model.graph.initializers[f"model.{name}"] for name in ("cos", "sin")}
    steps = -np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    bounds = [
        constant(model, f"rope.{n}", np.array(v, np.float64)) for n, v in enumerate((0, config.context_length, 1))
    ]
    positions = ir.node("Range", bounds)
    column = ir.node("Unsqueeze", [positions.outputs[0], constant(model, "rope.axis", np.array([1]))])
    frequencies = constant(model, "rope.frequencies", config.rope_theta**steps)
    angles = ir.node("Mul", [column.outputs[0], frequencies])
    nodes = [positions, column, angles]
    for name, table in tables.items():
        wave = ir.node(name.capitalize(), [angles.outputs[0]])
        cast = ir.node("Cast", [wave.outputs[0]], {"to": ir.DataType.FLOAT})
        ir.convenience.replace_all_uses_with(table, cast.outputs[0])
        del model.graph.initializers[f"model.{name}"]
        nodes += [wave, cast]
    model.graph.insert_before(model.graph[0], nodes)


def constant(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """A new tensor of the graph."""
    return register(model, ir.tensor(array, name=name))


def register(model: ir.Model, tensor: ir.TensorProtocol) -> ir.Value:
    """Make a tensor, which may be a lazy one, the graph's."""
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def _tidy(model: ir.Model) -> None:
    """What the exporter cannot know of ONNX Runtime's operators, and what a bundle need not carry."""
    for node in model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of the machine that exported
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = ""  # an operator of ONNX Runtime's that lives in the default domain
        if node.op_type in ("SkipSimplifiedLayerNormalization", "SkipLayerNormalization"):
            for output in node.outputs[1:]:
                if not output.uses() and not output.is_graph_output():
                    output.name = ""  # an output that is not asked for, and so not computed
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    _name_axes(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name, model.producer_version, model.graph.name = "kiara", None, "kiara"


def _name_axes(model: ir.Model) -> None:
    """Give the outputs their own axes: the exporter leaves sums, and takes the logits for as many as the inputs."""
    cache, logits = model.graph.inputs[2].shape, model.graph.outputs[0]
    assert cache is not None and logits.shape is not None
    for value in model.graph.outputs[1:]:
        value.shape = ir.Shape(["batch_size", cache[1], "total_sequence_length", cache[3]])
    for node in model.graph:
        for value in node.outputs if node.op_type == "Slice" else ():
            value.shape = None
    logits.shape = ir.Shape(["batch_size", "logits_length", logits.shape[2]])


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks are for those who write exporters."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
