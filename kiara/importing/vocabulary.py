"""Which entries of a vocabulary a text needs, and a tokenizer with those only.

Byte-pair encoding never undoes a merge: all tokens made on the way to a text's final tokens are parts of these. So a
text is tokenized as before if its tokens, and all the tokens that each is merged from, are kept, with their merges in
order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from kiara_runtime.errors import UserError
from kiara_runtime.tokens import Tokenizer, byte_characters

MULTIPLE = 64  # of the vocabulary's size, as kernels want it
_UNUSED = re.compile(r"<unused\d+>|<\|reserved_special_token_\d+\|>")  # thousands in Gemma and Llama 3, never trained


def kept_ids(tokenizer: Tokenizer, used: Iterable[int], always: Iterable[int] = ()) -> list[int]:
    """The ids to keep, ascending: the used ones with their parts, all bytes, and added tokens but those of no use.

    always: further ids, which may lie beyond the tokenizer's, in a padded vocabulary. Filled up with the lowest other
    ids, the most frequent merges, to a multiple of 64. Raises UserError for a Unigram model.
    """
    model = tokenizer.definition["model"]
    if model["type"] != "BPE":
        raise UserError("tokenizer.json", "only the vocabulary of a BPE can be trimmed", "take another model")
    names = {int(i): name for name, i in model["vocab"].items()}
    parts = _Parts(model)
    added = {int(entry["id"]): str(entry["content"]) for entry in tokenizer.definition["added_tokens"]}
    unused = {i for i, name in added.items() if _UNUSED.fullmatch(name)}
    bytes_ = (*byte_characters(), *(f"<0x{byte:02X}>" for byte in range(256)))
    kept = (
        added.keys() - unused | set(always) | {int(model["vocab"][name]) for name in bytes_ if name in model["vocab"]}
    )
    for token in used:
        kept |= parts.of(names[token], token) if token in names and token not in added else {token}
    for token in sorted(names.keys() - kept - unused):
        if len(kept) % MULTIPLE == 0:
            break
        kept |= parts.of(names[token], token) if len(parts.of(names[token], token) - kept) == 1 else set()
    return sorted(kept)


class _Parts:
    """The tokens that each token is merged from."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._ids: dict[str, int] = model["vocab"]
        pairs = (tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}

    def of(self, name: str, token: int) -> set[int]:
        """The token itself and all that it is merged from, in the order of the merges."""
        made, pieces = {token}, list(name)
        made.update(self._ids[piece] for piece in pieces if piece in self._ids)
        while len(pieces) > 1:
            ranked = [(self._ranks.get(pair, len(self._ranks)), i) for i, pair in enumerate(pairwise(pieces))]
            rank, at = min(ranked)
            if rank == len(self._ranks):  # only taken as a whole
                break
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
            made.add(self._ids[pieces[at]])
        return made


def trimmed_tokenizer(tokenizer: Tokenizer, kept: list[int]) -> Tokenizer:
    """A tokenizer with the kept entries, numbered anew in the same order."""
    new = {old: i for i, old in enumerate(kept)}
    definition = tokenizer.definition
    model = definition["model"]
    vocab = {name: new[int(i)] for name, i in model["vocab"].items() if int(i) in new}
    merges = [merge for merge in model["merges"] if _is_kept(merge, vocab)]
    definition["model"] = {**model, "vocab": vocab, "merges": merges}
    entries = definition["added_tokens"]
    definition["added_tokens"] = [{**entry, "id": new[int(entry["id"])]} for entry in entries if entry["id"] in new]
    definition["post_processor"] = _renumbered(definition.get("post_processor"), new)
    config = {name: value for name, value in tokenizer.config.items() if name != "added_tokens_decoder"}
    if tokenizer.prompt_prefix:
        config["kiara_prompt_prefix"] = [new[i] for i in tokenizer.prompt_prefix]
    return Tokenizer(definition, config)


def _is_kept(merge: str | list[str], vocab: Mapping[str, int]) -> bool:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first in vocab and second in vocab and first + second in vocab


def _renumbered(step: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with the new ids of the special tokens that it inserts."""
    if not isinstance(step, dict):
        return step
    known: dict[str, Any] = dict(step)
    if known.get("type") == "Sequence":
        known["processors"] = [_renumbered(each, new) for each in known["processors"]]
    elif known.get("type") == "TemplateProcessing":
        known["special_tokens"] = {
            name: {**token, "ids": [new[int(i)] for i in token["ids"]]}
            for name, token in known["special_tokens"].items()
        }
    elif known.get("type") != "ByteLevel":
        raise UserError("tokenizer.json", f"has a post-processor {known.get('type')!r}", "take another model")
    return known
