"""Text to token ids and back: the tokenizer and its file, streamed text, chat templates.

Choosing tokens is in `sampling`, computing logits in `engine`.
"""

from kiara_runtime.tokens.chat import Message, can_chat, chat_ids, chat_problems, chat_text, ids_of, read_messages
from kiara_runtime.tokens.golden import golden_ids, load_tokenizer
from kiara_runtime.tokens.infill import infill_ends, infill_ids
from kiara_runtime.tokens.sentencepiece import BLANK
from kiara_runtime.tokens.template import TemplateRefusalError, template_of
from kiara_runtime.tokens.text_stream import TextStream
from kiara_runtime.tokens.tokenizer import Tokenizer, check_text
from kiara_runtime.tokens.tokenizer_json import (
    END_OF_TEXT,
    SPLIT_PATTERN,
    added_token,
    bpe_definition,
    byte_characters,
    byte_level_step,
    split_step,
)

__all__ = [
    "BLANK",
    "END_OF_TEXT",
    "SPLIT_PATTERN",
    "Message",
    "TemplateRefusalError",
    "TextStream",
    "Tokenizer",
    "added_token",
    "bpe_definition",
    "byte_characters",
    "byte_level_step",
    "can_chat",
    "chat_ids",
    "chat_problems",
    "chat_text",
    "check_text",
    "golden_ids",
    "ids_of",
    "infill_ends",
    "infill_ids",
    "load_tokenizer",
    "read_messages",
    "split_step",
    "template_of",
]
