"""Rounding: blocks, GPTQ, mixed widths, smoothing. Arithmetic on weights, apart from any graph."""

from kiara_export.quantize.blocks import Blocks, block_size, per_channel, round_to
from kiara_export.quantize.cache import cache_scales
from kiara_export.quantize.gptq import calibrate_int4
from kiara_export.quantize.kept import rounded
from kiara_export.quantize.mixed import Mixed, fewest, over_budget
from kiara_export.quantize.smooth import SHARE, Factors, costly, smoothing

__all__ = [
    "SHARE",
    "Blocks",
    "Factors",
    "Mixed",
    "block_size",
    "cache_scales",
    "calibrate_int4",
    "costly",
    "fewest",
    "over_budget",
    "per_channel",
    "round_to",
    "rounded",
    "smoothing",
]
