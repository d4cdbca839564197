"""What must hold before a bundle is written: float32 against PyTorch, variants against float32, other runtimes."""

from kiara_export.proof.judge import MANY, QUANTILES, Judge, Quality, Shortfall, shortfall, worst_layer
from kiara_export.proof.other_runtimes import CHECKS, departure, greedy_agreement, prompts_of
from kiara_export.proof.reference import Reference, reference_of
from kiara_export.proof.verify import Agreement, verify_float32

__all__ = [
    "CHECKS",
    "MANY",
    "QUANTILES",
    "Agreement",
    "Judge",
    "Quality",
    "Reference",
    "Shortfall",
    "departure",
    "greedy_agreement",
    "prompts_of",
    "reference_of",
    "shortfall",
    "verify_float32",
    "worst_layer",
]
