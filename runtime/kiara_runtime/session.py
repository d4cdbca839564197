"""The graph in ONNX Runtime, and the key/value cache of its sequences. Knows token ids only.

GroupQueryAttention appends to the cache in place: each past/present pair is bound to one preallocated
buffer of the full context, so a step copies nothing but the logits that are asked for.

Shape letters: B sequences of a pass, S new tokens of each, C context length, V vocabulary.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
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
# A process that forks must not write into its parent's cache.
_PRIVATE: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class Session:
    """A loaded graph. Any number of `Decoder`s may run on it, from any number of threads."""

    def __init__(
        self,
        graph: Path,
        architecture: Architecture,
        threads: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """threads: by default one for every core. settings: of an ONNX Runtime session, by their own names."""
        if threads is not None:
            check_integer("threads", threads, 1, 1024)
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; the optimiser's warnings mean nothing to a user
        options.intra_op_num_threads = threads or 0
        for name, value in (settings or {}).items():
            options.add_session_config_entry(name, value)
        self.architecture = architecture
        try:
            self.graph = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own for every fault of a file
            raise UserError(f"{graph}: ONNX Runtime cannot open it ({' '.join(str(error).split())[:300]})") from None
        half = any(value.type == "tensor(float16)" for value in self.graph.get_inputs())
        self.cache_type = np.dtype(np.float16 if half else np.float32)
        self._check_interface(graph)

    def cache(self, slots: int) -> Cache:
        return Cache(self, slots)

    def decoder(self) -> Decoder:
        return Decoder(self)

    def _check_interface(self, graph: Path) -> None:
        """The graph must have the inputs, outputs and sizes that the manifest speaks of."""
        shape, values = self.architecture, (*self.graph.get_inputs(), *self.graph.get_outputs())
        fits = len(values) == 3 + 4 * shape.num_hidden_layers
        if fits:
            inputs, outputs = io_names(shape.num_hidden_layers)
            found = {value.name: (value.type, len(value.shape), *value.shape[1::2]) for value in values}
            cache = (f"tensor({self.cache_type.name.replace('32', '')})", 4, shape.num_key_value_heads, shape.head_dim)
            fits = sorted(found) == sorted((*inputs, *outputs)) and all(
                found[name] == cache for name in (*inputs[2:], *outputs[1:])
            )
        logits = next((value for value in values if value.name == "logits"), None)
        fits = fits and logits is not None and logits.type == "tensor(float)" and logits.shape[2:] == [shape.vocab_size]
        if not fits:
            raise UserError(f"{graph}: its inputs and outputs are not those that kiara.json describes; export it again")


class Cache:
    """Keys and values of `slots` sequences, each with room for the whole context."""

    def __init__(self, session: Session, slots: int) -> None:
        shape = session.architecture
        self._session = session
        self._inputs, self._outputs = io_names(shape.num_hidden_layers)
        size = (2 * shape.num_hidden_layers, slots, shape.num_key_value_heads, shape.context_length, shape.head_dim)
        # Straight from the system: pages that were never written to take no memory. NumPy would ask for huge pages,
        # and the first token of each head would make a whole context's worth of them resident.
        try:
            memory = mmap.mmap(-1, math.prod(size) * session.cache_type.itemsize, **_PRIVATE)
        except (OSError, OverflowError):
            raise MemoryError(f"a cache of {math.prod(size) * session.cache_type.itemsize >> 20} MiB") from None
        self.buffers = np.frombuffer(memory, dtype=session.cache_type).reshape(size)
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}

    def run(
        self, ids: NDArray[np.int64], lengths: Sequence[int], first: int = 0, every: bool = False
    ) -> NDArray[np.float32]:
        """One pass over the slots `first` to `first + B`: their logits after the last token, float32 (B, V).

        ids: (B, S), padded at the right. lengths: of each sequence once its new tokens are in. Sequences may
        differ in length where all are new or S is 1. every: logits after each token, (B, S, V).
        """
        shape, (rows, new) = self._session.architecture, ids.shape
        longest = max(lengths)
        if not (0 < new <= longest <= shape.context_length and min(lengths) > 0 and len(lengths) == rows):
            raise ValueError(
                f"{ids.shape} new tokens make sequences of {lengths} in a context of {shape.context_length}"
            )
        mask = (np.arange(longest) < np.asarray(lengths)[:, None]).astype(np.int64)  # (B, longest)
        whole = every or new == 1 or not mask.all()  # of a padded prompt the last column is not every row's last token
        if not whole:
            mask[0, :2] = 2, 0  # asks the graph for the last column's logits alone, and leaves the length, a sum
        logits = np.empty((rows, new if whole else 1, shape.vocab_size), dtype=np.float32)
        bind = self._binding(first, first + rows)
        bind.bind_ortvalue_input("input_ids", ort.OrtValue.ortvalue_from_numpy(ids))
        bind.bind_ortvalue_input("attention_mask", ort.OrtValue.ortvalue_from_numpy(mask))
        bind.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        self._session.graph.run_with_iobinding(bind)
        if every:
            return logits
        return logits[range(rows), np.asarray(lengths) - 1] if whole and new > 1 else logits[:, 0]

    def _binding(self, first: int, end: int) -> ort.IOBinding:
        """Past and present of a run of slots, bound to the same memory."""
        if (first, end) not in self._bindings:
            bind = self._bindings[first, end] = self._session.graph.io_binding()
            for past, present, buffer in zip(self._inputs[2:], self._outputs[1:], self.buffers, strict=True):
                shared = ort.OrtValue.ortvalue_from_numpy(buffer[first:end])
                bind.bind_ortvalue_input(past, shared)
                bind.bind_ortvalue_output(present, shared)
        return self._bindings[first, end]


class Decoder:
    """One sequence: its cache and its position.

    Called with token ids it appends them and returns the logits after the last, float32 (V,).
    """

    def __init__(self, session: Session) -> None:
        self.cache, self.position = session.cache(1), 0

    def __call__(self, ids: Sequence[int]) -> NDArray[np.float32]:
        rest = np.asarray(ids, dtype=np.int64)
        while True:
            room = CHUNK - self.position % CHUNK
            logits = self._pass(rest[:room], every=False)
            rest = rest[room:]
            if not len(rest):
                return logits[0]

    def append(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """One pass over `ids` (S,), which join the sequence; logits after each, float32 (S, V)."""
        return self._pass(ids, every=True)[0]

    def _pass(self, ids: NDArray[np.int64], every: bool) -> NDArray[np.float32]:
        end = self.position + len(ids)
        logits = self.cache.run(ids[None], [end], every=every)
        self.position = end
        return logits
