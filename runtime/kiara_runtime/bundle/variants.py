"""The variants of a graph, each in one record that export, manifest, receipt and commands read.

`kiara_export.candidates` makes variants, `kiara_export.proof` measures their loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rounding = Literal["none", "half", "blocks", "gptq", "dynamic"]


@dataclass(frozen=True)
class Limits:
    """What a variant may lose on held-out text; the measured loss may exceed it by two standard errors.

    bits_per_byte_loss: relative to float32. The others are the least fractions of positions with the same likeliest
    token. top1_agreement: as float32. path_agreement: as its own prefill, in single steps and in chunks; other_paths:
    for the last logits of prompts and in padded batches, where few positions are tried; end_of_context: at the end of
    the context. elsewhere: on every path but the last, on a machine other than the exporter's.
    """

    bits_per_byte_loss: float
    top1_agreement: float
    path_agreement: float
    other_paths: float
    elsewhere: float
    end_of_context: float = 0.5  # after a synthetic cache distributions are flat, and rounding often decides


@dataclass(frozen=True)
class Variant:
    """A kind of graph that a bundle can have.

    name: in `--variant` and the manifest. choice: in `--quantize`. file: in the bundle, with the name that
    transformers.js looks for; transformers_js: its `dtype` there. rounding: how weights are quantised. bits: per weight
    of the layers. blocks: how many inputs share a scale, first the default, then those of finer attempts. zero_points:
    whether a block has one. calibrated: whether it needs calibration text. mixed: whether some matrices may keep 8
    bits, to meet a budget or a limit of loss. batch_exact: whether a sequence has the same bits in every batch. cache:
    type of keys and values. attempts: how often it is made at most, each time finer. summary: a line for users.
    """

    name: str
    choice: str
    file: str
    transformers_js: str
    rounding: Rounding
    bits: int
    limits: Limits
    summary: str
    blocks: tuple[int, ...] = ()
    zero_points: bool = False
    calibrated: bool = False
    mixed: bool = False
    batch_exact: bool = True
    cache: Literal["float32", "float16"] = "float32"
    attempts: int = 1

    @property
    def lossless(self) -> bool:
        """Whether it is float32 itself."""
        return self.rounding == "none"

    @property
    def int8_cache(self) -> bool:
        """Whether the export adds a graph with an int8 KV cache."""
        return self.cache == "float32" and not self.lossless

    @property
    def bytes_per_weight(self) -> float:
        """On disk, including the share of a block's float16 scale and of its zero point."""
        shared = 2 + self.bits / 8 * self.zero_points
        return self.bits / 8 + (shared / self.blocks[0] if self.blocks else 0)


# In order of preference: the first one that a bundle has is its default.
VARIANTS = (
    Variant(
        name="int8",
        choice="int8",
        file="onnx/model_quantized.onnx",
        transformers_js="q8",
        rounding="blocks",
        bits=8,
        limits=Limits(0.003, 0.9, 0.95, 0.85, 0.85),
        summary="8-bit weights in blocks, almost lossless",
        blocks=(64, 32, 16),
        attempts=3,
    ),
    Variant(
        name="int4",
        choice="int4",
        file="onnx/model_q4.onnx",
        transformers_js="q4",
        rounding="gptq",
        bits=4,
        limits=Limits(0.02, 0.75, 0.8, 0.8, 0.8),
        summary="4-bit weights in blocks by GPTQ, the smallest",
        blocks=(32, 16),
        zero_points=True,
        calibrated=True,
        mixed=True,
        attempts=3,
    ),
    Variant(
        name="int2",
        choice="int2",
        file="onnx/model_q2.onnx",
        transformers_js="q2",
        rounding="blocks",
        bits=2,
        limits=Limits(0.05, 0.75, 0.8, 0.8, 0.8),
        summary="2-bit weights in blocks, for models that were trained on them",
        blocks=(32, 16),
    ),
    Variant(
        name="int8-dynamic",
        choice="int8-dynamic",
        file="onnx/model_int8.onnx",
        transformers_js="int8",
        rounding="dynamic",
        bits=8,
        limits=Limits(0.003, 0.9, 0.92, 0.85, 0.85),
        summary="8-bit weights and activations, the fastest prefill",
        blocks=(64, 32, 16),
        calibrated=True,
        attempts=3,
    ),
    Variant(
        name="fp32",
        choice="none",
        file="onnx/model.onnx",
        transformers_js="fp32",
        rounding="none",
        bits=32,
        limits=Limits(0.0, 1.0, 0.98, 0.98, 0.98),
        summary="float32, not quantised",
    ),
    Variant(
        name="fp16",
        choice="fp16",
        file="onnx/model_fp16.onnx",
        transformers_js="fp16",
        rounding="half",
        bits=16,
        limits=Limits(0.001, 0.97, 0.95, 0.95, 0.95),
        summary="float16, for GPUs and browsers",
        batch_exact=False,
        cache="float16",
    ),
)
FLOAT32 = next(variant for variant in VARIANTS if variant.lossless)


def find_variant(name: str) -> Variant | None:
    """The variant with this name; None if unknown, as in a bundle of a newer version."""
    return next((variant for variant in VARIANTS if variant.name == name), None)
