"""Make, judge, keep: the one loop that every variant of a bundle goes through.

orders   input and output of a maker: the variant, the attempt, limits on size and loss; the graph that was made
makers   the ways to quantise a model; a new one is a function here and a record in `kiara_runtime.bundle.variants`
caches   the int8 KV cache of each accepted variant: a further graph, without weights of its own
loop     makes and judges the variants, remakes those that fail their limits, and leaves out those that still fail

The quantisation arithmetic is in `kiara_export.quantize`, the measurements are in `kiara_export.proof`.
"""

from kiara_export.candidates.caches import Int8Cache, int8_caches
from kiara_export.candidates.loop import Candidates, Verdict
from kiara_export.candidates.makers import Workshop, check_widths
from kiara_export.candidates.orders import Order, Texts

__all__ = ["Candidates", "Int8Cache", "Order", "Texts", "Verdict", "Workshop", "check_widths", "int8_caches"]
