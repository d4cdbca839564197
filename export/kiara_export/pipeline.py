"""Checkpoint to bundle: trace, lower, verify, measure, write. The folder appears only when all of it held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from kiara.checkpoints.checkpoint import WEIGHTS_FILE, TokenIds, find_checkpoint, load_model, read_state, trained_on
from kiara.config.model import ModelConfig
from kiara.console import logger, progress
from kiara.data.dataset import Split
from kiara.evaluation.evaluate import held_out_text
from kiara.files import claim, new_folder
from kiara.model import sizes
from kiara_export.candidates import Candidates, Verdict, accept
from kiara_export.graph.onnx_file import drop, graph_bytes
from kiara_export.interop import write_interop
from kiara_export.proof.judge import Judge
from kiara_export.proof.other_runtimes import CHECKS, departure, greedy_agreement, prompts_of
from kiara_export.proof.reference import Reference, reference_of
from kiara_export.receipt import Receipt
from kiara_export.variants import CALIBRATED, Limit, architecture, check_budget, check_widths
from kiara_runtime.bundle.manifest import VARIANT_FILES, Architecture, Bundle, write_manifest
from kiara_runtime.bundle.signing import PrivateKey, check_signature_by, read_private_key, sign
from kiara_runtime.errors import UserError
from kiara_runtime.system.files import hash_file
from kiara_runtime.system.machine import machine
from kiara_runtime.tokens.golden import golden_ids
from kiara_runtime.tokens.tokenizer import Tokenizer
from kiara_runtime.verify.bench import measure_apart

LEAST_TOKENS = 64  # to predict, of text to judge or to calibrate on


@dataclass(frozen=True)
class Request:
    """What an export is asked for.

    variants: names out of VARIANT_FILES. text, calibration: sources of held-out text and of text to calibrate on
    (CALIBRATED), by default the validation and the training split of the run. limit: of the int4 variant. strict:
    refuse where a variant costs too much, instead of making it finer or leaving it out. check_with: names out of
    CHECKS. sign_key: a PEM file with an Ed25519 private key.
    """

    variants: tuple[str, ...] = ("int8",)
    text: str | None = None
    calibration: str | None = None
    limit: Limit = field(default_factory=Limit)
    strict: bool = False
    check_with: tuple[str, ...] = ()
    sign_key: Path | None = None


@dataclass(frozen=True)
class _Subject:
    """What is exported, as far as it outlives the model in memory."""

    name: str
    config: ModelConfig
    shape: Architecture
    tokenizer: Tokenizer
    ids: TokenIds
    provenance: dict[str, Any]


def export(source: Path, out: Path, request: Request) -> dict[str, Any]:
    """Write the bundle `out` from a checkpoint, or from the best one of a run; returns its figures by variant.

    Does nothing where `out` is up to date. A variant that costs too much is made finer or left out, which is told.
    Raises UserError, and writes nothing, where the float32 graph is wrong, or `strict` and a variant costs too much.
    """
    claim(out, "bundle", [source])
    key = None if request.sign_key is None else read_private_key(request.sign_key)
    for name in request.check_with:
        CHECKS[name].require()
    checkpoint = find_checkpoint(source)
    names = [name for name in VARIANT_FILES if name in request.variants]
    # What is wrong with the text is told before the weights load.
    held_out, calibration = _texts(checkpoint, Tokenizer.load(checkpoint), request, not CALIBRATED.isdisjoint(names))
    model, tokenizer = load_model(checkpoint)
    check_widths(model, names)
    check_budget(model, request.limit)
    prompts = prompts_of(held_out, tokenizer, model.config.context_length) if request.check_with else []
    provenance = _provenance(checkpoint, held_out, calibration, request, key and key.fingerprint)
    if (known := _up_to_date(out, names, provenance, key)) is not None:
        logger.info("Up to date with %s: %s", checkpoint, out)
        return known
    logger.info("Exporting %s", checkpoint)
    ids = TokenIds.read(checkpoint)
    subject = _Subject(out.resolve().name, model.config, architecture(model), tokenizer, ids, provenance)
    loaded = [model]
    del model
    with new_folder(out, "bundle", [source]) as folder:
        judge, reference = Judge(loaded[0], tokenizer, held_out), reference_of(loaded[0], held_out)
        candidates = Candidates(
            folder=folder,
            model=lambda: loaded.pop() if loaded else load_model(checkpoint)[0],
            shape=subject.shape,
            calibration=calibration,
            judge=judge,
            reference=reference,
            limit=request.limit,
        )
        receipt = _receipt(subject, accept(candidates, names, request.strict), names, reference)
        _write_bundle(folder, subject, receipt)  # so that the runtime can open it
        receipt = _tried(folder, receipt, request, prompts)
        _write_bundle(folder, subject, receipt)
        if key is not None:
            sign(folder, key)
    return receipt.figures()


def _texts(checkpoint: Path, tokenizer: Tokenizer, request: Request, calibrates: bool) -> tuple[Split, Split | None]:
    """Held-out text, and text to calibrate on that is not among it; raises UserError where either is too short."""
    held_out, calibration = _found(checkpoint, tokenizer, request, calibrates)
    for option, split in (("--text", held_out), ("--calibration", calibration)):
        if split is not None and split.targets < LEAST_TOKENS:
            raise UserError(f"{option}: {split.tokens} tokens are too few; name text of {LEAST_TOKENS + 1} at least")
    return held_out, calibration


def _found(checkpoint: Path, tokenizer: Tokenizer, request: Request, calibrates: bool) -> tuple[Split, Split | None]:
    held_out = held_out_text(checkpoint, tokenizer, request.text)
    if not calibrates:
        return held_out, None
    if request.calibration is not None:
        return held_out, held_out_text(checkpoint, tokenizer, request.calibration)
    if read_state(checkpoint).get("dataset") is not None:
        return held_out, trained_on(checkpoint, "--calibration").train
    first, rest = held_out.parted(0.25)
    logger.info("Calibrated on the first quarter of --text and judged on the rest; --calibration names other text")
    return rest, first


def _up_to_date(
    out: Path, names: list[str], provenance: dict[str, Any], key: PrivateKey | None
) -> dict[str, Any] | None:
    """The figures of a whole bundle that was made from the same, None where there is none."""
    try:
        bundle = Bundle.open(out)
        bundle.check()
        if key is not None:
            check_signature_by(out, key.key.public_key())
    except UserError:
        return None
    left_out = bundle.manifest.get("left_out", {})
    made = [name for name in names if name not in left_out] or ["fp32"]
    same = bundle.variants == made and bundle.manifest.get("provenance") == provenance
    return dict(bundle.manifest["receipt"]) if same else None


def _receipt(subject: _Subject, verdict: Verdict, names: list[str], reference: Reference) -> Receipt:
    """The receipt as far as the graphs themselves earn it. Drops float32's graph where it is no variant."""
    names = [name for name in names if name not in verdict.left_out] or ["fp32"]
    if "fp32" not in names:
        drop(verdict.graphs.paths.pop("fp32"))
    assert verdict.float32 is not None
    return Receipt(
        name=subject.name,
        parameters=sizes.parameters(subject.config, subject.shape.vocab_size),
        context_length=subject.config.context_length,
        sizes={name: graph_bytes(verdict.graphs.paths[name]) for name in names},
        eight_bit_matrices=verdict.graphs.eight,
        float32=verdict.float32,
        agreements=verdict.agreements,
        qualities=verdict.qualities,
        finer=verdict.finer,
        left_out=verdict.left_out,
        machine=machine(),
        probe={"ids": reference.windows[0].tolist(), "variants": {name: verdict.probes[name] for name in names}},
        provenance=subject.provenance,
    )


