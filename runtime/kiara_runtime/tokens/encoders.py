"""The two libraries that encode text: tiktoken, and `tokenizers` for what tiktoken cannot do exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, cast

import tiktoken

from kiara_runtime.errors import UserError
from kiara_runtime.tokens.sentencepiece import BLANK
from kiara_runtime.tokens.vocabulary import After, Merges, Prepend

_END = "\0"  # merges with nothing


class TiktokenEncoder:
    """Encodes with tiktoken, after the added tokens are taken out of a text."""

    def __init__(self, merges: Merges, added: Mapping[str, int]) -> None:
        self._merges, self._added = merges, added
        self._pattern = added_pattern(added) if added else None
        self.ranks_are_ids = merges.ids is None
        try:
            # Built directly: tiktoken's own loader caches by path and would return stale ranks.
            self._tiktoken = tiktoken.Encoding(
                "kiara", pat_str=merges.pattern, mergeable_ranks=merges.ranks, special_tokens={}
            )
        except ValueError as error:  # an invalid expression
            raise UserError(
                "tokenizer.json", f"tiktoken cannot read its split pattern ({error})", "fetch it again"
            ) from None

    def encode(self, text: str, after: After) -> list[int]:
        """Ids of the text. after: what it comes after."""
        if self._pattern is None and self.ranks_are_ids:
            return self._tiktoken.encode_ordinary(text)
        parts = self._parts(text, after)
        return self._joined(parts, (self._tiktoken.encode_ordinary(part) for part in parts if isinstance(part, str)))

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Encode several texts, on several threads."""
        split = [self._parts(text, "nothing") for text in texts]
        flat = [part for parts in split for part in parts if isinstance(part, str)]
        encoded = iter(self._tiktoken.encode_ordinary_batch(flat, num_threads=threads))
        return [self._joined(parts, encoded) for parts in split]

    def _parts(self, text: str, after: After) -> list[str | int]:
        """The text as tiktoken gets it, in parts, and the ids of the added tokens between these."""
        split = self._pattern.split(text) if self._pattern else [text]
        return [
            self._added[part] if i % 2 else self._prepared(part, after if i == 0 else "special")
            for i, part in enumerate(split)
            if part
        ]

    def _prepared(self, part: str, after: After) -> str:
        if self.ranks_are_ids:
            return part
        part = part.replace(BLANK, " ")
        merges = self._merges
        blank = prepends(merges.prepend, after) and (merges.prepend_to_blank or part[0] != " ")
        return (" " if blank else "") + part + _END

    def _joined(self, parts: Iterable[str | int], encoded: Iterable[list[int]]) -> list[int]:
        """The ids of all parts. encoded: tiktoken's ranks of those that are text."""
        ids, rest, table = list[int](), iter(encoded), self._merges.ids
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            elif table is None:
                ids += next(rest)
            else:
                ids += [i for rank in next(rest)[:-1] for i in table[rank]]
        return ids


class LibraryEncoder:
    """Encodes with the `tokenizers` library, an extra.

    definition: the content of a tokenizer.json. prepend: where it puts a blank before a text.
    """

    def __init__(self, definition: str, prepend: Prepend) -> None:
        try:
            import tokenizers
        except ImportError:
            raise UserError(
                "tokenizer", "this one needs the package tokenizers", "pip install 'kiara-runtime[tokenizers]'"
            ) from None
        self._library = cast("Any", tokenizers).Tokenizer
        definition = _without_special(definition)
        self._prepend: Prepend = prepend
        self._usual = self._prepared(definition)
        self._without = self._usual if prepend == "never" else self._prepared(_without_prepend(definition))

    def encode(self, text: str, after: After) -> list[int]:
        """Ids of the text. after: what it comes after."""
        library = self._usual if prepends(self._prepend, after) else self._without
        return list(library.encode(text, add_special_tokens=False).ids)

    def _prepared(self, definition: str) -> Any:
        library = self._library.from_str(definition)
        library.encode_special_tokens = True  # encodes their names as ordinary text
        library.no_truncation()
        library.no_padding()
        return library


def prepends(prepend: Prepend, after: After) -> bool:
    """Whether a blank is put before a text. after: what the text comes after."""
    return (prepend == "always" and after != "text") or (prepend == "first" and after == "nothing")


def _without_special(definition: str) -> str:
    """A tokenizer.json whose Unigram model does not find the names of special tokens in a text.

    A piece with a blank is never found, because blanks of the text are replaced before.
    """
    if '"Unigram"' not in definition:  # parsing a large file takes long
        return definition
    values = json.loads(definition)
    if values["model"]["type"] != "Unigram":
        return definition
    special = {token["content"] for token in values["added_tokens"] if token["special"]}
    pieces = [[f" {name}" if name in special else name, score] for name, score in values["model"]["vocab"]]
    found = [token for token in values["added_tokens"] if not token["special"]]
    return json.dumps({**values, "added_tokens": found, "model": {**values["model"], "vocab": pieces}})


def _without_prepend(definition: str) -> str:
    """A tokenizer.json that puts no blank before a text."""
    never = {"prepend_scheme": "never", "add_prefix_space": False}

    def changed(step: Any) -> Any:
        if isinstance(step, list):
            return [changed(one) for one in cast("list[dict[str, Any]]", step) if one["type"] != "Prepend"]
        if not isinstance(step, dict):
            return step
        known = cast("dict[str, Any]", step)
        if known.get("type") == "Prepend":
            return None
        inner = {name: changed(known[name]) for name in ("normalizers", "pretokenizers") if name in known}
        return {**known, **inner, **(never if known["type"] == "Metaspace" else {})}

    values = json.loads(definition)
    return json.dumps({**values, **{name: changed(values[name]) for name in ("normalizer", "pre_tokenizer")}})


def added_pattern(added: Iterable[str]) -> re.Pattern[str]:
    """Finds the added tokens in a text, the longest at each place. Grouped by first letter, which is faster."""
    names = sorted(added, key=lambda name: (name[0], -len(name)))
    groups = (
        f"{re.escape(first)}(?:{'|'.join(re.escape(name[1:]) for name in group)})"
        for first, group in groupby(names, key=lambda name: name[0])
    )
    return re.compile(f"({'|'.join(groups)})")
