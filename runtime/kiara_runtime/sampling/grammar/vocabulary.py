"""A tokenizer's vocabulary in the form that llguidance reads."""

from __future__ import annotations

import codecs
import threading
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.errors import UserError
from kiara_runtime.tokens import Tokenizer

MAX_TOKEN_BYTES = 1000  # llguidance panics at 1024
_MARKER = 0xFF  # the first byte of llguidance's special tokens; never a byte of UTF-8


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's vocabulary for llguidance.

    trie: an LLTokenizer, with further ids after the tokenizer's; building it takes a tenth of a second for 50,000 ids.
    has_text: (vocab_size,), the ids that a grammar can ask for. risky: (vocab_size,), those that end inside a character
    that the model may be unable to complete, as some bytes are not tokens; none if all bytes are.
    """

    trie: Any
    has_text: NDArray[np.bool_]
    risky: NDArray[np.bool_]


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The tokenizer's vocabulary, built at the first call and kept as long as the tokenizer. Thread-safe."""
    with _lock:
        if tokenizer not in _vocabularies:
            _vocabularies[tokenizer] = _read(tokenizer)
        return _vocabularies[tokenizer]


_lock = threading.Lock()
_vocabularies: WeakKeyDictionary[Tokenizer, Vocabulary] = WeakKeyDictionary()


def _read(tokenizer: Tokenizer) -> Vocabulary:
    texts = _Texts(tokenizer)
    own = texts.tokens[: tokenizer.vocab_size]
    complete = texts.missing.isdisjoint(range(0x80, 0xC0))  # UTF-8 continuation bytes
    return Vocabulary(
        trie=library_for("tokenizer").LLTokenizer(texts),
        has_text=np.array([bool(text) for text in own], dtype=np.bool_),
        risky=np.array([not complete and _ends_inside(text) for text in own], dtype=np.bool_),
    )


class _Texts:
    """What llguidance reads of a tokenizer; the names are those of its TokenizerWrapper.

    After the tokenizer's own ids come one for all end-of-text tokens, and one for each byte that is not a token. So
    every text has tokens, and one that needs these bytes is recognised as text that the model cannot write.
    """

    is_tokenizer_wrapper, bos_token_id, special_token_ids = True, None, ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = tokenizer.token_bytes
        usable = [b"" if _MARKER in text or len(text) > MAX_TOKEN_BYTES else text for text in texts]
        self.missing = set(range(_MARKER)) - {text[0] for text in usable if len(text) == 1}
        self.eos_token_id = len(usable)
        self.tokens = [*usable, b"\xff<|end|>", *(bytes([byte]) for byte in self.missing)]
        self._ids = {text: i for i, text in enumerate(self.tokens) if text}
        self._longest = max(map(len, self.tokens))
        # Weak, as llguidance keeps this object where Python's garbage collector cannot see a cycle.
        self._encode = WeakMethod(tokenizer.encode)

    def __call__(self, text: str) -> list[int]:
        """Ids of a text that a grammar forces: the tokenizer's, unless they spell another (normalised, a byte lost)."""
        data, encode = text.encode(), self._encode()
        try:
            ids = [] if encode is None else encode(text)
        except UserError:  # too much white space in a row
            ids = []
        return ids if b"".join(self.tokens[i] for i in ids) == data else self._longest_first(data)

    def _longest_first(self, data: bytes) -> list[int]:
        ids: list[int] = []
        place = 0
        while place < len(data):
            sizes = range(min(self._longest, len(data) - place), 0, -1)
            size = next(size for size in sizes if data[place : place + size] in self._ids)
            ids.append(self._ids[data[place : place + size]])
            place += size
        return ids


def _ends_inside(text: bytes) -> bool:
    """Whether the bytes end inside a UTF-8 character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return bool(decoder.getstate()[0])


def library_for(field: str) -> Any:
    """Import llguidance; raises UserError for the field that needs it if it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise UserError(field, "needs the package llguidance", "pip install 'kiara-runtime[structured]'") from None
    return llguidance
