"""tokenizer.json from a list of SentencePiece's pieces, as a `tokenizer.model` or a GGUF file has one.

Kudo and Richardson 2018, https://github.com/google/sentencepiece.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, cast

from kiara_runtime.errors import UserError
from kiara_runtime.tokens import BLANK, added_token, bpe_definition

MODEL_FILE = "tokenizer.model"
MAX_MODEL_BYTES = 64 << 20


class Kind(IntEnum):
    """Of a piece, as in SentencePiece's own files and in GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece model.

    A Unigram model with bytes encodes a text such as `<0x41>` as that byte, which the `tokenizers` library does, too.

    names, scores, kinds: of each piece. prepend: whether a blank is put before a text. collapse: whether runs of blanks
    become one, and those at the ends none. charsmap: the compiled normalisation of characters.
    """

    names: list[str]
    scores: list[float]
    kinds: list[int]
    unigram: bool = False
    prepend: bool = True
    collapse: bool = False
    charsmap: bytes = b""

    def definition(self) -> dict[str, Any]:
        """A tokenizer.json that gives the same tokens."""
        added = [
            {**added_token(name, i), "special": kind != Kind.USER_DEFINED}
            for i, (name, kind) in enumerate(zip(self.names, self.kinds, strict=True))
            if kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
        ]
        strip = {"type": "Strip", "content": " ", "start": int(self.prepend), "stop": 0}
        back = {"type": "Replace", "pattern": {"String": BLANK}, "content": " "}
        decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if self.prepend else [])]
        return {
            **bpe_definition(vocab={}, merges=[], added=added, steps=[], ignore_merges=False),
            "normalizer": {"type": "Sequence", "normalizers": list(self._normalizers())},
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": self._unigram() if self.unigram else self._bpe(),
        }

    def _normalizers(self) -> Iterator[dict[str, Any]]:
        if self.charsmap:
            yield {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(self.charsmap).decode()}
        if self.collapse:
            yield {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""}
            yield {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
        if self.prepend:
            yield {"type": "Prepend", "prepend": BLANK}
        yield {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}

    @property
    def _unknown(self) -> int | None:
        return self.kinds.index(Kind.UNKNOWN) if Kind.UNKNOWN in self.kinds else None

    def _unigram(self) -> dict[str, Any]:
        return {
            "type": "Unigram",
            "unk_id": self._unknown,
            "vocab": [list(pair) for pair in zip(self.names, self.scores, strict=True)],
            "byte_fallback": Kind.BYTE in self.kinds,
        }

    def _bpe(self) -> dict[str, Any]:
        unknown = self._unknown
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else self.names[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": Kind.BYTE in self.kinds,
            "ignore_merges": False,
            "vocab": {name: i for i, name in enumerate(self.names)},
            "merges": list(self._merges()),
        }

    def _merges(self) -> Iterator[list[str]]:
        """Every pair of pieces that joins into a third, best score first."""
        normal = {name: i for i, name in enumerate(self.names) if self.kinds[i] == Kind.NORMAL}
        longer = (name for name in normal if len(name) > 1)
        for name in sorted(longer, key=lambda name: (-self.scores[normal[name]], normal[name])):
            cuts = ((name[:cut], name[cut:]) for cut in range(1, len(name)))
            found = [(normal[first], normal[rest]) for first, rest in cuts if first in normal and rest in normal]
            for first, rest in sorted(found):
                yield [self.names[first], self.names[rest]]


def read_pieces(path: Path) -> Pieces:
    """The pieces of a `tokenizer.model`; raises UserError if it is damaged or of another kind."""
    try:
        from sentencepiece import SentencePieceProcessor
        from sentencepiece import sentencepiece_model_pb2 as protobuf
    except ImportError:
        remedy = "pip install 'kiara-slm[sentencepiece]'"
        raise UserError(path, "reading it needs the package sentencepiece", remedy) from None
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise UserError(path, f"is larger than {MAX_MODEL_BYTES >> 20} MiB", "use the file of one tokenizer")
    data = path.read_bytes()
    try:
        SentencePieceProcessor(model_proto=data)  # checks what protobuf does not
        if not data:
            raise ValueError("it is empty")
        model: Any = cast("Any", protobuf).ModelProto.FromString(data)
    except Exception as error:  # protobuf's and the library's own kinds
        raise UserError(path, f"damaged or truncated ({' '.join(str(error).split())})", "download it again") from None
    trained, normal = model.trainer_spec, model.normalizer_spec
    kinds = {trained.UNIGRAM: True, trained.BPE: False}
    if trained.model_type not in kinds or trained.treat_whitespace_as_suffix or not normal.escape_whitespaces:
        raise UserError(path, "is neither BPE nor Unigram with blanks before words", "use another model")
    return Pieces(
        # User-defined pieces are found in the text itself, before its blanks are replaced.
        [piece.piece.replace(BLANK, " ") if piece.type == Kind.USER_DEFINED else piece.piece for piece in model.pieces],
        [piece.score for piece in model.pieces],
        [piece.type for piece in model.pieces],
        kinds[trained.model_type],
        normal.add_dummy_prefix,
        normal.remove_extra_whitespaces,
        normal.precompiled_charsmap,
    )
