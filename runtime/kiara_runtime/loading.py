"""Opens a bundle: checks its files, loads tokenizer and graph, and returns a `Model`."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import onnxruntime as ort

from kiara_runtime.bundle import GRAPH_FOLDER, Bundle, find_variant
from kiara_runtime.engine import (
    QUEUE,
    SLOTS,
    Device,
    Engine,
    KVCache,
    PromptStore,
    Session,
    check_int8_cache,
    may_use_cuda,
)
from kiara_runtime.errors import UserError
from kiara_runtime.model import Model
from kiara_runtime.sampling import check_integer
from kiara_runtime.system import machine
from kiara_runtime.tokens import load_tokenizer


def load(
    path: str | Path | Bundle,
    variant: str | None = None,
    threads: int | None = None,
    device: Device = "auto",
    slots: int = SLOTS,
    queue: int = QUEUE,
    prompt_cache: str | Path | None = None,
    settings: Mapping[str, str] | None = None,
    kv_cache: KVCache = "fp32",
) -> Model:
    """Load a bundle, given as a folder or an open `Bundle`, after checking the size and hash of every file it needs.

    variant: such as "int8", by default the first one that the bundle lists. threads: of ONNX Runtime, by default one
    per core, or as many as the CPU quota of a container allows. device: "cpu", "cuda" (for the variant fp16 only), or
    "auto" for CUDA where it works. slots: sequences that run at once. queue: sequences that may wait for a slot.
    prompt_cache: a folder that keeps the KV cache of prompts across restarts. settings: ONNX Runtime session options by
    name. kv_cache: "int8" takes a quarter of the memory; it decodes faster, the more the longer the context, and reads
    prompts slower. Raises UserError for a bundle that is missing, damaged or too new.
    """
    check_integer("slots", slots, 1, 1024)
    check_integer("queue", queue, 0, 1 << 20)
    bundle = path if isinstance(path, Bundle) else Bundle.open(path)
    device = _device(bundle, variant, device)
    int8_cache = _wants_int8(kv_cache, device)
    bundle.check(name for name in bundle.files_of(variant) if not name.startswith(GRAPH_FOLDER))
    with ThreadPoolExecutor(1) as hashing:  # in parallel with loading the tokenizer
        names = [name for name in bundle.files_of(variant) if name.startswith(GRAPH_FOLDER)]
        checking = hashing.submit(bundle.check, names)
        tokenizer = load_tokenizer(bundle)
        checking.result()
    graph = bundle.graph_of(variant, int8_cache)
    session = Session(graph, bundle.architecture, threads, settings, device)
    store = None
    if prompt_cache is not None and session.device == "cpu":
        _make_folder(Path(prompt_cache))
        store = PromptStore(Path(prompt_cache), _identity(bundle, graph, variant, settings or {}))
    return Model(
        tokenizer,
        Engine(session, slots, queue, store),
        bundle.architecture.context_length,
        bundle.architecture.vocab_size,
        bundle.eos_token_ids,
        bundle.bos_token_id,
    )


def _device(bundle: Bundle, variant: str | None, device: Device) -> Device:
    """The device to try. On CUDA, attention computes in float16 only (ONNX Runtime's list of kernels); a variant in
    float32 would have its attention on the CPU, and its whole cache copied in every step.
    """
    name = variant or bundle.variants[0]
    record = find_variant(name)
    if record is None or record.cache == "float16" or not may_use_cuda(device):
        return device
    if device == "cuda":
        remedy = "name the variant fp16 (`kiara export --quantize fp16`), or use cpu"
        raise UserError("device", f"attention on CUDA needs float16, and {name} computes in float32", remedy)
    return "cpu"


def _wants_int8(kv_cache: KVCache, device: Device) -> bool:
    """Whether to open the graph with an int8 KV cache. Raises UserError if `kv_cache` is unknown or cannot be had."""
    if kv_cache not in get_args(KVCache):
        raise UserError("kv_cache", "is not a type of cache", "use int8 or fp32", value=kv_cache)
    if kv_cache == "fp32":
        return False
    if may_use_cuda(device):
        raise UserError("kv_cache", "runs on the CPU only", "use fp32, or the device cpu", value=kv_cache)
    check_int8_cache()
    return True


def _make_folder(folder: Path) -> None:
    """Create the folder before any work, so that a bad path fails early. An existing folder may be read-only."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            "prompt_cache", f"{folder}: {error.strerror}", "give an existing folder, or one that can be created"
        ) from None


def _identity(bundle: Bundle, graph: Path, variant: str | None, settings: Mapping[str, str]) -> str:
    """Everything that determines the bits of a KV cache: graphs, ONNX Runtime, processor, settings."""
    names = [name for name in bundle.files_of(variant) if name.startswith(GRAPH_FOLDER)]
    graphs = [str(bundle.manifest["files"][name]["sha256"]) for name in names]
    return "\n".join((graph.name, *graphs, ort.__version__, machine()["cpu"], *map(str, sorted(settings.items()))))
