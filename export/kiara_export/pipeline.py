"""Checkpoint to bundle: trace, quantise, verify, write. The folder appears only when all of it held."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from kiara import sizes
from kiara.checkpoint import WEIGHTS_FILE, TokenIds, find_checkpoint, load_model, read_state
from kiara.console import logger, progress
from kiara.data import Split
from kiara.evaluate import Metrics, held_out_text
from kiara.files import new_folder
from kiara.model import GPT
from kiara_export.graph import trace
from kiara_export.interop import write_interop
from kiara_export.quantize import quantize_int8
from kiara_export.receipt import Receipt
from kiara_export.verify import Agreement, Judge, Quality, verify_float32
from kiara_runtime.bundle import (
    MANIFEST,
    VARIANT_FILES,
    Architecture,
    Bundle,
    golden_ids,
    hash_file,
    write_manifest,
)
from kiara_runtime.errors import UserError
from kiara_runtime.session import Session
from kiara_runtime.tokenizer import Tokenizer


def export(source: Path, out: Path, variants: list[str], text: str | None = None) -> dict[str, Any]:
    """Write the bundle `out` from a checkpoint, or from the best one of a run; returns its figures by variant.

    variants: names out of VARIANT_FILES. text: a source of held-out text; by default the validation split
    that the checkpoint was trained against. Does nothing where `out` is up to date. Raises UserError, and
    writes nothing, where verification fails.
    """
    if out.exists() and not (out / MANIFEST).is_file() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is no bundle; name another or move it away")
    checkpoint = find_checkpoint(source)
    model, tokenizer = load_model(checkpoint)
    names = [name for name in VARIANT_FILES if name in variants]
    split = held_out_text(checkpoint, tokenizer, text)
    provenance = _provenance(checkpoint, split)
    if (known := _up_to_date(out, names, provenance)) is not None:
        logger.info("Up to date with %s: %s", checkpoint, out)
        return known
    logger.info("Exporting %s", checkpoint)
    with new_folder(out) as folder:
        graphs = _write_graphs(folder, model, names)
        float32, agreements, qualities = _verify(graphs, model, tokenizer, split, names)
        if "fp32" not in names:
            graphs["fp32"].unlink()
        receipt = Receipt(
            name=out.name,
            parameters=sizes.parameters(model.config, model.vocab_size),
            context_length=model.config.context_length,
            sizes={name: graphs[name].stat().st_size for name in names},
            float32=float32,
            agreements=agreements,
            qualities=qualities,
            provenance=provenance,
        )
        _write_bundle(folder, model, tokenizer, TokenIds.read(checkpoint), receipt)
    return receipt.figures()


def _up_to_date(out: Path, names: list[str], provenance: dict[str, Any]) -> dict[str, Any] | None:
    """The figures of a whole bundle that was made from the same, None where there is none."""
    try:
        bundle = Bundle.open(out)
        bundle.check()
    except UserError:
        return None
    same = bundle.variants == names and bundle.manifest["provenance"] == provenance
    return dict(bundle.manifest["receipt"]) if same else None


def _write_graphs(folder: Path, model: GPT, names: list[str]) -> dict[str, Path]:
    """Files of the graphs: float32 always, since every other is measured against it."""
    graphs = {name: folder / file for name, file in VARIANT_FILES.items()}
    (folder / "onnx").mkdir()
    with progress("Tracing the graph", 1) as advance:
        graph = trace(model)
        ir.save(graph, graphs["fp32"])
        advance(1)
    if "int8" in names:
        quantize_int8(graph)
        ir.save(graph, graphs["int8"])
    return graphs


def _verify(
    graphs: dict[str, Path], model: GPT, tokenizer: Tokenizer, split: Split, names: list[str]
) -> tuple[Metrics, list[Agreement], dict[str, Quality]]:
    shape, judge = architecture(model), Judge(model, tokenizer, split)
    float32 = Session(graphs["fp32"], shape)
    agreements = verify_float32(float32, model, split)
    quantised = [name for name in names if name != "fp32"]
    with progress("Verifying", judge.tokens * (1 + len(quantised))) as advance:
        reference = judge.measure_float32(float32, advance)
        qualities = {name: judge.measure(name, Session(graphs[name], shape), reference, advance) for name in quantised}
    return reference, agreements, qualities


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


def _write_bundle(folder: Path, model: GPT, tokenizer: Tokenizer, ids: TokenIds, receipt: Receipt) -> None:
    """Everything besides the graphs, the manifest last."""
    tokenizer.save(folder)
    first = next(iter(receipt.sizes))
    write_interop(folder, model, ids.json(), VARIANT_FILES[first])
    receipt.write(folder)
    write_manifest(
        folder,
        {
            "name": receipt.name,
            "architecture": {**model.config.model_dump(), "vocab_size": model.vocab_size},
            "parameters": receipt.parameters,
            "bos_token_id": ids.bos,
            "eos_token_ids": sorted(ids.eos),
            "tokenizer": {"engine": tokenizer.engine, "golden": golden_ids(tokenizer)},
            "variants": {name: {"file": VARIANT_FILES[name]} for name in receipt.sizes},
            "receipt": receipt.figures(),
            "provenance": receipt.provenance,
        },
    )


def _provenance(checkpoint: Path, held_out: Split) -> dict[str, Any]:
    """Where the weights come from: hashes and versions, no paths."""
    state = read_state(checkpoint)
    return {
        "checkpoint": checkpoint.name,
        "step": state["step"],
        "seed": state["seed"],
        "imported": state.get("imported"),
        "data_sha256": state["data_sha256"],
        "held_out_sha256": held_out.sha256,
        **{f"{name}_sha256": hash_file(checkpoint / name) for name in ("config.json", "tokenizer.json", WEIGHTS_FILE)},
        "versions": {name: version(name) for name in ("kiara-slm", "torch", "onnx", "onnxruntime")},
    }
