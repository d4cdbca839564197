"""Graphs on disk, written a tensor at a time: serialising a whole graph would hold three copies of the weights.

The file is an ordinary ModelProto. The library serialises everything but the weights; these follow as `initializer`
fields of the same GraphProto, whose length is known before any weight is loaded.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

MAX_EMBEDDED_BYTES = 1_900_000_000  # of weights inside the graph's own file: a protobuf is limited to 2 GiB
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # field numbers in ModelProto, GraphProto and TensorProto


def save(graph: ir.Model, path: Path, apart: bool = False) -> None:
    """Write a graph with its weights embedded, or in a file beside it if `apart` or if a protobuf cannot hold them."""
    tensors = {name: value.const_value for name, value in graph.graph.initializers.items() if value.const_value}
    beside(path).unlink(missing_ok=True)
    if apart or sum(tensor.nbytes for tensor in tensors.values()) > MAX_EMBEDDED_BYTES:
        ir.save(graph, path, external_data=beside(path).name)
        return
    bare = graph.clone()
    bare.graph.initializers.clear()
    model = ir.to_proto(bare)
    body = model.graph.SerializeToString()
    model.ClearField("graph")
    heads = [_head(name, tensor) for name, tensor in tensors.items()]
    sizes = [len(head) + tensor.nbytes for head, tensor in zip(heads, tensors.values(), strict=True)]
    openings = [_opening(INITIALIZER, size) for size in sizes]
    total = len(body) + sum(map(len, openings)) + sum(sizes)
    with path.open("wb") as file:
        file.write(model.SerializeToString() + _opening(GRAPH, total) + body)
        for opening, head, tensor in zip(openings, heads, tensors.values(), strict=True):
            data = tensor.tobytes()
            assert len(data) == tensor.nbytes
            file.write(opening + head)
            file.write(data)


def places(path: Path, model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Offset and length of each weight's bytes in a file that `save` wrote, for those that are embedded.

    model: what the file holds. Its initializers are the end of the file, and a tensor's data is the end of the tensor.
    """
    found, end = dict[str, tuple[int, int]](), path.stat().st_size
    for tensor in reversed(model.graph.initializer):
        size = tensor.ByteSize()
        if tensor.HasField("raw_data"):
            found[tensor.name] = end - len(tensor.raw_data), len(tensor.raw_data)
        end -= len(_opening(INITIALIZER, size)) + size
    return found


def beside(path: Path) -> Path:
    """The external weights file of a large graph, named as transformers.js expects."""
    return path.with_name(f"{path.name}_data")


def drop(path: Path) -> None:
    """Delete a graph and its external weights file."""
    path.unlink()
    beside(path).unlink(missing_ok=True)


def graph_bytes(path: Path) -> int:
    """Size of a graph, including its weights."""
    return path.stat().st_size + (beside(path).stat().st_size if beside(path).exists() else 0)


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """A TensorProto up to its data, which the caller appends."""
    proto = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    return proto.SerializeToString() + _opening(RAW_DATA, tensor.nbytes)


def _opening(field: int, size: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return _varint(field << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
