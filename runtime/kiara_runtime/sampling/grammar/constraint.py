"""Constrains output, token by token, to a JSON Schema, a regular expression or a Lark grammar, through llguidance, an
extra.

A grammar describes text only: special tokens are never allowed, and the name of one in its text is ordinary text. An
end-of-text token is allowed exactly where the grammar lets the text end.

`kiara_runtime.engine.sequence` chooses among the allowed tokens.
"""

from __future__ import annotations

import copy
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.errors import UserError
from kiara_runtime.sampling.grammar.deep_stack import call_with_large_stack
from kiara_runtime.sampling.grammar.schema import find_failing_part, lark_text, schema_source
from kiara_runtime.sampling.grammar.vocabulary import Vocabulary, library_for, vocabulary_of
from kiara_runtime.tokens import Tokenizer

MAX_CHARACTERS = 1 << 15  # of a grammar: the worst ones of this size take llguidance some seconds, of more a minute
KEPT_GRAMMARS = 16  # per tokenizer, the last ones compiled
MAX_REASON = 160
_TOO_MUCH = "it is too complex at this point"
_NO_TEXT = "this model's tokens cannot spell any text that continues here"


class Constraint:
    """The grammar of one sequence, and the sequence's position in it. Not thread-safe.

    Every method also raises UserError if llguidance gives up: the grammar is too complex at this point, or the model's
    tokens cannot spell what it requires.
    """

    def __init__(
        self,
        matcher: Any,
        vocabulary: Vocabulary,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        refuse: Callable[[str], UserError],
        special: frozenset[int],
    ) -> None:
        """matcher: an LLMatcher at its start. refuse: makes an error from a reason. special: as `constrain` takes."""
        self._matcher, self._vocab_size, self._refuse = matcher, vocab_size, refuse
        self._eos = sorted(eos_token_ids)
        self._text, self._risky = vocabulary.has_text.copy(), vocabulary.risky
        assert len(self._text) <= vocab_size
        self._text[list(special)] = True
        self._text[[i for i in self._eos if i < len(self._text)]] = False  # these end the text, even one that has text
        self._allowed, self._more = self._look()

    def copy(self) -> Constraint:
        """A copy for another sequence."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def allowed(self) -> NDArray[np.bool_]:
        """(V,): which tokens may come next, including end-of-text tokens if the text may end. Read-only."""
        if self._allowed is None:
            self._allowed, self._more = self._look()
        return self._allowed

    def accept(self, token: int) -> None:
        """Append a token. Raises ValueError, and changes nothing, if the grammar does not allow it."""
        if token in self._eos and self.allowed()[token]:
            self._allowed, self._more = self._ends(True), False
        # Unlike consume_token, this does not report a wrong token as an error, so that limits can be told apart.
        elif self._is_text(token) and not self._matcher.is_stopped() and self._matcher.try_consume_tokens([token]):
            self._allowed = None
        else:
            self._check()
            raise ValueError(f"token {token}: the grammar does not allow it at this point")

    def forced(self) -> list[int]:
        """Tokens that must come next, often none. They are not accepted yet.

        The first is the only one that `allowed` permits; for the others it may permit other tokens with the same text.
        """
        tokens = cast("list[int]", self._matcher.compute_ff_tokens())
        self._check()
        return list(takewhile(self._is_text, tokens))

    @property
    def finished(self) -> bool:
        """Whether the text is complete: only an end-of-text token can follow."""
        self.allowed()
        return not self._more

    def _is_text(self, token: int) -> bool:
        return 0 <= token < len(self._text) and bool(self._text[token])

    def _look(self) -> tuple[NDArray[np.bool_], bool]:
        """The allowed tokens, and whether any of them has text."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        may_end = bool(self._matcher.is_accepting())
        text = np.unpackbits(bits, count=len(self._text), bitorder="little").view(np.bool_) & self._text
        safe = text & ~self._risky
        text, more = (safe, True) if safe.any() else (text, bool(text.any()))
        if not more and not may_end:
            raise self._refuse(_NO_TEXT)
        allowed = self._ends(may_end)
        allowed[: len(text)] |= text
        return allowed, more

    def _ends(self, allowed: bool) -> NDArray[np.bool_]:
        mask = np.zeros(self._vocab_size, dtype=np.bool_)
        mask[self._eos] = allowed
        return mask

    def _check(self) -> None:
        if self._matcher.is_error():
            self._allowed, reason = None, str(self._matcher.get_error())
            raise self._refuse(_NO_TEXT if reason.startswith("NoExtension") else reason)


