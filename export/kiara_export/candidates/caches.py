"""A second graph for each variant, whose KV cache is int8; kept if it loses next to nothing on held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kiara.config import ModelConfig
from kiara.console import logger, progress
from kiara.data import Split
from kiara.evaluation import windows
from kiara_export.candidates.loop import Candidates
from kiara_export.candidates.orders import Made
from kiara_export.graph import write_int8_cache
from kiara_export.proof import MANY, Quality, shortfall
from kiara_export.quantize import cache_scales
from kiara_runtime.bundle import Architecture, Variant
from kiara_runtime.engine import Session, int8_cache_runs
from kiara_runtime.verify import path_agreement, probe

TOKENS, MAX_LENGTH = 1 << 12, 1 << 10  # of calibration text, and of a window of it
MOST_LOST = 0.001  # of the bits per byte of the variant with its float32 cache


@dataclass(frozen=True)
class Int8Cache:
    """file: name of the graph in the bundle. quality: against the same variant with a float32 cache."""

    file: str
    quality: Quality
    probe: dict[str, Any]


def int8_caches(
    candidates: Candidates, made: Mapping[Variant, Made], config: ModelConfig, text: Split | None
) -> dict[Variant, Int8Cache]:
    """Write and judge the graphs. text: to calibrate on; without it there are none.

    Nor are there any if the installed ONNX Runtime cannot run them.
    """
    if text is None or not int8_cache_runs():
        return {}
    found: dict[Variant, Int8Cache] = {}
    for variant, graph in made.items():
        if not variant.int8_cache:
            continue
        base = _session(graph.path, candidates.shape)
        length = min(config.context_length, MAX_LENGTH) - 1
        texts = (batch[0].numpy() for batch in windows(text, length, TOKENS))
        rotary = (config.rotary_dim or config.head_dim) if config.position == "rope" else 0
        path = write_int8_cache(graph.path, cache_scales(base, texts, rotary))
        cache = _judged(candidates, variant, base, path)
        if cache is None:
            path.unlink()
        else:
            found[variant] = cache
    return found


def _judged(candidates: Candidates, variant: Variant, base: Session, path: Path) -> Int8Cache | None:
    """What the graph at `path` loses against `base`, the same one with a float32 cache; None if that is too much."""
    session = _session(path, candidates.shape)
    with progress("Verifying the int8 cache", candidates.judge.tokens) as advance:
        metrics, compared = candidates.judge.measure(base, {variant: session}, advance)
    reference = candidates.reference
    quality = compared[variant].quality(metrics, path_agreement(session, reference.texts))
    why = shortfall(quality, replace(variant.limits, bits_per_byte_loss=MOST_LOST))
    if why is not None:
        logger.warning("%s with an int8 KV cache %s: leaving that cache out", variant.name, why.problem)
        return None
    return Int8Cache(path.relative_to(candidates.folder).as_posix(), quality, probe(session, reference.windows[0]))


def _session(path: Path, shape: Architecture) -> Session:
    return Session(path, shape, settings=MANY)
