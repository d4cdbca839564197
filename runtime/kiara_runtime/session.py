"""The graph in ONNX Runtime, and the key/value cache of a sequence. Knows token ids only.

GroupQueryAttention appends to the cache in place: each past/present pair is bound to one preallocated
buffer of the full context, so a step copies nothing but the logits that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from kiara_runtime.bundle import Architecture, io_names
from kiara_runtime.errors import UserError
from kiara_runtime.sampling import check_integer

# Prompts are cut at multiples of this position: bounds the logits held at once, and makes the passes, and
# with them the last bit of every activation, depend on the tokens alone.
CHUNK = 256


class Session:
    """A loaded graph. Any number of `Decoder`s may run on it, from any number of threads."""

    def __init__(self, graph: Path, architecture: Architecture, threads: int | None = None) -> None:
        if threads is not None:
            check_integer("threads", threads, 1, 1024)
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; the optimiser's warnings mean nothing to a user
        options.intra_op_num_threads = threads or 0
        self.architecture = architecture
        try:
            self.graph = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own for every fault of a file
            raise UserError(f"{graph}: ONNX Runtime cannot open it ({' '.join(str(error).split())[:300]})") from None
        self._check_interface(graph)

    def decoder(self) -> Decoder:
        return Decoder(self)

    def _check_interface(self, graph: Path) -> None:
        """The graph must have the inputs, outputs and sizes that the manifest speaks of."""
        shape = self.architecture
        inputs, outputs = io_names(shape.num_hidden_layers)
        found = {value.name: value.shape for value in (*self.graph.get_inputs(), *self.graph.get_outputs())}
        cache = {"kv_heads": (1, shape.num_key_value_heads), "head_size": (3, shape.head_dim)}
        fits = sorted(found) == sorted((*inputs, *outputs)) and found["logits"][2] == shape.vocab_size
        for axis, size in cache.values():
            fits = fits and all(found[name][axis] == size for name in inputs[2:])
        if not fits:
            raise UserError(f"{graph}: its inputs and outputs are not those that kiara.json describes; export it again")


class Decoder:
    """One sequence: its cache and its position.

    Called with token ids it appends them and returns the logits after the last, float32 (V,).
    """

    def __init__(self, session: Session) -> None:
        shape = session.architecture
        self._session, self.position = session, 0
        self._mask = np.ones((1, shape.context_length), dtype=np.int64)
        self._binding = session.graph.io_binding()
        # Zeroed pages cost nothing until they are written to.
        size = (1, shape.num_key_value_heads, shape.context_length, shape.head_dim)
        inputs, outputs = io_names(shape.num_hidden_layers)
        self._cache = [np.zeros(size, dtype=np.float32) for _ in inputs[2:]]  # the binding only points to them
        for past, present, buffer in zip(inputs[2:], outputs[1:], self._cache, strict=True):
            shared = ort.OrtValue.ortvalue_from_numpy(buffer)
            self._binding.bind_ortvalue_input(past, shared)
            self._binding.bind_ortvalue_output(present, shared)

    def __call__(self, ids: Sequence[int]) -> NDArray[np.float32]:
        rest = np.asarray(ids, dtype=np.int64)
        while True:
            room = CHUNK - self.position % CHUNK
            logits = self.append(rest[:room])
            rest = rest[room:]
            if not len(rest):
                return logits[-1]

    def append(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """One pass over `ids` (S,), which join the sequence; logits after each, float32 (S, V)."""
        shape, end = self._session.architecture, self.position + len(ids)
        if not 0 < len(ids) <= shape.context_length - self.position:
            raise ValueError(f"{len(ids)} tokens at position {self.position} of a context of {shape.context_length}")
        logits = np.empty((1, len(ids), shape.vocab_size), dtype=np.float32)
        bind = self._binding
        bind.bind_ortvalue_input("input_ids", ort.OrtValue.ortvalue_from_numpy(ids[None]))
        bind.bind_ortvalue_input("attention_mask", ort.OrtValue.ortvalue_from_numpy(self._mask[:, :end]))
        bind.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        self._session.graph.run_with_iobinding(bind)
        self.position = end
        return logits[0]
