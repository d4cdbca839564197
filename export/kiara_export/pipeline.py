"""Checkpoint to bundle: trace, quantise, verify, write. The folder appears only when all of it held."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from kiara import sizes
from kiara.checkpoint import STATE_FILE, WEIGHTS_FILE, find_checkpoint, load_model, read_json
from kiara.console import logger, progress
from kiara.evaluate import held_out_text
from kiara.files import new_folder
from kiara.model import GPT
from kiara_export.graph import trace
from kiara_export.interop import write_interop
from kiara_export.quantize import quantize_int8
from kiara_export.receipt import Receipt
from kiara_export.verify import Judge, verify_float32
from kiara_runtime.bundle import MANIFEST, VARIANT_FILES, Architecture, golden_ids, write_manifest
from kiara_runtime.errors import UserError
from kiara_runtime.session import Session
from kiara_runtime.tokenizer import END_OF_TEXT, Tokenizer


def export(source: Path, out: Path, variants: list[str], text: str | None = None) -> Receipt:
    """Write the bundle `out` from a checkpoint, or from the best one of a run.

    variants: names out of VARIANT_FILES. text: a source of held-out text; by default the validation split
    that the checkpoint was trained against. Raises UserError, and writes nothing, where verification fails.
    """
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is no bundle; name another or move it away")
    checkpoint = find_checkpoint(source)
    model, tokenizer = load_model(checkpoint)
    judge = Judge(model, tokenizer, split := held_out_text(checkpoint, tokenizer, text))
    logger.info("Exporting %s", checkpoint)
    with new_folder(out) as folder:
        graphs = {name: folder / file for name, file in VARIANT_FILES.items()}
        (folder / "onnx").mkdir()
        with progress("Tracing the graph", 2) as advance:
            graph = trace(model)
            ir.save(graph, graphs["fp32"])
            advance(1)
            if "int8" in variants:
                quantize_int8(graph)
                ir.save(graph, graphs["int8"])
            advance(1)
        shape = architecture(model)
        float32 = Session(graphs["fp32"], shape)
        agreements = verify_float32(float32, model, split)
        with progress("Verifying", judge.tokens * (1 + ("int8" in variants))) as advance:
            reference = judge.measure_float32(float32, advance)
            qualities = {
                name: judge.measure(name, Session(graphs[name], shape), reference, advance)
                for name in variants
                if name != "fp32"
            }
        if "fp32" not in variants:
            graphs["fp32"].unlink()
        receipt = Receipt(
            name=out.name,
            parameters=sizes.parameters(model.config, model.vocab_size),
            context_length=model.config.context_length,
            sizes={name: graphs[name].stat().st_size for name in VARIANT_FILES if name in variants},
            float32=reference,
            agreements=agreements,
            qualities=qualities,
            provenance=_provenance(checkpoint),
        )
        _write_bundle(folder, model, tokenizer, receipt)
    return receipt


def architecture(model: GPT) -> Architecture:
    """What the runtime must know of the graph of `model`."""
    config = model.config
    return Architecture(
        num_hidden_layers=config.num_hidden_layers,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        context_length=config.context_length,
        vocab_size=model.vocab_size,
    )


def _write_bundle(folder: Path, model: GPT, tokenizer: Tokenizer, receipt: Receipt) -> None:
    """Everything besides the graphs, the manifest last."""
    tokenizer.save(folder)
    first = next(iter(receipt.sizes))
    write_interop(folder, model, tokenizer, VARIANT_FILES[first])
    receipt.write(folder)
    end = tokenizer.special_tokens[END_OF_TEXT]
    write_manifest(
        folder,
        {
            "name": receipt.name,
            "architecture": {**model.config.model_dump(), "vocab_size": model.vocab_size, "mlp": "relu2"},
            "parameters": receipt.parameters,
            "bos_token_id": end,
            "eos_token_ids": [end],
            "tokenizer": {"golden": golden_ids(tokenizer)},
            "variants": {name: {"file": VARIANT_FILES[name]} for name in receipt.sizes},
            "receipt": receipt.figures(),
            "provenance": receipt.provenance,
        },
    )


def _provenance(checkpoint: Path) -> dict[str, Any]:
    """Where the weights come from: hashes and versions, no paths."""
    state = read_json(checkpoint / STATE_FILE)
    return {
        "checkpoint": checkpoint.name,
        "step": state["step"],
        "seed": state["seed"],
        "data_fingerprint": state["dataset_fingerprint"],
        **{f"{name}_sha256": _sha256(checkpoint / name) for name in ("config.json", "tokenizer.json", WEIGHTS_FILE)},
        "versions": {name: version(name) for name in ("kiara-slm", "torch", "onnx", "onnxruntime")},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
