"""Text to token files: sources, documents, the split, the tokenizer's training; and batches of what was prepared.

Nothing here knows a model.
"""
