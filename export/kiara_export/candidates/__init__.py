"""Make, judge, keep: the one loop that every variant of a bundle goes through.

orders   what is asked of a maker: a variant, which attempt it is, and what it may weigh or lose
makers   the ways to round a model; a new one is a function here and a record in `kiara_runtime.bundle.variants`
loop     makes the variants, has them judged, makes those that cost too much again, and leaves the rest out

How weights are rounded is `kiara_export.quantize`'s, what a graph is worth `kiara_export.proof`'s.
"""

from kiara_export.candidates.loop import Candidates, Verdict
from kiara_export.candidates.makers import Workshop, check_widths
from kiara_export.candidates.orders import Order, Texts

__all__ = ["Candidates", "Order", "Texts", "Verdict", "Workshop", "check_widths"]
