"""Checkpoint to bundle: trace, lower, verify, measure, write. The folder appears only if all steps succeed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from kiara.checkpoints import WEIGHTS_FILE, find_checkpoint, load_model, read_state, trained_on
from kiara.config import ModelConfig
from kiara.console import logger, progress
from kiara.data import Split, TokenIds
from kiara.files import claim, copy_licences, licences, new_folder
from kiara.model import GPT, sizes
from kiara_export.candidates import (
    Candidates,
    Int8Cache,
    Order,
    Texts,
    Verdict,
    Workshop,
    check_widths,
    int8_caches,
)
from kiara_export.graph import graph_bytes
from kiara_export.interop import write_interop
from kiara_export.proof import CHECKS, Judge, Reference, departure, greedy_agreement, prompts_of, reference_of
from kiara_export.quantize import over_budget
from kiara_export.receipt import Receipt, Sample
from kiara_export.request import Request
from kiara_export.texts import texts_of
from kiara_runtime import load
from kiara_runtime.bundle import (
    FLOAT32,
    Architecture,
    Bundle,
    PrivateKey,
    Variant,
    check_signature_by,
    read_private_key,
    sign,
    write_manifest,
)
from kiara_runtime.errors import UserError
from kiara_runtime.system import hash_file, machine
from kiara_runtime.tokens import Tokenizer, golden_ids
from kiara_runtime.verify import measure_in_subprocess

SAMPLE_PROMPT, SAMPLE_TOKENS = 16, 64  # tokens
SAMPLE_TEMPERATURE, SAMPLE_SEED = 0.7, 1


@dataclass(frozen=True)
class _Subject:
    """What the export needs of the checkpoint after the model has been freed."""

    name: str
    config: ModelConfig
    shape: Architecture
    tokenizer: Tokenizer
    ids: TokenIds
    provenance: dict[str, Any]
    checkpoint: Path


def export(source: Path, out: Path, request: Request) -> dict[str, Any]:
    """Write the bundle `out` from a checkpoint, or from the best one of a run; returns its figures by variant.

    Does nothing if `out` is up to date. A variant that fails its limits is remade with finer rounding or left out, with
    a warning. Raises UserError and writes no bundle if the float32 graph is wrong or, with `request.strict`, if a
    variant fails its limits or another runtime disagrees.
    """
    orders = request.orders()
    claim(out, "bundle", [source])
    key = None if request.sign_key is None else read_private_key(request.sign_key)
    for name in request.check_with:
        CHECKS[name].require()
    checkpoint = find_checkpoint(source)
    # Problems with the text are reported before the weights are loaded.
    texts = texts_of(checkpoint, Tokenizer.load(checkpoint), request, orders)
    model, tokenizer = load_model(checkpoint)
    check_widths(model, [order.variant for order in orders])
    check_budget(model, orders)
    prompts = prompts_of(texts.report, tokenizer, model.config.context_length) if request.check_with else []
    provenance = _provenance(checkpoint, texts, request, key and key.fingerprint)
    if (known := _up_to_date(out, orders, provenance, key)) is not None:
        logger.info("Up to date with %s: %s", checkpoint, out)
        return known
    logger.info("Exporting %s", checkpoint)
    ids = TokenIds.read(checkpoint)
    subject = _Subject(out.resolve().name, model.config, architecture(model), tokenizer, ids, provenance, checkpoint)
    loaded = [model]
    del model
    with new_folder(out, "bundle", [source]) as folder:
        candidates = _candidates(folder, checkpoint, loaded, subject, texts, request.embeddings)
        verdict = candidates.accept(orders, request.strict)
        caches = int8_caches(candidates, verdict.made, subject.config, texts.calibrate)
        receipt = _receipt(subject, verdict, caches, candidates.reference)
        _write_bundle(folder, subject, receipt)  # so that the runtime can open it
        receipt = replace(_tried(folder, receipt, request, prompts), sample=_sample(folder, receipt))
        _write_bundle(folder, subject, receipt)
        if key is not None:
            sign(folder, key)
    return receipt.figures()


def _candidates(
    folder: Path, checkpoint: Path, loaded: list[GPT], subject: _Subject, texts: Texts, hidden: bool
) -> Candidates:
    """loaded: holds the model; it is emptied on first use, so that no reference keeps the weights alive."""
    judge, reference = Judge(loaded[0], subject.tokenizer, texts.report), reference_of(loaded[0], texts.report)
    choice = Judge(loaded[0], subject.tokenizer, texts.choose) if texts.choose else judge

    def load() -> GPT:
        return loaded.pop() if loaded else load_model(checkpoint)[0]

    def loss_of(base: Path, graph: Path) -> float:
        return choice.loss_of_files(subject.shape, base, graph)

    return Candidates(folder, Workshop(folder, load, texts, loss_of, hidden), subject.shape, judge, reference)


def check_budget(model: GPT, orders: list[Order]) -> None:
    """Raise UserError, before any work, if a budget is smaller than the weights alone."""
    for order in orders:
        least = sizes.graph_bytes(model.config, model.vocab_size, order.variant) if order.budget is not None else 0
        if order.budget is not None and least > order.budget:
            raise over_budget(least, order.budget)


def architecture(model: GPT) -> Architecture:
    """What the runtime needs to know about the graph of `model`."""
    config = model.config
    return Architecture(
        num_hidden_layers=config.num_hidden_layers,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        context_length=config.context_length,
        vocab_size=model.vocab_size,
    )


def _up_to_date(
    out: Path, orders: list[Order], provenance: dict[str, Any], key: PrivateKey | None
) -> dict[str, Any] | None:
    """The figures of the existing bundle if it is intact and was made from the same inputs, else None."""
    try:
        bundle = Bundle.open(out)
        bundle.check()
        if key is not None:
            check_signature_by(out, key.key.public_key())
    except UserError:
        return None
    left_out = bundle.manifest.get("left_out", {})
    names = [order.variant.name for order in orders]
    made = [name for name in names if name not in left_out] or [FLOAT32.name]
    same = bundle.current and bundle.variants == made and bundle.manifest.get("provenance") == provenance
    return dict(bundle.manifest["receipt"]) if same else None


def _receipt(subject: _Subject, verdict: Verdict, caches: dict[Variant, Int8Cache], reference: Reference) -> Receipt:
    """The receipt without speeds and other runtimes, which need a written bundle."""
    assert verdict.float32 is not None
    variants = verdict.variants
    probes = {variant.name: verdict.probes[variant] for variant in variants}
    cached = {variant.name: cache.probe for variant, cache in caches.items()}
    return Receipt(
        name=subject.name,
        parameters=sizes.parameters(subject.config, subject.shape.vocab_size),
        context_length=subject.config.context_length,
        sizes={variant: graph_bytes(made.path) for variant, made in verdict.made.items()},
        eight_bit_matrices=[name for made in verdict.made.values() for name in made.eight_bit],
        float32=verdict.float32,
        agreements=verdict.agreements,
        qualities=verdict.qualities,
        caches=caches,
        finer=verdict.finer,
        left_out=verdict.left_out,
        machine=machine(),
        probe={"ids": reference.windows[0].tolist(), "variants": probes, "int8_caches": cached},
        provenance=subject.provenance,
        data=_training_data(subject.checkpoint),
        licences=tuple(path.name for path in licences(subject.checkpoint)),
    )


def _training_data(checkpoint: Path) -> dict[str, Any] | None:
    """Documents, bytes and tokens of the training split; None if its folder is gone, or was never there."""
    try:
        dataset = trained_on(checkpoint)
    except UserError:
        return None
    split = dataset.manifest["splits"]["train"]
    return {**{name: split[name] for name in ("documents", "bytes", "tokens")}, "sha256": dataset.sha256}


def _sample(folder: Path, receipt: Receipt) -> Sample:
    """What the default variant makes of the beginning of the held-out text."""
    variant = next(iter(receipt.sizes)).name
    with load(folder, variant) as model:
        prompt = receipt.probe["ids"][: min(SAMPLE_PROMPT, receipt.context_length // 2)]
        written = model.generate(prompt, max_tokens=SAMPLE_TOKENS, temperature=SAMPLE_TEMPERATURE, seed=SAMPLE_SEED)
        return Sample(variant, model.detokenize(prompt), written.text, SAMPLE_TEMPERATURE, SAMPLE_SEED)


def _tried(folder: Path, receipt: Receipt, request: Request, prompts: list[str]) -> Receipt:
    """The receipt with the speed of every variant and the results of the requested other runtimes."""
    variants = list(receipt.sizes)
    with progress("Measuring", len(variants)) as advance:
        speeds = {}
        for variant in variants:
            speeds[variant] = measure_in_subprocess(folder, variant.name)
            advance(1, variant.name)
    return replace(receipt, speeds=speeds, runtimes=list(_runtimes(folder, variants, request, prompts)))


def _runtimes(folder: Path, variants: list[Variant], request: Request, prompts: list[str]) -> Iterator[dict[str, Any]]:
    """Results of other runtimes on the bundle. Failures and differences are logged, or raised with `strict`."""
    for check, variant in product(request.check_with, variants):
        try:
            found = greedy_agreement(CHECKS[check], folder, variant, prompts)
            wrong = departure(found)
            yield found
        except UserError as error:
            wrong = str(error)
        if wrong and request.strict:
            raise UserError("verification", wrong, "no bundle was written; leave out --check-with, or --strict")
        if wrong:
            logger.warning("%s; the bundle is written anyway", wrong)


def _write_bundle(folder: Path, subject: _Subject, receipt: Receipt) -> None:
    """Write everything but the graphs, the manifest last."""
    variants = list(receipt.sizes)
    subject.tokenizer.save(folder)
    copy_licences(subject.checkpoint, folder)
    write_interop(folder, subject.config, subject.shape.vocab_size, subject.ids.json(), variants)
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
            "variants": {variant.name: receipt.files(variant) for variant in variants},
            "receipt": receipt.figures(),
            "left_out": receipt.left_out,
            "provenance": receipt.provenance,
        },
    )


def _provenance(checkpoint: Path, texts: Texts, request: Request, signed_by: str | None) -> dict[str, Any]:
    """Origin of the weights and options of the export: hashes and versions, no paths."""
    state = read_state(checkpoint)
    loss = request.max_bpb_loss
    losses = dict(loss) if isinstance(loss, Mapping) else loss
    return {
        "checkpoint": checkpoint.name,
        "step": state["step"],
        "seed": state["seed"],
        "imported": state.get("imported"),
        "source": state.get("source"),
        "data_sha256": state["data_sha256"],
        "held_out_sha256": texts.report.sha256,
        "calibration_sha256": _sha256(texts.calibrate),
        "choice_sha256": _sha256(texts.choose),
        "limit": {"budget": request.budget, "max_bpb_loss": losses},
        "strict": request.strict,
        "embeddings": request.embeddings,
        "checked_with": list(request.check_with),
        "signed_by": signed_by,
        **{f"{name}_sha256": hash_file(checkpoint / name) for name in ("config.json", "tokenizer.json", WEIGHTS_FILE)},
        "versions": {name: version(name) for name in ("kiara-slm", "torch", "onnx", "onnxruntime")},
    }


def _sha256(split: Split | None) -> str | None:
    return split.sha256 if split else None
