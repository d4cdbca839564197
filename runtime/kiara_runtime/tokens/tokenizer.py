"""Text to token ids and back.

tiktoken encodes a BPE, byte-level or SentencePiece's, if it does exactly what the tokenizer's file says. Otherwise the
`tokenizers` library, an extra, does: for Unigram models, a normaliser, a split that is not a single expression, bytes
that are not tokens, or if `kiara_engine` in tokenizer_config.json says so, which an import sets after comparing both.
Text from a user never becomes a special token: the caller inserts the ids of those.

`kiara.data.tokenizer_training` trains the merges.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

from kiara_runtime.errors import UserError
from kiara_runtime.system import parse_object, read_bounded, read_bounded_json
from kiara_runtime.tokens.encoders import LibraryEncoder, TiktokenEncoder
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT, make_definition, read_vocabulary
from kiara_runtime.tokens.vocabulary import After, Prepend

MAX_WHITE_SPACE = 200_000
_LONG_WHITE_SPACE = re.compile(rf"(?<!\s)\s{{{MAX_WHITE_SPACE}}}")  # looks at each run once


class Tokenizer:
    """A BPE or Unigram tokenizer.

    definition: a parsed tokenizer.json; text: the same unparsed. config: a parsed tokenizer_config.json. engine: the
    library that encodes, "tiktoken" or "tokenizers". strips_before, strips_after: names of special tokens that take the
    white space before them, or after them, away.
    """

    def __init__(self, definition: Mapping[str, Any], config: Mapping[str, Any], text: str | None = None) -> None:
        vocabulary = read_vocabulary(definition)
        # Kept as UTF-8: parsed, it takes ten times the memory, and it is seldom needed again.
        self._definition = (text or json.dumps(definition, ensure_ascii=False, separators=(",", ":"))).encode()
        self.config = dict(config)
        self.special_tokens, self._added, self._texts = vocabulary.special, vocabulary.added, vocabulary.texts
        self.strips_before, self.strips_after = vocabulary.strips_before, vocabulary.strips_after
        self._missing = vocabulary.missing
        self._prepend: Prepend = vocabulary.prepend
        merges = vocabulary.merges
        usual = "tokenizers" if self._missing else "tiktoken"
        self.engine: str = str(config.get("kiara_engine", usual)) if merges else "tokenizers"
        self._tiktoken = None
        if merges and self.engine == "tiktoken":
            self._tiktoken = TiktokenEncoder(merges, self._added)
        else:
            self._library  # noqa: B018 - loaded now, so that a missing package is told now

    @classmethod
    def from_merges(cls, tokens: Sequence[bytes], special_tokens: Mapping[str, int]) -> Tokenizer:
        """A new tokenizer: tokens in merge order, then special tokens, which include END_OF_TEXT."""
        names = {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "pad")}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
        return cls(make_definition(tokens, special_tokens), config)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read the files of a folder; raises UserError if they are not such a tokenizer's."""
        text = read_bounded(folder / "tokenizer.json")
        definition = parse_object(folder / "tokenizer.json", text)
        config = folder / "tokenizer_config.json"
        try:
            return cls(definition, read_bounded_json(config) if config.is_file() else {}, text)
        except UserError as error:
            raise error.inside(folder) from None

    @property
    def definition(self) -> dict[str, Any]:
        """A parsed tokenizer.json."""
        return json.loads(self._definition)

    def save(self, folder: Path) -> None:
        """Write the files that describe this tokenizer into `folder`."""
        (folder / "tokenizer.json").write_bytes(self._definition)
        (folder / "tokenizer_config.json").write_text(json.dumps(self.config, indent=2) + "\n", "utf-8")
        if self._tiktoken is not None and self._tiktoken.ranks_are_ids and not self._missing:
            lines = (f"{base64.b64encode(token).decode()} {i}\n" for i, token in self._texts.items())
            (folder / "tokenizer.tiktoken").write_text("".join(lines), "utf-8")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self.token_bytes)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The text of every id as bytes; empty for special tokens and unused ids."""
        texts = {**{i: name.encode() for name, i in self._added.items()}, **self._texts}
        size = max([*texts, *self.special_tokens.values()]) + 1
        return [texts.get(i, b"") for i in range(size)]

    @property
    def prompt_prefix(self) -> list[int]:
        """Ids at the start of every text prompt, such as a begin-of-text token."""
        return [int(i) for i in self.config.get("kiara_prompt_prefix", [])]

    def first_token(self, bos: int) -> int:
        """The token before a text: END_OF_TEXT, as after another text, if the model has it, else `bos`."""
        return self.special_tokens.get(END_OF_TEXT, bos)

    def encode(self, text: str, after: After = "nothing") -> list[int]:
        """Ids of `text`; names of special tokens in it are ordinary text.

        after: what the text comes after. Some tokenizers put a blank before a text that begins, or that comes after a
        special token.
        """
        text = check_text(text)
        if self._tiktoken is None or self._has_missing(text):
            return self._library.encode(text, after)
        return self._tiktoken.encode(text, after)

    @property
    def is_local(self) -> bool:
        """Whether the tokens of a text are those of its parts, cut where the split pattern ends a piece anyway.

        SentencePiece has no such places, added tokens may lie across them, and the library's splits are not known here.
        """
        return self._tiktoken is not None and self._tiktoken.ranks_are_ids and not self._added

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Encode several texts, on several threads if tiktoken can do it."""
        if self._tiktoken is None or self._missing:
            return [self.encode(text) for text in texts]
        return self._tiktoken.encode_batch([check_text(text) for text in texts], threads)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD. Special tokens have no text.

        A blank that `encode` puts before a text is taken off again.
        """
        text = b"".join(self.token_bytes[i] for i in self.check_ids(ids, "tokens")).decode("utf-8", "replace")
        return text if self._prepend == "never" else text.removeprefix(" ")

    def check_ids(self, ids: Sequence[int], name: str = "prompt") -> list[int]:
        """The ids as a list; raises UserError for `name` if one is not an integer or not in the vocabulary."""
        try:
            checked = [index(i) for i in ids]
            wrong = isinstance(ids, (bytes, bytearray)) or any(isinstance(i, bool) for i in ids)
        except TypeError:
            checked, wrong = [], True
        if wrong:
            raise UserError(name, "is not a prompt", "give text or a list of token ids", value=ids)
        for i in checked:
            if not 0 <= i < self.vocab_size:
                raise UserError(name, f"token id {i} is outside the vocabulary", f"give 0 to {self.vocab_size - 1}")
        return checked

    def _has_missing(self, text: str) -> bool:
        """Whether a byte of the text is not a token: tiktoken would fail, and the library drops it."""
        if not self._missing:
            return False
        data = text.encode("utf-8", "surrogatepass")
        return len(data.translate(None, self._missing)) != len(data)

    @cached_property
    def _library(self) -> LibraryEncoder:  # loaded only where it is used, as it is slow to load
        return LibraryEncoder(self._definition.decode(), self._prepend)


def check_text(text: str) -> str:
    """Return the text if it can be split: tiktoken's engine uses stack for every white-space character of a run."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - Python does not check
        raise UserError("text", "is not text", "give a str", value=text)
    if len(text) > MAX_WHITE_SPACE and _LONG_WHITE_SPACE.search(text):
        raise UserError("text", f"over {MAX_WHITE_SPACE} white-space characters in a row", "shorten that run")
    return text