def _tried(folder: Path, receipt: Receipt, request: Request, prompts: list[str]) -> Receipt:
    """Every variant run as a user runs it, and in the other runtimes that were asked for."""
    names = list(receipt.sizes)
    with progress("Measuring", len(names)) as advance:
        speeds = {}
        for name in names:
            speeds[name] = measure_apart(folder, name)
            advance(1, name)
    return replace(receipt, speeds=speeds, runtimes=list(_runtimes(folder, names, request, prompts)))


def _runtimes(folder: Path, names: list[str], request: Request, prompts: list[str]) -> Iterator[dict[str, Any]]:
    """What other runtimes make of the bundle. One that fails or departs is told; the graphs have been verified."""
    for check, name in product(request.check_with, names):
        try:
            found = greedy_agreement(CHECKS[check], folder, name, prompts)
            wrong = departure(found)
            yield found
        except UserError as error:
            wrong = str(error)
        if wrong and request.strict:
            raise UserError(f"verification: {wrong}; no bundle was written; leave out --check-with, or --strict")
        if wrong:
            logger.warning("%s; the bundle is written all the same", wrong)


def _write_bundle(folder: Path, subject: _Subject, receipt: Receipt) -> None:
    """Everything besides the graphs, the manifest last."""
    names = list(receipt.sizes)
    subject.tokenizer.save(folder)
    write_interop(folder, subject.config, subject.shape.vocab_size, subject.ids.json(), names)
    receipt.write(folder)
    write_manifest(
        folder,
        {
            "name": receipt.name,
            "architecture": {**subject.config.model_dump(), "vocab_size": subject.shape.vocab_size},
            "parameters": receipt.parameters,
            "bos_token_id": subject.ids.bos,
            "eos_token_ids": sorted(subject.ids.eos),
            "tokenizer": {"engine": subject.tokenizer.engine, "golden": golden_ids(subject.tokenizer)},
            "variants": {name: {"file": VARIANT_FILES[name]} for name in names},
            "receipt": receipt.figures(),
            "left_out": receipt.left_out,
            "provenance": receipt.provenance,
        },
    )


def _provenance(
    checkpoint: Path, held_out: Split, calibration: Split | None, request: Request, signed_by: str | None
) -> dict[str, Any]:
    """Where the weights come from and what was asked for: hashes and versions, no paths."""
    state = read_state(checkpoint)
    return {
        "checkpoint": checkpoint.name,
        "step": state["step"],
        "seed": state["seed"],
        "imported": state.get("imported"),
        "data_sha256": state["data_sha256"],
        "held_out_sha256": held_out.sha256,
        "calibration_sha256": calibration.sha256 if calibration else None,
        "limit": asdict(request.limit),
        "strict": request.strict,
        "checked_with": list(request.check_with),
        "signed_by": signed_by,
        **{f"{name}_sha256": hash_file(checkpoint / name) for name in ("config.json", "tokenizer.json", WEIGHTS_FILE)},
        "versions": {name: version(name) for name in ("kiara-slm", "torch", "onnx", "onnxruntime")},
    }
