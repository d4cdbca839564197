"""The model: modules (gpt), fused operations (ops), its projections as a table (wiring), rotary positions, sizes.

Not here: weight names of other model families (`families`), training, export.
"""
