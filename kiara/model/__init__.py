"""The model (gpt, block), its loss (head_loss), fused operations (ops), a table of projections (wiring), sizes.

Not here: weight names of other model families (`families`), training, export.
"""

from kiara.model import sizes
from kiara.model.block import Linear
from kiara.model.gpt import GPT
from kiara.model.ops import KeyValue, Lengths, emitting_operators
from kiara.model.rotary import frequencies, table_factor
from kiara.model.wiring import norm_before, packed, projections

__all__ = [
    "GPT",
    "KeyValue",
    "Lengths",
    "Linear",
    "emitting_operators",
    "frequencies",
    "norm_before",
    "packed",
    "projections",
    "sizes",
    "table_factor",
]
