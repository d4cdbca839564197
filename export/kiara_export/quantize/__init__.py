"""Rounding: blocks, GPTQ, mixed widths, smoothing. Arithmetic on weights, apart from any graph."""
