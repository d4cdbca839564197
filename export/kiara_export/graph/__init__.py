"""The ONNX graph: traced from the training module, lowered to what a variant ships, written to disk."""

from kiara_export.graph import lower
from kiara_export.graph.int8_cache import write_int8_cache
from kiara_export.graph.onnx_file import beside, drop, graph_bytes, save
from kiara_export.graph.trace import trace

__all__ = ["beside", "drop", "graph_bytes", "lower", "save", "trace", "write_int8_cache"]
