"""Token ids that begin and end a text, as in generation_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiara.files import GENERATION_FILE, MAX_JSON_BYTES
from kiara_runtime.errors import UserError
from kiara_runtime.system import read_bounded_json
from kiara_runtime.tokens import END_OF_TEXT, Tokenizer


@dataclass(frozen=True)
class TokenIds:
    """Token ids that begin and end a text, as in generation_config.json."""

    bos: int
    eos: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenIds:
        """For a tokenizer that Kiara trained: the end-of-text token is both."""
        end = tokenizer.special_tokens[END_OF_TEXT]
        return cls(end, frozenset({end}))

    @classmethod
    def read(cls, folder: Path) -> TokenIds:
        values = read_bounded_json(folder / GENERATION_FILE, MAX_JSON_BYTES)
        eos: Any = values.get("eos_token_id")
        ends: list[Any] = eos if isinstance(eos, list) else [eos]
        given: Any = values.get("bos_token_id")
        bos: Any = ends[0] if given is None and ends else given  # without a BOS token, an EOS token begins a text
        if not ends or not all(type(i) is int and i >= 0 for i in (*ends, bos)):
            raise UserError(
                folder / GENERATION_FILE,
                f"eos_token_id {eos!r} or bos_token_id {bos!r} is no token id",
                "give whole numbers",
            )
        return cls(bos, frozenset(ends))

    def json(self) -> dict[str, Any]:
        """The fields of generation_config.json and config.json."""
        ends = sorted(self.eos)
        return {"bos_token_id": self.bos, "eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": ends[0]}
