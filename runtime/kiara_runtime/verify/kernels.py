"""Checks what the graphs of a bundle compute on this machine: along every path, and against the exporter's record.

Hashes prove that the bytes are the exporter's. But kernels differ between machines and versions of ONNX Runtime, so
this runs a recorded piece of held-out text along every path and compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kiara_runtime.bundle import FLOAT32, MAX_MANIFEST_BYTES, Bundle, find_variant
from kiara_runtime.engine import Session, int8_cache_runs
from kiara_runtime.errors import UserError
from kiara_runtime.sampling import nats
from kiara_runtime.system import read_bounded_json
from kiara_runtime.verify.agreement import Ids, PathAgreement, in_chunks, path_agreement

MIN_RECORDED_AGREEMENT = 0.9
MAX_NATS_DIFFERENCE = 0.01  # relative, of the text's negative log-likelihood


@dataclass(frozen=True)
class Found:
    """The result for a variant, with one of its kinds of KV cache.

    recorded_agreement: fraction of the recorded likeliest tokens that are the same here. nats_difference: relative.
    """

    variant: str
    int8_cache: bool
    paths: PathAgreement
    recorded_agreement: float
    nats_difference: float


def probe(session: Session, ids: Ids) -> dict[str, Any]:
    """What a graph predicts for text: its likeliest next tokens, and the negative log-likelihood of the real ones."""
    logits = in_chunks(session, ids, len(ids))
    return {"nats": float(nats(logits[:-1], ids[1:]).sum()), "top1": logits.argmax(-1).tolist()}


def verify_deep(bundle: Bundle) -> Iterator[Found]:
    """Check each graph that this ONNX Runtime can run in turn.

    Raises UserError for the first whose results are outside its variant's limits.
    """
    ids, expected = _recorded(bundle)
    for (name, int8_cache), there in expected.items():
        if int8_cache and not int8_cache_runs():
            continue
        session = Session(bundle.graph_of(name, int8_cache), bundle.architecture)
        here = probe(session, ids)
        found = Found(
            variant=name,
            int8_cache=int8_cache,
            paths=path_agreement(session, ids[None]),
            recorded_agreement=sum(a == b for a, b in zip(here["top1"], there["top1"], strict=True)) / len(ids),
            nats_difference=abs(here["nats"] / there["nats"] - 1),
        )
        _demand(found)
        yield found


def _recorded(bundle: Bundle) -> tuple[Ids, dict[tuple[str, bool], dict[str, Any]]]:
    """The probe in the receipt: token ids, and what each variant, with each of its caches, predicted for them."""
    path, vocabulary = bundle.folder / "receipt.json", bundle.architecture.vocab_size
    recorded: Any = read_bounded_json(path, MAX_MANIFEST_BYTES).get("probe")
    try:
        ids = [int(token) for token in recorded["ids"]]
        made: dict[tuple[str, bool], dict[str, Any]] = {}
        for name, int8_cache in bundle.graphs():
            one = recorded["int8_caches" if int8_cache else "variants"][name]
            made[name, int8_cache] = {"nats": float(one["nats"]), "top1": [int(token) for token in one["top1"]]}
            if len(made[name, int8_cache]["top1"]) != len(ids) or made[name, int8_cache]["nats"] <= 0:
                raise ValueError
        if not 2 <= len(ids) <= bundle.architecture.context_length or not all(0 <= i < vocabulary for i in ids):
            raise ValueError
    except (ValueError, KeyError, TypeError, OverflowError):
        raise UserError(path, "it has no valid probe of this bundle", "export the bundle again") from None
    return np.array(ids, dtype=np.int64), made


def _demand(found: Found) -> None:
    limits = (find_variant(found.variant) or FLOAT32).limits  # the strictest for an unknown variant
    where = f"on this machine{', with its int8 cache,' if found.int8_cache else ''}"
    least = limits.elsewhere
    if found.paths.lowest() < least or found.paths.end_of_context < limits.end_of_context:
        raise UserError(
            found.variant,
            f"{where} single steps, chunks or batches give {found.paths.lowest():.1%} of "
            f"the likeliest tokens of a prefill ({least:.0%} required)",
            "use another variant, or another ONNX Runtime",
        )
    if found.recorded_agreement < MIN_RECORDED_AGREEMENT or not found.nats_difference <= MAX_NATS_DIFFERENCE:
        raise UserError(
            found.variant,
            f"{where} it gives {found.recorded_agreement:.1%} of the recorded likeliest tokens, and "
            f"the log-likelihood is {found.nats_difference:.2%} off",
            "use another variant, or another ONNX Runtime",
        )
