"""A tokenizer's vocabulary as llguidance reads it."""

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
_MARKER = 0xFF  # what llguidance's special tokens begin with, and never a byte of UTF-8


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llguidance's terms.

    trie: an LLTokenizer, with further ids behind the tokenizer's; making it takes a tenth of a second for 50,000.
    has_text: (vocab_size,), the ids that a grammar can ask for. risky: (vocab_size,), those that begin a character
    which the model may then be unable to end, as a byte is no token; none where all bytes are.
    """

    trie: Any
    has_text: NDArray[np.bool_]
    risky: NDArray[np.bool_]


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The tokenizer's vocabulary, made at the first call and kept as long as the tokenizer; from any thread."""
    with _lock:
        if tokenizer not in _vocabularies:
            _vocabularies[tokenizer] = _read(tokenizer)
        return _vocabularies[tokenizer]


_lock = threading.Lock()
_vocabularies: WeakKeyDictionary[Tokenizer, Vocabulary] = WeakKeyDictionary()


def _read(tokenizer: Tokenizer) -> Vocabulary:
    texts = _Texts(tokenizer)
    own = texts.tokens[: tokenizer.vocab_size]
    complete = texts.missing.isdisjoint(range(0x80, 0xC0))  # bytes that go on with a character
    return Vocabulary(
        trie=library_for("tokenizer").LLTokenizer(texts),
        has_text=np.array([bool(text) for text in own], dtype=np.bool_),
        risky=np.array([not complete and _ends_inside(text) for text in own], dtype=np.bool_),
    )


class _Texts:
    """What llguidance reads of a tokenizer; the names are those of its TokenizerWrapper.

    After the tokenizer's own ids come one that stands for every end of text, and one for each byte that is no token:
    so every text has tokens, and where a text needs one of those it is seen that the model cannot write it.
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
        # Weak, as llguidance keeps this object where Python cannot see a cycle.
        self._encode = WeakMethod(tokenizer.encode)

    def __call__(self, text: str) -> list[int]:
        """Ids of a text that a grammar forces: the tokenizer's, unless they spell another (normalised, a byte lost)."""
        data, encode = text.encode(), self._encode()
        try:
            ids = [] if encode is None else encode(text)
        except UserError:  # white space on end
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
    """Whether a character of UTF-8 is begun at the text's end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return bool(decoder.getstate()[0])


def library_for(field: str) -> Any:
    """llguidance; raises UserError, by the field that needs it, where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise UserError(field, "needs the package llguidance", "pip install 'kiara-runtime[structured]'") from None
    return llguidance
