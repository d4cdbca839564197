"""The graph in ONNX Runtime, and the KV cache of its sequences. Handles token ids only.

GroupQueryAttention appends to the cache in place: each past/present pair is bound to one preallocated
buffer of the full context, so a step copies only the requested logits.

Shape letters: B sequences of a pass, S new tokens of each, C context length, V vocabulary, L layers, K key/value heads,
E head size.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from kiara_runtime.bundle import HIDDEN_STATES, Architecture, io_names
from kiara_runtime.engine.buffers import zeros
from kiara_runtime.engine.tables import Tables
from kiara_runtime.errors import UserError
from kiara_runtime.sampling import check_integer
from kiara_runtime.system import give_back, threads_within_quota

Device = Literal["auto", "cpu", "cuda"]
KVCache = Literal["fp32", "int8"]
CHUNK = 256  # tokens per pass of a `Decoder`; bounds the size of the logits
INT8_CACHE_SINCE = (1, 28)  # version of ONNX Runtime; tried: 1.24 and 1.26 fail, 1.28, 1.30 and 1.32 run
_CUDA = "CUDAExecutionProvider"
_CACHE_TYPES = {"float16": np.dtype(np.float16), "int8": np.dtype(np.int8)}  # by ONNX Runtime's names; else float32


class Session:
    """A loaded graph. Any number of `Decoder`s may run on it, from any number of threads."""

    def __init__(
        self,
        graph: Path,
        architecture: Architecture,
        threads: int | None = None,
        settings: Mapping[str, str] | None = None,
        device: Device = "cpu",
        profile: Path | None = None,
    ) -> None:
        """threads: one per core by default, or as many as the CPU quota of a container keeps busy.

        settings: config entries of the ONNX Runtime session.
        device: "auto" uses CUDA if it works. profile: beginning of the name of a file that gets the time of each node,
        once `graph.end_profiling` is called. Raises UserError if the device is "cuda" and that does not work.
        """
        if threads is not None:
            check_integer("threads", threads, 1, 1024)
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only; the optimiser's warnings mean nothing to a user
        options.intra_op_num_threads = threads or threads_within_quota() or 0
        # The exporter has fused everything already; higher levels take time and find nothing.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        for name, value in (settings or {}).items():
            options.add_session_config_entry(name, value)
        self.architecture, providers = architecture, _providers(device)
        try:
            self._tables = None if _CUDA in providers else Tables(graph)
            if self._tables:
                self._tables.add_to(options)
            self.graph = ort.InferenceSession(str(graph), options, providers=providers)
        except Exception as error:  # onnxruntime has its own exception classes for invalid files
            raise UserError(
                graph, f"ONNX Runtime cannot open it ({' '.join(str(error).split())[:300]})", "export the bundle again"
            ) from None
        self.device = "cuda" if _CUDA in self.graph.get_providers() else "cpu"
        _check_device(device, self.device)
        self.cache_type = _cache_type(self.graph)
        self.hidden_size: int | None = None  # of the hidden states, where the graph gives them
        self._check_interface(graph)
        if self._tables:
            self._tables.forget()
        give_back()  # memory used to pack the weights: a quarter of the total for int8-dynamic

    def cache(self, slots: int) -> Cache:
        return Cache(self, slots)

    def decoder(self) -> Decoder:
        return Decoder(self)

    def _check_interface(self, graph: Path) -> None:
        """Check that the graph has the inputs, outputs and sizes that the manifest describes."""
        shape, outputs = self.architecture, {value.name: value for value in self.graph.get_outputs()}
        hidden = outputs.pop(HIDDEN_STATES, None)
        values = (*self.graph.get_inputs(), *outputs.values())
        fits = len(values) == 3 + 4 * shape.num_hidden_layers
        if fits:
            inputs, given = io_names(shape.num_hidden_layers)
            found = {value.name: (value.type, len(value.shape), *value.shape[1::2]) for value in values}
            cache = (f"tensor({self.cache_type.name.replace('32', '')})", 4, shape.num_key_value_heads, shape.head_dim)
            fits = sorted(found) == sorted((*inputs, *given)) and all(
                found[name] == cache for name in (*inputs[2:], *given[1:])
            )
        logits = next((value for value in values if value.name == "logits"), None)
        fits = fits and logits is not None and logits.type == "tensor(float)" and logits.shape[2:] == [shape.vocab_size]
        if hidden is not None:
            size = hidden.shape[-1]
            fits = fits and hidden.type == "tensor(float)" and isinstance(size, int)
            self.hidden_size = size if isinstance(size, int) else None
        if not fits:
            raise UserError(graph, "its inputs and outputs do not match kiara.json", "export the bundle again")


class Cache:
    """Keys and values of `slots` sequences, each with room for the whole context.

    buffers: (2 L, slots, K, C, E), keys, then values, of each layer in turn; exists only if `copies`, which is on the
    CPU.
    """

    def __init__(self, session: Session, slots: int) -> None:
        shape = session.architecture
        self._session = session
        self._inputs, self._outputs = io_names(shape.num_hidden_layers)
        size = (2 * shape.num_hidden_layers, slots, shape.num_key_value_heads, shape.context_length, shape.head_dim)
        self._size, self._slot_bytes = size, math.prod(size[2:]) * session.cache_type.itemsize
        self._bindings: dict[tuple[int, int, bool], ort.IOBinding] = {}
        # Reused, as allocating that much memory takes a noticeable part of a step.
        self._last = np.empty((slots, 1, shape.vocab_size), dtype=np.float32)
        self.copies: bool = session.device == "cpu"
        if self.copies:
            self.buffers = zeros(size, session.cache_type)
            self._address: int = self.buffers.ctypes.data
        else:
            kept = ort.OrtValue.ortvalue_from_shape_and_type(size, session.cache_type, session.device, 0)
            self._kept, self._address = kept, kept.data_ptr()

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions from one slot to another."""
        self.buffers[:, target, :, :length] = self.buffers[:, source, :, :length]

    def run(
        self,
        ids: NDArray[np.int64],
        lengths: Sequence[int],
        first: int = 0,
        every: bool = False,
        hidden: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Run a pass over slots `first` to `first + B`; return the logits after each sequence's last token, float32
        (B, V). The next pass overwrites them.

        ids: (B, S), padded on the right. lengths: of each sequence, new tokens included; they may differ if all
        sequences are new or S is 1. every: return the logits after every token, (B, S, V), never overwritten.
        hidden: (B, S, D), to be filled with the hidden states of the new tokens.
        """
        shape, (rows, new) = self._session.architecture, ids.shape
        longest = max(lengths)
        if not (0 < new <= longest <= shape.context_length and min(lengths) > 0 and len(lengths) == rows):
            raise ValueError(
                f"{ids.shape} new tokens and lengths {lengths} do not fit a context of {shape.context_length}"
            )
        mask = (np.arange(longest) < np.asarray(lengths)[:, None]).astype(np.int64)  # (B, longest)
        whole = every or new == 1 or not mask.all()  # with padding, the last column is not every row's last token
        if not whole:
            mask[0, :2] = 2, 0  # selects the last column's logits only; the sum, which is the length, is unchanged
        given = (rows, new if whole else 1, shape.vocab_size)
        logits = np.empty(given, dtype=np.float32) if every or given[1] > 1 else self._last[:rows]
        bind = self._binding(first, first + rows, hidden is not None)
        if hidden is not None:
            bind.bind_output(HIDDEN_STATES, "cpu", 0, np.float32, hidden.shape, hidden.ctypes.data)
        bind.bind_cpu_input("input_ids", ids)
        bind.bind_cpu_input("attention_mask", mask)
        bind.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.graph.run_with_iobinding(bind)
        if every:
            return logits
        return logits[range(rows), np.asarray(lengths) - 1] if whole and new > 1 else logits[:, 0]

    def _binding(self, first: int, end: int, hidden: bool) -> ort.IOBinding:
        """The I/O binding of consecutive slots: past and present are the same memory. hidden: has the hidden states."""
        if (first, end, hidden) not in self._bindings:
            bind = self._bindings[first, end, hidden] = self._session.graph.io_binding()
            kind, shape = self._session.cache_type, (end - first, *self._size[2:])
            for layer, (past, present) in enumerate(zip(self._inputs[2:], self._outputs[1:], strict=True)):
                address = self._address + (layer * self._size[1] + first) * self._slot_bytes
                bind.bind_input(past, self._session.device, 0, kind, shape, address)
                bind.bind_output(present, self._session.device, 0, kind, shape, address)
        return self._bindings[first, end, hidden]


def _cache_type(graph: ort.InferenceSession) -> np.dtype[np.generic]:
    """The type of keys and values in the graph's cache."""
    types = {value.type for value in graph.get_inputs()}
    return next((kind for name, kind in _CACHE_TYPES.items() if f"tensor({name})" in types), np.dtype(np.float32))


def int8_cache_runs() -> bool:
    """Whether this ONNX Runtime has attention with an int8 KV cache on the CPU."""
    return tuple(map(int, ort.__version__.split(".")[:2])) >= INT8_CACHE_SINCE


def check_int8_cache() -> None:
    """Raise UserError if this ONNX Runtime cannot run a graph with an int8 KV cache."""
    if not int8_cache_runs():
        needed = ".".join(map(str, INT8_CACHE_SINCE))
        problem = f"int8 needs ONNX Runtime {needed}, and this is {ort.__version__}"
        raise UserError("kv_cache", problem, "pip install --upgrade onnxruntime, or use fp32")


def may_use_cuda(device: Device) -> bool:
    return device != "cpu" and _CUDA in ort.get_available_providers()


def _providers(device: Device) -> list[str]:
    if device not in ("auto", "cpu", "cuda"):
        raise UserError("device", "is not a device", "use auto, cpu or cuda", value=device)
    if device == "cuda" and not may_use_cuda(device):
        raise UserError("device", "this ONNX Runtime has no CUDA", "pip install 'kiara-runtime[gpu]', or use cpu")
    return [_CUDA, "CPUExecutionProvider"] if may_use_cuda(device) else ["CPUExecutionProvider"]


def _check_device(wanted: Device, found: str) -> None:
    """Raise or warn if ONNX Runtime fell back to the CPU, as it does without CUDA's libraries or a GPU."""
    if found == "cuda" or not may_use_cuda(wanted):
        return
    if wanted == "cuda":
        raise UserError("device", "CUDA failed to start (it needs a driver, CUDA 12 and cuDNN 9)", "use cpu")
    warnings.warn("device: CUDA failed to start; running on the CPU", stacklevel=4)


class Decoder:
    """One sequence: its cache and its position.

    A call appends token ids and returns the logits after the last, float32 (V,), valid until the next call.
    """

    def __init__(self, session: Session) -> None:
        self.cache, self.position = session.cache(1), 0

    def __call__(self, ids: Sequence[int]) -> NDArray[np.float32]:
        rest = np.asarray(ids, dtype=np.int64)
        while len(rest) > CHUNK + 1:  # never a pass of one token at the end: its last bit differs
            self._pass(rest[:CHUNK], every=False)
            rest = rest[CHUNK:]
        return self._pass(rest, every=False)[0]

    def append(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append `ids` (S,) in one pass; return the logits after each, float32 (S, V)."""
        return self._pass(ids, every=True)[0]

    def _pass(self, ids: NDArray[np.int64], every: bool) -> NDArray[np.float32]:
        end = self.position + len(ids)
        logits = self.cache.run(ids[None], [end], every=every)
        self.position = end
        return logits
