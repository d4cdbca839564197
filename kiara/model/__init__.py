"""The one model: its modules (gpt), fused operations (ops), wiring as a table, rotary positions, and what it will
weigh.

Not here: names of other people's weights (`families`), training, export.
"""

from kiara.model import sizes
from kiara.model.gpt import GPT, Linear
from kiara.model.ops import KeyValue, Lengths, rope_tables
from kiara.model.rotary import frequencies
from kiara.model.wiring import norm_before, packed, projections

__all__ = [
    "GPT",
    "KeyValue",
    "Lengths",
    "Linear",
    "frequencies",
    "norm_before",
    "packed",
    "projections",
    "rope_tables",
    "sizes",
]
