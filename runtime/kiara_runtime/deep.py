"""What the graphs of a bundle compute on this machine: against each other's paths, and against the exporter's record.

Hashes prove that the bytes are the exporter's. Kernels differ from machine to machine and from one ONNX Runtime to
the next, so this runs a recorded piece of held-out text along every path and compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kiara_runtime.bundle import Bundle
from kiara_runtime.errors import UserError
from kiara_runtime.paths import Ids, PathAgreement, in_chunks, path_agreement
from kiara_runtime.session import Session

# Rounded activations amplify the last bit that differs between a step and a chunk; those of int8-dynamic share a scale
# with the whole pass.
MIN_PATH_AGREEMENT = {"fp32": 0.98, "fp16": 0.95, "int8": 0.85, "int4": 0.8, "int8-dynamic": 0.6}
MIN_RECORDED_AGREEMENT = 0.9
MAX_NATS_DIFFERENCE = 0.01  # relative, of the text's negative log-likelihood


@dataclass(frozen=True)
class Found:
    """recorded_agreement: part of the recorded likeliest tokens found again. nats_difference: relative."""

    variant: str
    paths: PathAgreement
    recorded_agreement: float
    nats_difference: float


def probe(session: Session, ids: Ids) -> dict[str, Any]:
    """What a graph makes of text: its likeliest next tokens, and the negative log-likelihood of the real ones."""
    logits = in_chunks(session, ids, len(ids)).astype(np.float64)
    ahead = logits[:-1] - logits[:-1].max(-1, keepdims=True)
    nats = np.log(np.exp(ahead).sum(-1)) - ahead[np.arange(len(ids) - 1), ids[1:]]
    return {"nats": float(nats.sum()), "top1": logits.argmax(-1).tolist()}


def verify_deep(bundle: Bundle) -> Iterator[Found]:
    """Each variant in turn; raises UserError on the first that does not compute what it should."""
    path = bundle.folder / "receipt.json"
    try:
        recorded = json.loads(path.read_bytes())["probe"]
        ids = np.array(recorded["ids"], dtype=np.int64)
        expected: dict[str, dict[str, Any]] = {name: recorded["variants"][name] for name in bundle.variants}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: holds no probe; export the bundle again") from None
    for name in bundle.variants:
        session = Session(bundle.graph_of(name), bundle.architecture)
        here, there = probe(session, ids), expected[name]
        found = Found(
            variant=name,
            paths=path_agreement(session, ids[None]),
            recorded_agreement=sum(a == b for a, b in zip(here["top1"], there["top1"], strict=True)) / len(ids),
            nats_difference=abs(here["nats"] / there["nats"] - 1),
        )
        _demand(found)
        yield found


def _demand(found: Found) -> None:
    least = MIN_PATH_AGREEMENT[found.variant]
    if found.paths.lowest() < least:
        raise UserError(
            f"{found.variant}: on this machine single steps, chunks or batches find {found.paths.lowest():.1%} of the "
            f"likeliest tokens of a prefill (needed {least:.0%}); use another variant, or another ONNX Runtime"
        )
    if found.recorded_agreement < MIN_RECORDED_AGREEMENT or not found.nats_difference <= MAX_NATS_DIFFERENCE:
        raise UserError(
            f"{found.variant}: on this machine it finds {found.recorded_agreement:.1%} of what was likeliest "
            f"and the log-likelihood is {found.nats_difference:.2%} off; use another variant, or another ONNX Runtime"
        )
