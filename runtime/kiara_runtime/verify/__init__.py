"""Measures a graph: agreement of its paths, the one scorer, evaluation of a text, speed. Shared by `evaluate`, `bench`,
`verify --deep` and the exporter's receipts.

Nothing here changes a bundle.
"""

from kiara_runtime.verify import scoring
from kiara_runtime.verify.agreement import (
    CHUNK,
    END,
    Cached,
    Ids,
    Logits,
    PathAgreement,
    at_the_end,
    batch_of,
    cached,
    in_batch,
    in_chunks,
    path_agreement,
    prompt_ends,
    prompts_alone,
)
from kiara_runtime.verify.bench import Speed, measure_in_subprocess
from kiara_runtime.verify.evaluate import evaluate, read_text
from kiara_runtime.verify.kernels import probe, verify_deep
from kiara_runtime.verify.profile import Profile, profile
from kiara_runtime.verify.scoring import Metrics, Scorer

__all__ = [
    "CHUNK",
    "END",
    "Cached",
    "Ids",
    "Logits",
    "Metrics",
    "PathAgreement",
    "Profile",
    "Scorer",
    "Speed",
    "at_the_end",
    "batch_of",
    "cached",
    "evaluate",
    "in_batch",
    "in_chunks",
    "measure_in_subprocess",
    "path_agreement",
    "probe",
    "profile",
    "prompt_ends",
    "prompts_alone",
    "read_text",
    "scoring",
    "verify_deep",
]
