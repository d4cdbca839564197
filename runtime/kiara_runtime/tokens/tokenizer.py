"""Text to token ids and back.

tiktoken encodes byte-level BPE if it does exactly what the tokenizer's file says. Otherwise the `tokenizers` library,
an extra, does: for a normaliser, a split that is not a single expression, bytes that are not tokens, or if
`kiara_engine` in tokenizer_config.json says so, which an import sets after comparing both. Text from a user never
becomes a special token: the caller inserts the ids of those.

`kiara.data.tokenizer_training` trains the merges.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, cast

import tiktoken

from kiara_runtime.errors import UserError
from kiara_runtime.system import parse_object, read_bounded, read_bounded_json
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT, make_definition, read_vocabulary

MAX_WHITE_SPACE = 200_000
_LONG_WHITE_SPACE = re.compile(rf"(?<!\s)\s{{{MAX_WHITE_SPACE}}}")  # looks at each run once
Encode = Callable[[str], list[int]]


class Tokenizer:
    """A byte-level BPE tokenizer.

    definition: a parsed tokenizer.json; text: the same unparsed. config: a parsed tokenizer_config.json. engine: the
    library that encodes, "tiktoken" or "tokenizers".
    """

    def __init__(self, definition: Mapping[str, Any], config: Mapping[str, Any], text: str | None = None) -> None:
        vocabulary = read_vocabulary(definition)
        # Kept as text: parsed, it takes ten times the memory, and it is seldom needed again.
        self._definition = text or json.dumps(definition, ensure_ascii=False, separators=(",", ":"))
        self.config = dict(config)
        self.special_tokens, self._added, self._ranks = vocabulary.special, vocabulary.added, vocabulary.ranks
        self.pattern, self._missing = vocabulary.pattern, vocabulary.missing
        exact = self.pattern is not None and not self._added
        usual = "tokenizers" if self._missing else "tiktoken"
        self.engine: str = str(config.get("kiara_engine", usual)) if exact else "tokenizers"
        self._encode = self._through_tiktoken() if self.engine == "tiktoken" else self._library

    @classmethod
    def from_merges(cls, tokens: Sequence[bytes], special_tokens: Mapping[str, int]) -> Tokenizer:
        """A new tokenizer: tokens in merge order, then special tokens, which include END_OF_TEXT."""
        names = {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "pad")}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
        return cls(make_definition(tokens, special_tokens), config)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read the files of a folder; raises UserError if they are not a byte-level BPE."""
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
        (folder / "tokenizer.json").write_text(self._definition, "utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(self.config, indent=2) + "\n", "utf-8")
        if self.engine == "tiktoken" and not self._missing:
            lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in self._ranks.items())
            (folder / "tokenizer.tiktoken").write_text("".join(lines), "utf-8")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self.token_bytes)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The text of every id as bytes; empty for special tokens and unused ids."""
        texts = {i: token for token, i in self._ranks.items()}
        texts.update((i, name.encode()) for name, i in self._added.items())
        size = max([*texts, *self.special_tokens.values()]) + 1
        return [texts.get(i, b"") for i in range(size)]

    @property
    def prompt_prefix(self) -> list[int]:
        """Ids at the start of every text prompt, such as a begin-of-text token."""
        return [int(i) for i in self.config.get("kiara_prompt_prefix", [])]

    def first_token(self, bos: int) -> int:
        """The token before a text: END_OF_TEXT, as after another text, if the model has it, else `bos`."""
        return self.special_tokens.get(END_OF_TEXT, bos)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; names of special tokens in it are ordinary text."""
        return self._encode(check_text(text))

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Encode several texts, on several threads if tiktoken can do it."""
        if self.engine != "tiktoken" or self._missing:
            return [self.encode(text) for text in texts]
        return self._tiktoken.encode_ordinary_batch([check_text(text) for text in texts], num_threads=threads)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD. Special tokens have no text."""
        return b"".join(self.token_bytes[i] for i in self.check_ids(ids, "tokens")).decode("utf-8", "replace")

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

    @cached_property
    def _tiktoken(self) -> tiktoken.Encoding:
        # Built directly: tiktoken's own loader caches by path and would return stale ranks.
        return tiktoken.Encoding(
            "kiara", pat_str=self.pattern or "", mergeable_ranks=self._ranks, special_tokens=self.special_tokens
        )

    def _through_tiktoken(self) -> Encode:
        try:
            encode = self._tiktoken.encode_ordinary
        except ValueError as error:  # an invalid expression
            raise UserError(
                "tokenizer.json", f"tiktoken cannot read its split pattern ({error})", "fetch it again"
            ) from None
        return self._where_complete(encode) if self._missing else encode

    def _where_complete(self, encode: Encode) -> Encode:
        """Use the library, which is slow to load, only for the rare texts with a byte that is not a token."""

        def either(text: str) -> list[int]:
            data = text.encode("utf-8", "surrogatepass")
            return encode(text) if len(data.translate(None, self._missing)) == len(data) else self._library(text)

        return either

    @cached_property
    def _library(self) -> Encode:
        return self._through_tokenizers()

    def _through_tokenizers(self) -> Encode:
        try:
            import tokenizers
        except ImportError:
            raise UserError(
                "tokenizer", "this one needs the package tokenizers", "pip install 'kiara-runtime[tokenizers]'"
            ) from None
        library = cast("Any", tokenizers).Tokenizer.from_str(self._definition)
        library.encode_special_tokens = True  # encodes their names as ordinary text
        library.no_truncation()
        library.no_padding()
        return lambda text: list(library.encode(text, add_special_tokens=False).ids)


def check_text(text: str) -> str:
    """Return the text if it can be split: tiktoken's engine uses stack for every white-space character of a run."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - Python does not check
        raise UserError("text", "is not text", "give a str", value=text)
    if len(text) > MAX_WHITE_SPACE and _LONG_WHITE_SPACE.search(text):
        raise UserError("text", f"over {MAX_WHITE_SPACE} white-space characters in a row", "shorten that run")
    return text
