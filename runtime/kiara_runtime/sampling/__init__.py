"""From logits to the next token: parameters and their checks, filters, the sampler, and grammars (`grammar`).

Functions of NumPy arrays, independent of where logits come from and of who requested the tokens.
"""
