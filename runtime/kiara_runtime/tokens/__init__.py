"""Text to token ids and back: the tokenizer and its file, text that grows by whole characters, chat templates.

Nothing here chooses tokens (`sampling`) or computes logits (`engine`).
"""
