"""Quantisation: blocks, GPTQ, mixed widths, smoothing. Arithmetic on weights, independent of the graph."""
