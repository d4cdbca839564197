"""The verifier must refuse broken graphs; its figures are compared with their definitions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kiara.checkpoints.checkpoint import find_checkpoint, load_model
from kiara.data.dataset import Dataset
from kiara.model.gpt import GPT
from kiara_export.graph import lower
from kiara_export.graph.onnx_file import save
from kiara_export.graph.trace import trace
from kiara_export.proof.judge import Comparison, Judge, shortfall, standard_error
from kiara_export.proof.other_runtimes import prompts_of
from kiara_export.proof.reference import Reference, reference_of
from kiara_export.proof.verify import tolerance, verify_float32
from kiara_export.quantize.kept import round_int8
from kiara_export.quantize.smooth import smoothing
from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.bundle.variants import VARIANTS
from kiara_runtime.engine.session import Cache, Session
from kiara_runtime.errors import UserError
from kiara_runtime.verify.agreement import path_agreement
from kiara_runtime.verify.scoring import Scorer

VARIANT = {variant.name: variant for variant in VARIANTS}
INT8 = VARIANT["int8"]


@pytest.fixture(scope="module")
def model(run: Path) -> GPT:
    return load_model(find_checkpoint(run))[0]


@pytest.fixture(scope="module")
def reference(model: GPT, dataset: Dataset) -> Reference:
    return reference_of(model, dataset.val)


@pytest.fixture(scope="module")
def sessions(
    bundle: Path, model: GPT, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Session]:
    opened, path = Bundle.open(bundle), tmp_path_factory.mktemp("graph") / "model.onnx"
    rounded = lower.dynamic(trace(model), lambda _, weight: round_int8(weight), smoothing(model, dataset.train))
    save(rounded, path)
    paths = {"int8-dynamic": path, **{name: opened.graph_of(name) for name in opened.variants}}
    return {name: Session(path, opened.architecture) for name, path in paths.items()}


class Broken(Cache):
    """A cache with a fault: `forget` attends to the last three past tokens only, `mix` gives all sequences of a batch
    one length, `far` is wrong late in the context, `swap` reverses the rows of a batch."""

    fault = ""

    def run(self, ids: np.ndarray, lengths: Any, first: int = 0, every: bool = False) -> np.ndarray:
        lengths = list(lengths)
        if self.fault == "forget" and lengths[0] > ids.shape[1]:
            lengths = [min(length, ids.shape[1] + 3) for length in lengths]
        if self.fault == "mix" and ids.shape[1] == 1:
            lengths = [max(lengths)] * len(lengths)
        if self.fault == "far" and lengths[0] > 88 and ids.shape[1] < 20:
            lengths = [length - 1 for length in lengths]
        logits = super().run(ids, lengths, first, every)
        return logits[::-1] if self.fault == "swap" and len(logits) > 1 and ids.shape[1] == 1 else logits


def _broken(session: Session, fault: str, monkeypatch: pytest.MonkeyPatch) -> Session:
    def cache(slots: int) -> Broken:
        made = Broken(session, slots)
        made.fault = fault
        return made

    monkeypatch.setattr(session, "cache", cache)
    return session


def test_a_correct_graph_passes_and_every_path_is_named(sessions: dict[str, Session], reference: Reference) -> None:
    agreements = verify_float32(sessions["fp32"], reference)
    assert {agreement.path for agreement in agreements} == {
        "prefill", "last logits of prompts", "single steps", "chunked prefill", "right-padded batch",
        "end of the context", "single steps to the end of the context",
    }  # fmt: skip
    assert all(agreement.max_difference < 1e-5 * agreement.scale and agreement.tokens for agreement in agreements)


@pytest.mark.parametrize(
    ("fault", "path"),
    [
        ("forget", "end of the context"),
        ("mix", "right-padded batch"),
        ("far", "end of the context"),
        ("swap", "right-padded batch"),
    ],
)
def test_a_broken_cache_is_refused(
    fault: str, path: str, sessions: dict[str, Session], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=path):
        verify_float32(_broken(sessions["fp32"], fault, monkeypatch), reference)


@pytest.mark.parametrize("name", ["int8", "int8-dynamic"])
def test_paths_of_int8_agree_and_batches_are_exact(
    name: str, sessions: dict[str, Session], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = sessions[name]
    found = path_agreement(session, reference.windows)
    assert found.lowest() > 0.97 and found.chunks_exact
    assert found.batch_exact == VARIANT[name].batch_exact is True
    with monkeypatch.context() as patch:
        broken = path_agreement(_broken(session, "forget", patch), reference.windows)
        assert broken.lowest() < VARIANT[name].limits.path_agreement
    with monkeypatch.context() as patch:
        assert not path_agreement(_broken(session, "swap", patch), reference.windows).batch_exact
    with monkeypatch.context() as patch:
        assert not path_agreement(_broken(session, "forget", patch), reference.windows).chunks_exact


def test_quality_figures_match_their_definitions(dataset: Dataset) -> None:
    torch.manual_seed(0)
    vocabulary = dataset.tokenizer.vocab_size
    expected, found = torch.randn(50, vocabulary), torch.randn(50, vocabulary)
    targets = torch.randint(vocabulary, (50,))
    seen = Comparison(dataset.tokenizer)
    for part in (slice(0, 20), slice(20, 50)):
        seen.add(found[part].numpy(), expected[part].numpy(), targets[part].numpy())
    quality = seen.quality(_metrics(dataset, expected, targets), _perfect_paths())
    p, q = expected.double().softmax(-1), found.double().softmax(-1)
    divergence = (p * (p.log() - q.log())).sum(-1)
    assert quality.kl == pytest.approx(divergence.mean().item(), rel=1e-5)
    assert quality.kl_quantiles[-1] == pytest.approx(divergence.max().item(), rel=1e-5)
    assert quality.top1_agreement == (expected.argmax(-1) == found.argmax(-1)).double().mean().item()
    same = Comparison(dataset.tokenizer)
    same.add(expected.numpy(), expected.numpy(), targets.numpy())
    itself = same.quality(_metrics(dataset, expected, targets), _perfect_paths())
    assert (itself.kl, itself.top1_agreement, itself.bits_per_byte_loss) == (pytest.approx(0, abs=1e-6), 1.0, 0.0)


def _metrics(dataset: Dataset, logits: torch.Tensor, targets: torch.Tensor) -> Any:
    scorer = Scorer(dataset.tokenizer)
    scorer.add(logits.numpy(), targets.numpy())
    return scorer.metrics()


def _perfect_paths() -> Any:
    from kiara_runtime.verify.agreement import PathAgreement

    return PathAgreement(1.0, 1.0, 1.0, 1.0, 1.0, True, True, 512)


def test_each_limit_is_enforced(
    model: GPT, dataset: Dataset, sessions: dict[str, Session], reference: Reference
) -> None:
    judge = Judge(model, dataset.tokenizer, dataset.val)
    metrics, seen = judge.measure(sessions["fp32"], {"int8": sessions["int8"]})
    quality = seen["int8"].quality(metrics, path_agreement(sessions["int8"], reference.windows))
    assert shortfall(quality, INT8.limits) is None
    plain = dataclasses.replace(quality, bits_per_byte_loss_error=0.0)
    for field, value, word in (
        ("bits_per_byte_loss", 0.0031, "0.31% ± 0.00% of its bits per byte; at most 0.30% is allowed"),
        ("bits_per_byte_loss", float("nan"), "bits per byte"),
        ("top1_agreement", 0.85, "85.00%"),
        ("path_agreement", 0.84, "84.00%"),
    ):
        found = shortfall(dataclasses.replace(plain, **{field: value}), INT8.limits)
        assert found is not None and found.field == field and word in found.problem
    uncertain = dataclasses.replace(plain, bits_per_byte_loss=0.0031, bits_per_byte_loss_error=0.0001)
    assert shortfall(uncertain, INT8.limits) is None  # within two standard errors of the limit of 0.30 %
    assert shortfall(dataclasses.replace(uncertain, bits_per_byte_loss=0.0033), INT8.limits) is not None
    hardly_any = dataclasses.replace(quality.metrics, bits_per_byte=0.05)  # so few that 1 % is hardly anything
    repeated = dataclasses.replace(plain, metrics=hardly_any, bits_per_byte_loss=0.029)
    assert shortfall(repeated, INT8.limits) is None
    assert shortfall(dataclasses.replace(repeated, bits_per_byte_loss=0.031), INT8.limits) is not None


def test_the_standard_error_matches_the_spread_of_many_texts() -> None:
    """Tokens are correlated in runs of sixteen; the spread over many texts is the oracle."""
    rng = np.random.default_rng(0)
    texts = rng.normal(0.01, 1.0, (400, 256)).repeat(16, axis=1) + rng.normal(0, 1.0, (400, 4096))
    found = np.mean([standard_error(text.tolist()) for text in texts[:40]])
    assert found == pytest.approx(texts.sum(1).std(), rel=0.15)
    assert standard_error([1.0]) == 0.0 and standard_error([2.0] * 1000) == pytest.approx(0, abs=1e-9)


def test_the_tolerance_grows_with_the_context() -> None:
    assert tolerance(96) == tolerance(512) == 1e-4
    assert tolerance(8192) == pytest.approx(4e-4)


def test_prompts_for_other_runtimes_are_refused_when_the_context_has_no_room(dataset: Dataset) -> None:
    assert len(prompts_of(dataset.val, dataset.tokenizer, 96)) == 20
    with pytest.raises(UserError, match="--check-with: 20 prompts of held-out text and 0 tokens of context"):
        prompts_of(dataset.val, dataset.tokenizer, 48)


@pytest.mark.parametrize(("rounding", "refused"), [(0.0, True), (1.0, False)])
def test_the_tolerance_at_the_end_of_the_context_follows_pytorch_rounding(
    rounding: float, refused: bool, sessions: dict[str, Session], reference: Reference
) -> None:
    """An error of 0.001 of the largest logit passes only if it is within 32 times PyTorch's own rounding error."""
    scale = float(np.abs(reference.end_logits).max())
    off = dataclasses.replace(
        reference, end_logits=reference.end_logits * np.float32(1.001), end_rounding=rounding * scale * 1e-4
    )
    assert reference.end_rounding < 1e-5 * scale  # without the change
    if refused:
        with pytest.raises(UserError, match="end of the context of the float32 graph differs"):
            verify_float32(sessions["fp32"], off)
    else:
        verify_float32(sessions["fp32"], off)
