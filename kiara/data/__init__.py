"""From text to token files (sources, documents, split, tokenizer training), and batches of tokens.

Nothing here depends on the model.
"""