_lock = threading.Lock()
_compiled: WeakKeyDictionary[Tokenizer, OrderedDict[object, Constraint]] = WeakKeyDictionary()


def constrain(
    tokenizer: Tokenizer,
    vocab_size: int,
    eos_token_ids: frozenset[int],
    *,
    json_schema: str | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    special: frozenset[int] = frozenset(),
) -> Constraint:
    """The constraint of a new sequence. Takes exactly one of json_schema (JSON text), regex and grammar (Lark).

    vocab_size: of the model, V; the tokenizer's may be smaller. special: special tokens that the grammar may ask for by
    their id, as `<[12]>`, which those of a request may not. The last few compiled grammars are cached. Raises
    UserError if llguidance is missing, cannot read the grammar or finds it too complex, or if no text satisfies it.
    """
    given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
    [(field, text)] = [(name, text) for name, text in given.items() if text is not None]
    key = (vocab_size, eos_token_ids, field, text, special)
    with _lock:
        known = _compiled.setdefault(tokenizer, OrderedDict())
        found = known.get(key)
    if found is None:
        found = _compile(tokenizer, vocab_size, eos_token_ids, field, text, special)
        with _lock:
            known[key] = found
            while len(known) > KEPT_GRAMMARS:
                known.popitem(last=False)
    return found.copy()


def _compile(
    tokenizer: Tokenizer,
    vocab_size: int,
    eos_token_ids: frozenset[int],
    field: str,
    text: str,
    special: frozenset[int],
) -> Constraint:
    """The constraint at its start, for sequences to copy. field: which of the three forms `text` is."""
    library, refuse = library_for(field), partial(_refusal, field, text)
    if len(text) > MAX_CHARACTERS:
        raise refuse(f"it has more than {MAX_CHARACTERS} characters")
    vocabulary = vocabulary_of(tokenizer)
    limits = library.LLParserLimits(verbose_errors=False)  # the defaults, but errors without the parser's state

    def give_up(reason: str) -> UserError:
        return refuse(_TOO_MUCH if field == "json_schema" and reason is not _NO_TEXT else reason)

    def begun(source: str) -> Constraint:
        def begin() -> Constraint:
            matcher = library.LLMatcher(vocabulary.trie, source, log_level=0, limits=limits)
            return Constraint(matcher, vocabulary, vocab_size, eos_token_ids, give_up, special)

        return call_with_large_stack(begin)

    if field == "json_schema":
        source = schema_source(library, text)
        try:
            return begun(source)
        except UserError:
            raise find_failing_part(library, text, begun) from None
    try:
        source = _source(library, field, text)
    except UserError:
        raise
    except ValueError as error:
        raise refuse(str(error)) from None
    return begun(source)


def _source(library: Any, field: str, text: str) -> str:
    """The grammar as llguidance's own JSON."""
    # "d": \d means 0 to 9 only, not the 700 other digits of Unicode.
    lark = f"start: /{library.regex_to_lark(text, 'd') or '(?:)'}/" if field == "regex" else lark_text(text)
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def _refusal(field: str, text: str, reason: str) -> UserError:
    """An error with llguidance's reason, without its state (after "\\n<") and its drawings (indented)."""
    lines = [line for line in reason.partition("\n<")[0].splitlines() if not line.startswith(" ")]
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(" ".join(lines).split()))
    if len(line) > MAX_REASON:  # it quotes the whole grammar in the middle
        line = f"{line[:40]}…{line[41 - MAX_REASON :]}"
    return UserError(field, f"cannot be used: {line}", "correct or simplify it", value=text)
