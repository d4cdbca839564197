"""What a tokenizer.json says: its tokens, and how tiktoken can encode with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kiara_runtime.errors import UserError

# Where SentencePiece puts a blank before a text: never, at its beginning, or also after special tokens. The names are
# those of `prepend_scheme` in tokenizer.json.
Prepend = Literal["never", "first", "always"]
After = Literal["nothing", "special", "text"]  # what a text that is encoded comes after
MAX_TOKEN_ID = 1 << 24


@dataclass(frozen=True)
class Merges:
    """A BPE as tiktoken runs it.

    ranks: of each byte string, lowest first. pattern: splits a text into the pieces that are merged. ids: the token ids
    that each rank stands for, several if its bytes are a part of a character that is no token; None if a rank is the
    id. prepend: as in tokenizer.json. prepend_to_blank: also before a part that begins with a blank.
    """

    ranks: dict[bytes, int]
    pattern: str
    ids: list[tuple[int, ...]] | None = None
    prepend: Prepend = "never"
    prepend_to_blank: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """The contents of a tokenizer.json.

    texts: the bytes of each ordinary token, by id. special: ids of special tokens; added: of other added tokens, which
    are found in a text before it is split. merges: None if only the `tokenizers` library can encode. missing: bytes
    that are not tokens, on which tiktoken fails and which the library drops. prepend: as in `Merges`. strips_before,
    strips_after: special tokens that take the white space on this side away.
    """

    texts: dict[int, bytes]
    special: dict[str, int]
    added: dict[str, int]
    merges: Merges | None
    missing: bytes = b""
    prepend: Prepend = "never"
    strips_before: frozenset[str] = frozenset()
    strips_after: frozenset[str] = frozenset()


def check_ids(*ids: Iterable[int]) -> None:
    """Raise UserError if two tokens have the same id, or if one is out of bounds."""
    listed = [i for each in ids for i in each]
    if len(set(listed)) != len(listed) or min(listed) < 0 or max(listed) > MAX_TOKEN_ID:
        raise UserError("tokenizer.json", "two tokens share an id, or an id is out of bounds", "fetch it again")
