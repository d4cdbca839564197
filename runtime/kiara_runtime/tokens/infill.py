"""Fill in the middle: prompts with the text before a gap and the text after it (Bavarian et al. 2022).

Models that learned it have special tokens for it, and each family gives them other names.
"""

from __future__ import annotations

from dataclasses import dataclass

from kiara_runtime.errors import UserError
from kiara_runtime.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Form:
    """Special tokens before the prefix, before the suffix and before the middle, which may be none.

    suffix_first: the suffix comes before the prefix.
    """

    prefix: str
    suffix: str
    middle: str = ""
    suffix_first: bool = False


_FORMS = (
    _Form("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Granite 4
    _Form("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    _Form("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    _Form("<|fim▁begin|>", "<|fim▁hole|>", "<|fim▁end|>"),  # DeepSeek Coder
    _Form("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    _Form("[PREFIX]", "[SUFFIX]", suffix_first=True),  # Codestral
)
# Special tokens that end the middle, besides the model's end of text: another file or another gap begins.
_ENDS = (
    "<|endoftext|> <|fim_pad|> <|file_sep|> <|repo_name|> <fim_pad> <fim-pad> <file_sep> <repo_name> <filename> "
    "<|file_separator|> <|EOT|> ▁<EOT> <|endofmiddle|>"
).split()


def infill_ids(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """The prompt after which the model writes what is between two texts. Raises UserError if it never learned to."""
    special, form = tokenizer.special_tokens, _form(tokenizer)
    before = [special[form.prefix], *tokenizer.encode(prefix)]
    after = [special[form.suffix], *tokenizer.encode(suffix)]
    parts = [*after, *before] if form.suffix_first else [*before, *after]
    return [*tokenizer.prompt_prefix, *parts, *([special[form.middle]] if form.middle else [])]


def infill_ends(tokenizer: Tokenizer) -> list[int]:
    """Ids of the special tokens that end a middle."""
    form = _form(tokenizer)
    names = (*_ENDS, form.prefix, form.suffix, form.middle)
    return sorted({tokenizer.special_tokens[name] for name in names if name in tokenizer.special_tokens})


def _form(tokenizer: Tokenizer) -> _Form:
    for form in _FORMS:
        if all(not name or name in tokenizer.special_tokens for name in (form.prefix, form.suffix, form.middle)):
            return form
    raise UserError(
        "suffix", "this model cannot fill in the middle: its tokenizer has no special tokens for it", "leave it out"
    )
