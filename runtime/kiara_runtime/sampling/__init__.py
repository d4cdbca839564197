"""From logits to the next token: parameters and their checks, filters, the sampler, and grammars (`grammar`).

Functions of NumPy arrays; nothing here knows where logits come from or who asked.
"""
