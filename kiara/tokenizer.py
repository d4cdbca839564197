"""Training the byte-level BPE. Using it is `kiara_runtime.tokenizer`'s."""

from __future__ import annotations

import json
from collections.abc import Iterable

from kiara_runtime.tokenizer import Tokenizer
from kiara_runtime.tokenizer_json import END_OF_TEXT, SPLIT_PATTERN, byte_characters


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges until the vocabulary has `vocab_size` entries, special tokens included.

    Text with too few pairs to merge gives a smaller vocabulary; it is filled up to a multiple of 64
    with reserved special tokens, so that every id of the model's table is a real one.
    """
    # Imported here: the library starts a thread pool, which `kiara --help` need not wait for.
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trainable

    trainable = Trainable(models.BPE())
    trainable.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # END_OF_TEXT follows
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trainable.train_from_iterator(texts, trainer)
    tokens = _in_merge_order(json.loads(trainable.to_str())["model"]["merges"])
    reserved = -(len(tokens) + 1) % 64
    special = [END_OF_TEXT, *(f"<|reserved_{i}|>" for i in range(reserved))]
    return Tokenizer.from_merges(tokens, {name: len(tokens) + i for i, name in enumerate(special)})


def _in_merge_order(merges: list[list[str]]) -> list[bytes]:
    to_byte = {character: byte for byte, character in enumerate(byte_characters())}
    tokens = [bytes([byte]) for byte in range(256)]
    merged = (bytes(to_byte[character] for character in left + right) for left, right in merges)
    return list(dict.fromkeys([*tokens, *merged]))  # two merges may make the same token: it keeps the first rank
