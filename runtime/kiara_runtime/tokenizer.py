"""Byte-level BPE: the tokenizer's file format, and its use through tiktoken.

A tokenizer is a list of byte strings in merge order (ids 0 to 255 are the bytes), special tokens after
them, and a split pattern. On disk it is a Hugging Face `tokenizer.json`, which the runtime reads, and
the same as `tokenizer.tiktoken` for programs that use tiktoken by themselves. Text from a user never
becomes a special token: ids of those are inserted by the caller, not parsed.

Training the merges is not done here (`kiara.tokenizer`).
"""

from __future__ import annotations

import base64
import json
import operator
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import tiktoken

from kiara_runtime.errors import UserError

# The split pattern of Llama 3. It has no possessive quantifiers, which onnxruntime-genai refuses.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.tiktoken")
MAX_TOKENIZER_BYTES = 64 << 20
MAX_WHITE_SPACE = 200_000
_LONG_WHITE_SPACE = re.compile(rf"\s{{{MAX_WHITE_SPACE}}}")


class Tokenizer:
    """Text to token ids and back.

    tokens: the byte string of each ordinary id, in merge order. special_tokens: name to id, the ids
    following on the last ordinary one.
    """

    def __init__(self, tokens: Sequence[bytes], special_tokens: dict[str, int], pattern: str = SPLIT_PATTERN) -> None:
        expected = list(range(len(tokens), len(tokens) + len(special_tokens)))
        if sorted(special_tokens.values()) != expected:
            raise UserError(f"tokenizer: the ids of the special tokens must be {expected}, found {special_tokens}")
        ranks = {token: rank for rank, token in enumerate(tokens)}
        if len(ranks) != len(tokens) or any(bytes([byte]) not in ranks for byte in range(256)):
            raise UserError("tokenizer: a token stands twice, or one of the 256 bytes is missing")
        self.tokens, self.special_tokens, self.pattern = list(tokens), special_tokens, pattern
        # Built directly: tiktoken's own loader caches by path and would return stale ranks.
        self._encoding = tiktoken.Encoding(
            "kiara", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens
        )

    @property
    def vocab_size(self) -> int:
        return len(self.tokens) + len(self.special_tokens)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The text of every id as bytes; special tokens stand for no text."""
        return self.tokens + [b""] * len(self.special_tokens)

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(_splittable(text))

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        return self._encoding.encode_ordinary_batch([_splittable(text) for text in texts], num_threads=threads)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD. Special tokens give nothing."""
        return b"".join(self.token_bytes[i] for i in self.check_ids(ids)).decode("utf-8", "replace")

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """The ids as a list; raises UserError where one is no whole number or outside the vocabulary."""
        try:
            checked = [operator.index(i) for i in ids]
        except TypeError:
            raise UserError(f"token ids: give a list of whole numbers, not {ids!r:.60}") from None
        for i in checked:
            if not 0 <= i < self.vocab_size:
                raise UserError(f"token ids: {i} is outside the vocabulary (0 to {self.vocab_size - 1})")
        return checked

    def save(self, folder: Path) -> None:
        """Write the three files that describe this tokenizer into `folder`."""
        texts = {
            "tokenizer.json": json.dumps(_to_json(self), ensure_ascii=False, separators=(",", ":")),
            "tokenizer_config.json": json.dumps(_config_json(self), indent=2) + "\n",
            "tokenizer.tiktoken": "".join(
                f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(self.tokens)
            ),
        }
        for name in TOKENIZER_FILES:
            (folder / name).write_text(texts[name], "utf-8")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json` of a folder; raises UserError where it is no byte-level BPE."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; a tokenizer belongs beside the model")
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise UserError(f"{path}: larger than {MAX_TOKENIZER_BYTES >> 20} MiB, which no tokenizer of ours is")
        try:
            return _from_json(json.loads(path.read_text("utf-8")))
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: not a byte-level BPE tokenizer that this runtime reads ({error!r})") from None


def _splittable(text: str) -> str:
    """tiktoken's pattern engine keeps a place on its stack for every character of a run of white space."""
    if len(text) > MAX_WHITE_SPACE and _LONG_WHITE_SPACE.search(text):
        raise UserError(f"text: over {MAX_WHITE_SPACE} white-space characters on end; shorten that stretch")
    return text


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in `tokenizer.json` (Radford et al. 2019)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    characters = byte_characters()
    spelled = ["".join(characters[byte] for byte in token) for token in tokenizer.tokens]
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(name, i) for name, i in tokenizer.special_tokens.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # as tiktoken: a piece that is a token as a whole is that token
            "vocab": {name: i for i, name in enumerate(spelled)},
            "merges": list(_merges(spelled)),
        },
    }


def _merges(spelled: list[str]) -> Iterator[list[str]]:
    """Every pair that joins into a token, by the token's rank: tiktoken merges by the result alone."""
    known = set(spelled)
    for token in spelled:
        for cut in range(1, len(token)):
            if token[:cut] in known and token[cut:] in known:
                yield [token[:cut], token[cut:]]


def _added_token(name: str, token_id: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": name, **flags}


def _config_json(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "added_tokens_decoder": {
            str(i): {key: value for key, value in _added_token(name, i).items() if key != "id"}
            for name, i in tokenizer.special_tokens.items()
        },
    }


def _from_json(values: dict[str, Any]) -> Tokenizer:
    split, byte_level = values["pre_tokenizer"]["pretokenizers"]
    model = values["model"]
    if model["type"] != "BPE" or not model["ignore_merges"] or byte_level["type"] != "ByteLevel":
        raise UserError("tokenizer.json: only byte-level BPE with ignore_merges is read here")
    to_byte = {character: byte for byte, character in enumerate(byte_characters())}
    vocab = cast("dict[str, int]", model["vocab"])
    tokens = [bytes(to_byte[character] for character in name) for name in sorted(vocab, key=vocab.__getitem__)]
    if sorted(vocab.values()) != list(range(len(tokens))):
        raise UserError("tokenizer.json: the vocabulary has gaps in its ids")
    special = {str(entry["content"]): int(entry["id"]) for entry in values["added_tokens"]}
    return Tokenizer(tokens, special, str(split["pattern"]["Regex"]))
