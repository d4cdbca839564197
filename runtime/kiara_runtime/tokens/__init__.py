"""Text to token ids and back: the tokenizer and its file, streamed text, chat templates.

Choosing tokens is in `sampling`, computing logits in `engine`.
"""
